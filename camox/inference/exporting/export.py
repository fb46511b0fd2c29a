"""`camox export`: a checkpoint becomes a file or folder that others can use, once it is shown to say the same.

Everything is written beside its place and renamed at the end: what does not agree with the model never gets the name.
"""

import importlib.util
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.fx.experimental._config as tracing
from torch import Tensor

from camox.errors import CamoxError, CheckpointError
from camox.inference.exporting.hub import HubOptions, push_export, replaceable, write_hub_folder
from camox.inference.exporting.parity import Maps, Parity, measure_parity, parity_batches, shapes_around
from camox.inference.loading.facts import Facts
from camox.inference.loading.loaded_model import LoadedModel, Weights, load_model
from camox.inference.loading.onnx_model import METADATA_KEY, OnnxModel, require_onnxruntime
from camox.inference.loading.selection import selected_on
from camox.models.camoxpert import CamoXpert
from camox.models.exportable import ExportableCamoXpert
from camox.tracking.console import Console

Format = Literal["onnx", "torch", "hub"]
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_OPSET = 18
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
FACTS_FILE = "camox.json"


def export(
    path: str | Path,
    format: Format,
    out: str | Path,
    weights: Weights = "auto",
    overwrite: bool = False,
    hub: HubOptions | None = None,
    console: Console | None = None,
) -> Parity:
    """Export a checkpoint, or of a run's folder `best`, else `latest`, and compare the export with it.

    Args:
        path: a checkpoint, or a run's folder.
        format: "onnx" (one file, for onnxruntime), "torch" (a program of `torch.export`, one .pt2 file) or "hub" (a
            folder for `CamoXpert.from_pretrained` and the Hugging Face hub, with a model card).
        out: the file, or for "hub" the folder.
        weights: "raw", "ema", or "auto" for whichever scored better on held-out data.
        overwrite: replace what is there; of folders only what an export wrote.
        hub: licence and where to push to; for "hub" alone.
        console: where the result is told; standard output by default.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or the export does not agree with it: then nothing is left.
        CamoxError: `out` exists, has another suffix or cannot be written; a package is missing; or the network cannot
            be exported.
    """
    assert format in get_args(Format), format
    console, out = console or Console(), Path(out)
    if format != "hub" and hub is not None:
        raise CamoxError("--push, --private and --license are for --format hub")
    if format == "onnx":
        _require_packages()
    _require_place(out, format, overwrite)
    loaded = load_model(path, weights, device="cpu")
    if type(loaded.model) is not CamoXpert:
        raise CheckpointError(f"{path}: is an export already: give the checkpoint it was made of")
    console.notice(f"{loaded.checkpoint}: {loaded.reason}")
    if format != "hub":
        console.notice("tracing the network, which takes a minute or two")
    staging = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        parity = _write(loaded, format, staging, hub or HubOptions())
        if not parity.holds:
            raise CheckpointError(f"{out}: not written, because the export does not agree with the model: {parity}")
        _put_in_place(staging, out)
    except OSError as error:
        raise CamoxError(f"{out}: cannot be written ({error}): free space, or give another --out") from error
    finally:
        _remove(staging)
    console.notice(f"{out}: {parity}")
    if hub is not None and hub.push is not None:
        console.notice(f"pushed: {push_export(out, hub)}")
    return parity


def facts_of(loaded: LoadedModel) -> Facts:
    """What an export of a loaded checkpoint has to say of itself."""
    run = [loaded.run.resolve().name] if loaded.run else []
    return Facts(
        image_size=loaded.image_size,
        threshold=float(loaded.threshold),
        threshold_reason=loaded.threshold_reason,
        checkpoint="/".join([*run, loaded.checkpoint.resolve().name]),
        weights=loaded.weights,
        weights_reason=loaded.reason,
        step=loaded.step,
        epoch=loaded.epoch,
        monitor=loaded.monitor,
        selected_on=selected_on(loaded.experiment) if loaded.experiment else "unknown",
        camox=version("camox"),
    )


