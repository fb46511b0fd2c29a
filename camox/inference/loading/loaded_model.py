"""A checkpoint becomes a model that is ready to predict: which checkpoint, which weights, at what size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from camox.checkpoints.folders import CHECKPOINTS, is_better, resolve
from camox.checkpoints.store import Checkpoint, read_checkpoint
from camox.errors import CheckpointError, ExperimentError
from camox.experiment import Experiment
from camox.inference.loading.exported import Exported, open_exported
from camox.models.camoxpert import CamoXpert

Weights = Literal["auto", "raw", "ema"]
_STEMS = {"raw": "model", "ema": "ema"}
_PREFIXES = {"raw": "val", "ema": "val_ema"}
UNKNOWN_THRESHOLD = "0.5: none was chosen on held-out images"
_DEFAULT_MONITOR = "s_measure"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on `device`, with where it came from."""

    model: CamoXpert
    device: torch.device
    image_size: int
    """Height and width in pixels that images are resized to before the model sees them."""
    weights: str
    """"raw" or "ema"."""
    reason: str
    """Why these weights, as a sentence to show."""
    checkpoint: Path
    step: int
    epoch: int
    run: Path | None
    """The run's folder, if the checkpoint lies in one."""
    experiment: Experiment | None
    """The experiment of that run, if its folder has one."""
    threshold: float = 0.5
    """Probability from which on a pixel is called object: that of the best mean IoU on held-out images, 0.5 where
    nobody knows it."""
    threshold_reason: str = UNKNOWN_THRESHOLD
    """Why this threshold, as a sentence to show."""

    selected_on: str = ""
    """What data the checkpoint was selected on, as an export tells it; else the experiment knows."""

    @property
    def monitor(self) -> str:
        """The measure that checkpoints and weights were selected by."""
        return self.experiment.checkpoints.monitor if self.experiment else _DEFAULT_MONITOR

    def scored_alone(self, protocol: Mapping[str, Any]) -> bool:
        """Whether scores under this "protocol" of measures.json are those of this model as it is: of these weights, at
        this size, without test-time augmentation and without other models."""
        ours = {"step": self.step, "epoch": self.epoch, "weights": self.weights, "image_size": self.image_size}
        theirs = {name: protocol.get(name) for name in ours}
        return theirs == ours and not protocol.get("tta") and not protocol.get("ensemble")


def load_model(
    path: str | Path,
    weights: Weights = "auto",
    image_size: int | None = None,
    device: str | torch.device | None = None,
) -> LoadedModel:
    """Load a checkpoint, or of a run's folder `best`, else `latest`; its files are verified first.

    Exports too: an ONNX file, whose `model` has `logits` and `uncertainty` alone and runs on what onnxruntime has; a
    folder that `camox export --format hub` wrote; and `owner/name` on the Hugging Face hub, where no such path exists.
    These hold the weights chosen when they were exported.

    `weights` "auto" takes raw or EMA weights, whichever the manifest says scored better on held-out data.
    `image_size` is by default the one of the run's experiment. `device` is by default a GPU if there is one.

    Raises:
        CheckpointError: nothing to load, damaged files, NaN or Inf in them, weights that are not there, or an
            image size that nobody tells.
        ExperimentError: the run's experiment.toml is damaged.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights are auto, raw or ema, not {weights!r}")
    exported = open_exported(path, device)
    if exported is not None:
        return _of_export(exported, weights, image_size)
    checkpoint = read_checkpoint(resolve(path))
    run = _run_of(checkpoint.path)
    experiment = _experiment_of(run)
    monitor = experiment.checkpoints.monitor if experiment else _DEFAULT_MONITOR
    chosen, reason = _choose_weights(checkpoint, weights, monitor)
    threshold, threshold_reason = _threshold(checkpoint, chosen)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedModel(
        model=CamoXpert.from_pretrained(checkpoint.path, _STEMS[chosen]).to(device),
        device=device,
        image_size=image_size or _image_size(checkpoint, experiment),
        weights=chosen,
        reason=reason,
        checkpoint=checkpoint.path,
        step=checkpoint.manifest.step,
        epoch=checkpoint.manifest.epoch,
        run=run,
        experiment=experiment,
        threshold=threshold,
        threshold_reason=threshold_reason,
    )


def experiment_at(path: str | Path) -> Experiment | None:
    """The experiment that made a checkpoint or run; None where neither it nor its experiment.toml is there any more."""
    try:
        return _experiment_of(_run_of(resolve(path)))
    except (CheckpointError, ExperimentError):
        return None


def _of_export(exported: Exported, weights: Weights, image_size: int | None) -> LoadedModel:
    facts = exported.facts
    held = "raw" if facts is None else facts.weights
    if weights not in ("auto", held):
        raise CheckpointError(f"{exported.path}: holds {held} weights alone: export again with --weights {weights}")
    if facts is None and image_size is None:
        raise CheckpointError(f"{exported.path}: the image size it was trained at is not known: give --image-size")
    known = {"weights": "raw", "reason": "its only weights", "step": 0, "epoch": 0}
    settings: dict[str, Any] = facts.of_loaded_model() if facts else known
    return LoadedModel(
        # What predicts and scores asks of a model, an ONNX model answers too.
        model=cast(CamoXpert, exported.model),
        device=exported.device,
        checkpoint=exported.path,
        run=None,
        experiment=exported.experiment,
        **(settings | ({"image_size": image_size} if image_size else {})),
    )


def _run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None for one that was copied elsewhere."""
    # As it was given, so that messages show the path the user knows; resolved only for "." and the like.
    parent = checkpoint.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.resolve().parent
    return parent.parent if parent.name == CHECKPOINTS else None


