"""Scores of a model on images with ground truth: the loop that validation and `camox evaluate` share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camox.data.loading import EvalBatch, EvalSet, eval_loader
from camox.data.pairing import is_non_camouflaged
from camox.errors import DataError
from camox.inference.ensemble import Ensemble
from camox.inference.forward import Autocast, infer, require_finite
from camox.inference.loading.loaded_model import LoadedModel, Weights
from camox.inference.loading.selection import selected_on
from camox.inference.scoring.results import report
from camox.inference.scoring.robustness import PASSES, measure_robustness, report_robustness
from camox.inference.scoring.scored_data import ScoredData, default_data, named_data
from camox.measures.breakdown import DatasetScores, set_apart, summarise
from camox.measures.evaluator import Evaluator
from camox.measures.protocol import ALL_MEASURES, Protocol, get_protocol
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.tracking.console import Console

_NOTES = {
    "training": "a model was trained on these images: the scores say nothing about others",
    "selection": "the checkpoint was selected on these images: the scores are optimistic",
    "selection on test images": "the checkpoint was selected on these test images: the scores are optimistic",
    "unknown": "whether a model was trained on these images is not known: its experiment, or data of it, are gone",
}


@torch.no_grad()
def evaluate_model(
    model: CamoXpert,
    loader: Iterable[EvalBatch],
    evaluator: Evaluator,
    device: torch.device | str,
    autocast: Autocast = nullcontext,
    observe: Callable[[CamoXpertOutput, EvalBatch], None] | None = None,
    done: Callable[[int], object] = lambda number: None,
) -> None:
    """Add every image of `loader` to `evaluator`, by the model in eval mode; its mode is put back afterwards.

    Maps on a GPU are resized and measured there, all others on the CPU; the numbers are the same to 1e-6.

    Args:
        model: on `device`, not wrapped for several processes.
        loader: batches of `data.loading.eval_loader`, in several processes a shard of the images each.
        evaluator: takes the probability maps with the truths at native size.
        device: where the model is.
        autocast: gives the context of a forward pass, such as `accelerator.autocast`.
        observe: sees the model's output of every batch, for a loss. No gradient is kept.
        done: is told how many images more were measured.

    Raises:
        DataError: an image or a mask cannot be read.
        CheckpointError: the model gives NaN.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            _require_readable(batch)
            output, maps = infer(model, batch.images, device, autocast)
            probabilities = maps.cpu().numpy()
            require_finite(probabilities, batch.names)
            if observe is not None:
                observe(output, batch)
            _add(evaluator, batch, maps, done)
    finally:
        model.train(was_training)


def evaluate_ensemble(
    network: Ensemble,
    loaders: Sequence[Iterable[EvalBatch]],
    evaluator: Evaluator,
    observe: Callable[[EvalBatch], None] | None = None,
    done: Callable[[int], object] = lambda number: None,
) -> None:
    """Add every image to `evaluator`, as several models or views see it together.

    loaders: the same batches of the same images at each of the `network.sizes`; each decodes them for itself. Raises as
    `evaluate_model`.
    """
    for batches in zip(*loaders, strict=True):
        first = batches[0]
        _require_readable(first)
        images = {size: batch.images.to(network.device) for size, batch in zip(network.sizes, batches, strict=True)}
        maps = network.probabilities(images)
        require_finite(maps.cpu().numpy(), first.names)
        if observe is not None:
            observe(first)
        _add(evaluator, first, maps, done)


def _require_readable(batch: EvalBatch) -> None:
    if batch.problems:
        raise DataError("\n".join(batch.problems))


def _add(evaluator: Evaluator, batch: EvalBatch, maps: Tensor, done: Callable[[int], object]) -> None:
    """Score maps, float32 [B, h, w], where they are."""
    if maps.is_cuda:
        evaluator.add_batch(batch.indices.tolist(), batch.names, batch.groups, maps, batch.truths)
        done(len(batch.names))
        return
    images = zip(batch.indices.tolist(), batch.names, batch.groups, batch.truths, strict=True)
    for probability, (index, name, group, truth) in zip(maps.numpy(), images, strict=True):
        evaluator.add(index, name, group, probability, truth)
        done(1)