def trace(model: CamoXpert) -> torch.export.ExportedProgram:
    """The graph of a network, with batch, height and width left open. CamoxError where it has none."""
    # Neither a size of 1 nor one that a stride divides, so that no special case of either gets into the graph.
    example = torch.rand(3, 3, 70, 101, generator=torch.Generator().manual_seed(0))
    shapes = {"images": {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
    # Oblivious: a batch of one image is no case of its own. torch has no public switch for that.
    oblivious = tracing.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with _exporting("--format torch or onnx"), torch.no_grad(), oblivious:
        return torch.export.export(ExportableCamoXpert(model), (example,), dynamic_shapes=shapes, strict=False)


def write_program(program: torch.export.ExportedProgram, file: Path, facts: Facts) -> None:
    """Write a .pt2 file, with what there is to know of it as `camox.json` inside."""
    torch.export.save(program, file, extra_files={FACTS_FILE: facts.to_json()})


def write_onnx(program: torch.export.ExportedProgram, file: Path, facts: Facts) -> None:
    """Write an ONNX model in one file, of standard operators alone; what there is to know of it in its metadata."""
    import onnx_ir  # comes with onnxscript

    with _exporting("--format onnx"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits", "uncertainty"],
            opset_version=_OPSET,
            verbose=False,
        )
    assert exported is not None
    graph = exported.model.graph
    for value, channels in zip([*graph.inputs, *graph.outputs], (3, 1, 1), strict=True):
        # In place of the tracer's names of sizes, such as s14.
        value.shape = onnx_ir.Shape(["batch", channels, "height", "width"])
    exported.model.metadata_props[METADATA_KEY] = facts.to_json()
    exported.save(str(file), external_data=False)


def open_program(file: str | Path) -> Callable[[Tensor], Maps]:
    """A .pt2 file as a function of images."""
    # The guards say which layout in memory the tracer has seen, that of a batch of one image or of several: of what is
    # computed nothing depends on it, which is what is measured.
    return torch.export.load(file).module(check_guards=False)


def open_onnx(file: str | Path) -> Callable[[Tensor], Maps]:
    """An ONNX model as a function of images, on the CPU."""
    model = OnnxModel(file, "cpu")

    def run(images: Tensor) -> Maps:
        output = model(images)
        return output.logits, output.uncertainty

    return run


def _write(loaded: LoadedModel, format: Format, file: Path, hub: HubOptions) -> Parity:
    """Write in the format, open again what was written, and compare."""
    facts = facts_of(loaded)
    if format == "hub":
        write_hub_folder(loaded, facts, file, hub)
        exported = _maps_of(CamoXpert.from_pretrained(file))
    elif format == "torch":
        write_program(trace(loaded.model), file, facts)
        exported = open_program(file)
    else:
        write_onnx(trace(loaded.model), file, facts)
        exported = open_onnx(file)
    with _exporting(f"--format {format}"):  # a graph that was written may still fail at some size
        return measure_parity(loaded.model, exported, parity_batches(shapes_around(loaded.image_size)))


def _maps_of(model: CamoXpert) -> Callable[[Tensor], Maps]:
    def run(images: Tensor) -> Maps:
        output = model(images)
        return output.logits, output.uncertainty

    return run


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CamoxError(f"--format onnx needs {', '.join(missing)}: pip install 'camox[export]'")
    require_onnxruntime()


def _require_place(out: Path, format: Format, overwrite: bool) -> None:
    """Everything about `--out` that can be told before the work."""
    suffix = _SUFFIXES.get(format)
    if suffix is not None and out.suffix != suffix:
        raise CamoxError(f"{out}: --format {format} writes one file: let its name end in {suffix}")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise CamoxError(f"{out}: is there already: give another --out, or --overwrite to replace it")
    if suffix is not None and not out.is_file():
        raise CamoxError(f"{out}: is a folder: give the name of a file")
    if suffix is None and not replaceable(out):
        raise CamoxError(f"{out}: holds files that no export wrote, and is not replaced: give another --out")


def _put_in_place(staging: Path, out: Path) -> None:
    if not out.is_dir():
        staging.replace(out)
        return
    aside = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(aside)
    staging.rename(out)
    shutil.rmtree(aside, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


@contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Quiet, and with one message for all that the exporters raise: they share no type."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CamoxError(
            f"this network cannot be exported by {what} with PyTorch {torch.__version__}: {reason[:300]}. See "
            "docs/export.md for what can; --format hub takes every network"
        ) from error
    finally:
        logging.disable(level)
