"""Opening what `camox export` wrote: an ONNX file, or a folder of the Hugging Face hub."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from camox.checkpoints.manifest import is_checkpoint
from camox.errors import CheckpointError
from camox.experiment import Experiment
from camox.inference.loading.facts import Facts
from camox.inference.loading.onnx_model import OnnxModel
from camox.models.camoxpert import CamoXpert
from camox.models.pretrained import CONFIG, EXPERIMENT, FACTS, WEIGHTS, is_hub_id, local_folder


@dataclass(frozen=True)
class Exported:
    """An opened export."""

    model: CamoXpert | OnnxModel
    device: torch.device
    """Where images have to be; an ONNX model takes them from the CPU, wherever it runs."""
    path: Path
    facts: Facts | None
    """None where `save_pretrained` wrote the folder: the network alone does not know its run."""
    experiment: Experiment | None


def open_exported(path: str | Path, device: str | torch.device | None = None) -> Exported | None:
    """Open an export, or fetch it from the hub; None where the path is none, and may be a checkpoint or a run.

    `device` is by default a GPU if there is one.

    Raises:
        CheckpointError: it is one and cannot be opened, or the hub does not give it; NaN or Inf in its weights.
        ExperimentError: its experiment.toml is damaged.
    """
    if Path(path).suffix.lower() == ".onnx" and not os.path.isdir(path):
        model = OnnxModel(path, device)
        return Exported(model, torch.device("cpu"), Path(path), model.facts, None)
    if Path(path).suffix.lower() == ".pt2" and os.path.isfile(path):
        raise CheckpointError(
            f"{path}: a program of torch.export is for torch.export.load: give an ONNX file, a folder that camox "
            "export --format hub wrote, a checkpoint or a run"
        )
    if is_hub_id(path):
        return _open_folder(local_folder(path), device)
    return _open_folder(Path(path), device) if _is_pretrained(Path(path)) else None


def _is_pretrained(folder: Path) -> bool:
    """Whether it is a folder of the hub's form; a checkpoint has state.json too, or is one that lost its manifest."""
    held = {name for name in (CONFIG, WEIGHTS, FACTS, "state.json") if os.path.isfile(folder / name)}
    return not is_checkpoint(folder) and {CONFIG, WEIGHTS} <= held and "state.json" not in held


def _open_folder(folder: Path, device: str | torch.device | None) -> Exported:
    model = CamoXpert.from_pretrained(folder)
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{folder}: NaN or Inf in {broken[0]} and {len(broken) - 1} other tensors: take another")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Exported(model.to(chosen), chosen, folder, _facts(folder), _experiment(folder))


def _facts(folder: Path) -> Facts | None:
    file = folder / FACTS
    if not file.is_file():
        return None
    try:
        return Facts.from_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}): export the model again") from error


def _experiment(folder: Path) -> Experiment | None:
    return Experiment.load(folder / EXPERIMENT) if (folder / EXPERIMENT).is_file() else None