@dataclass(frozen=True)
class Scoring:
    """How models are scored: everything that is the same for all of them."""

    protocol: Protocol
    batch_size: int
    """Images that the model sees at once."""
    workers: int
    """Processes that load images."""
    console: Console
    """Shows how far it is."""

    def score(
        self,
        network: Ensemble,
        dataset: EvalSet,
        name: str,
        observe: Callable[[EvalBatch], None] | None = None,
        measures: Sequence[str] = ALL_MEASURES,
    ) -> Evaluator:
        """Score every image of a dataset, shown under a name. Raises as `evaluate_model`."""
        evaluator = Evaluator(self.protocol, measures)
        loaders = [self._loader(network, dataset, size) for size in network.sizes]
        with self.console.counting(name, len(dataset)) as done:
            evaluate_ensemble(network, loaders, evaluator, observe, done)
        apart = [name for name in dataset.source.names if is_non_camouflaged(name)]
        return set_apart(evaluator, apart) if apart else evaluator

    def _loader(self, network: Ensemble, dataset: EvalSet, size: int) -> Iterable[EvalBatch]:
        of_size = EvalSet(dataset.source, size, dataset.alter)
        pin_memory = network.device.type == "cuda"
        return eval_loader(of_size, range(len(of_size)), self.batch_size, self.workers, pin_memory)

    def break_down(self, network: Ensemble, data: ScoredData) -> DatasetScores:
        """Score a dataset, with all that its tables show. Raises as `evaluate_model`."""
        shares: dict[int, float] = {}

        def observe(batch: EvalBatch) -> None:
            shares.update(zip(batch.indices.tolist(), (float(truth.mean()) for truth in batch.truths), strict=True))

        dataset = EvalSet(data.source, network.first.image_size)
        return summarise(self.score(network, dataset, f"scoring {data.name}", observe), shares)

    def robustness(self, network: Ensemble, data: ScoredData) -> dict[str, Any]:
        """Score a dataset without corruption and with each; see `measure_robustness`."""
        with self.console.counting(f"corrupting {data.name}", PASSES, "passes") as done:

            def score(dataset: EvalSet, name: str, measures: Sequence[str]) -> Evaluator:
                scored = self.score(network, dataset, name, measures=measures)
                done()
                return scored

            return measure_robustness(score, EvalSet(data.source, network.first.image_size))