def _experiment_of(run: Path | None) -> Experiment | None:
    if run is None or not (run / "experiment.toml").is_file():
        return None
    return Experiment.load(run / "experiment.toml")


def _image_size(checkpoint: Checkpoint, experiment: Experiment | None) -> int:
    if experiment is not None:
        return experiment.data.image_size
    size = checkpoint.state.get("image_size")
    if isinstance(size, int) and size > 0:
        return size
    raise CheckpointError(
        f"{checkpoint.path}: the image size it was trained at is not known, because there is no experiment.toml two "
        "folders above: give --image-size, or keep the checkpoint in its run's folder"
    )


def _choose_weights(checkpoint: Checkpoint, weights: Weights, monitor: str) -> tuple[str, str]:
    """ "raw" or "ema", and a sentence that says why."""
    has_ema = _STEMS["ema"] in checkpoint.stems
    if weights == "ema" and not has_ema:
        raise CheckpointError(
            f"{checkpoint.path}: has no EMA weights (ema.enabled was false): use --weights raw or auto"
        )
    if weights != "auto":
        return weights, f"{weights} weights, as asked for"
    if not has_ema:
        return "raw", "raw weights: the checkpoint has no EMA"
    measured = checkpoint.manifest.measures
    validation = "validation on test images" if measured.get("val/selected_on_test") else "validation"
    raw, ema = (measured.get(f"{prefix}/{monitor}", math.nan) for prefix in _PREFIXES.values())
    if math.isnan(raw) and math.isnan(ema):
        return "raw", f"raw weights: neither raw nor EMA has a {monitor} of a validation"
    chosen = "ema" if is_better(ema, raw, monitor) else "raw"
    names = {"raw": "raw", "ema": "EMA"}
    return chosen, f"{names[chosen]} weights: {monitor} in {validation} {_score(raw)} raw, {_score(ema)} EMA"


def _threshold(checkpoint: Checkpoint, chosen: str) -> tuple[float, str]:
    """What the validation before the checkpoint found best for these weights, and a sentence that says so."""
    measured = checkpoint.manifest.measures
    threshold = measured.get(f"{_PREFIXES[chosen]}/threshold", math.nan)
    if math.isnan(threshold):
        return 0.5, UNKNOWN_THRESHOLD
    on = "test images that it was selected on" if measured.get("val/selected_on_test") else "held-out images"
    return threshold, f"{threshold:.4f}: the best mean IoU of {on}"


def _score(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4f}"