def evaluate(
    path: str | Path,
    data: Mapping[str, str | Path] | None = None,
    out: str | Path | None = None,
    weights: Weights = "auto",
    batch_size: int = 8,
    workers: int = 2,
    protocol: str | Protocol = "camox",
    image_size: int | None = None,
    device: str | torch.device | None = None,
    console: Console | None = None,
    non_camouflaged: bool = False,
    corruptions: bool = False,
    tta: Sequence[str] = (),
    ensemble: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Score a checkpoint, in fp32, and write measures.json, per_image.csv, curves, table.md and table.tex.

    Args:
        path: a checkpoint, or a run's folder (its `best`, else `latest`).
        data: folders to score on, by the name they get in tables; of a folder with several test sets each gets its
            own. By default the test data of the run's experiment; without any, the data its checkpoints were selected
            on. Names of training and selection data are marked as such.
        out: folder for the files; by default `evaluation` in the run's folder, `evaluation-NAME` for named data,
            augmentations and ensembles.
        weights: "raw", "ema", or "auto" for whichever scored better on held-out data.
        batch_size: images that the model sees at once.
        workers: processes that load images.
        protocol: "camox" or "pysod", see `measures.protocol`.
        image_size: size at which the model sees images; by default the one it was trained at.
        device: where the model runs; by default a GPU if there is one.
        console: where the tables go; standard output by default.
        non_camouflaged: also take COD10K's images without a camouflaged object from `data`; they are in no mean.
        corruptions: also score images made worse (`data.corruptions`), 20 times over, and write corruptions.json.
        tta: test-time augmentations, see `inference.augmentation`.
        ensemble: further checkpoints or runs, whose maps are averaged with those of `path`.

    Returns:
        What measures.json holds: `{"protocol": {...}, "datasets": {name: summary}}`. Beside the protocol's
        own choices, "protocol" tells the checkpoint, its weights, what they were selected on, the data, and what
        predicted with it.

    Raises:
        CheckpointError, ExperimentError: as `Ensemble.load`; also where there is no place for the files.
        DataError: no data, data of no known layout, or an image or mask that cannot be read.
    """
    console = console or Console()
    scoring = Scoring(get_protocol(protocol), batch_size, workers, console)
    network = Ensemble.load(path, ensemble, tta, weights, image_size, device)
    loaded = network.first
    out = _destination(out, loaded, [*(data or ()), *network.augmentations, *(["ensemble"] if ensemble else [])])
    scored = named_data(data, network.members, non_camouflaged) if data else default_data(network.members)
    introduce(network, scored, console)
    datasets = {one.title: scoring.break_down(network, one) for one in scored}
    described = describe(scoring.protocol, path, network, scored)
    document = report(datasets, described, out, console)
    if corruptions:
        evaluate_corrupted(network, scored, scoring, described, out, console)
    return document


def evaluate_corrupted(
    network: Ensemble,
    scored: Sequence[ScoredData],
    scoring: Scoring,
    described: Mapping[str, object],
    out: Path,
    console: Console,
) -> None:
    """Score all data with every corruption and report it into `out`."""
    found = {one.title: scoring.robustness(network, one) for one in scored}
    report_robustness(found, described, out, console)


def introduce(network: Ensemble, scored: Sequence[ScoredData], console: Console) -> None:
    """Say what is about to be scored, and what about the data a reader of the scores has to know."""
    console.header(f"evaluate {network.first.checkpoint}", _header_rows(network, scored))
    for one in scored:
        for notice in one.source.notices:
            console.warning(f"{one.name}: {notice}")
        for remark in one.source.remarks:
            console.notice(f"{one.name}: {remark}")
        if one.used_for in _NOTES:
            console.warning(f"{one.title}: {_NOTES[one.used_for]}")


def _destination(out: str | Path | None, loaded: LoadedModel, besides: Sequence[str]) -> Path:
    if out is not None:
        folder = Path(out)
    elif loaded.run is not None:
        # A folder of its own for other data, and for what is not the model alone: the run's own test scores stay.
        folder = loaded.run / "-".join(["evaluation", *besides])
    else:
        raise DataError(f"{loaded.checkpoint}: lies in no run's folder, which would take the scores: give --out")
    require_folder(folder)
    return folder


def require_folder(folder: Path) -> None:
    """Raise DataError where a file stands in the place of the folder for the scores."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file: give a folder as --out")


def _header_rows(network: Ensemble, scored: Sequence[ScoredData]) -> list[tuple[str, object]]:
    loaded = network.first
    together = [("together with", f"{one.checkpoint}: {one.reason}") for one in network.members[1:]]
    if network.augmentations:
        together.append(("augmentation", ", ".join(network.augmentations)))
    return [
        ("checkpoint", f"epoch {loaded.epoch}, step {loaded.step}"),
        ("weights", loaded.reason),
        ("selected on", _selected_on(loaded)),
        ("device", loaded.device),
        ("image size", loaded.image_size),
        *together,
        ("data", ", ".join(f"{one.name}: {len(one.source)} images" for one in scored)),
    ]


def describe(protocol: Protocol, path: str | Path, network: Ensemble, scored: Sequence[ScoredData]) -> dict[str, Any]:
    """The protocol with all else that a score depends on."""
    loaded = network.first
    return {
        **protocol.as_dict(),
        # The loader reads {0, 1} masks as labels under either protocol.
        "label_masks": True,
        "checkpoint": str(loaded.checkpoint),
        "step": loaded.step,
        "epoch": loaded.epoch,
        "weights": loaded.weights,
        "image_size": loaded.image_size,
        "precision": "fp32",
        **network.describe(),
        "selected_on": {
            "data": _selected_on(loaded),
            "monitor": loaded.monitor,
            "checkpoint": "named" if _is_same(path, loaded.checkpoint) else "the run's best, else its latest",
            "weights": loaded.reason,
        },
        "data": {one.title: one.as_dict() for one in scored},
    }


def _selected_on(loaded: LoadedModel) -> str:
    if loaded.experiment is None:
        return loaded.selected_on or "unknown: no experiment.toml"
    return selected_on(loaded.experiment)


def _is_same(path: str | Path, checkpoint: Path) -> bool:
    return Path(path).resolve() == checkpoint.resolve()
