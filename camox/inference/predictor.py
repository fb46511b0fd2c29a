"""Images become mask files: probability maps as PNG, each at its image's own size."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from camox.data.decoding import read_image
from camox.data.pairing import IMAGE_SUFFIXES
from camox.data.transforms import resize_image
from camox.errors import CheckpointError, DataError
from camox.inference.loaded_model import LoadedModel, Weights, load_model
from camox.inference.pictures import overlay as draw_overlay
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.tracking.console import Console

__all__ = ["Autocast", "LoadedModel", "infer", "load_model", "predict"]

Autocast = Callable[[], AbstractContextManager[object]]
_SHOWN = 10


@dataclass(frozen=True)
class _Job:
    """An image file and where its results go."""

    image: Path
    mask: Path
    overlay: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.mask, self.overlay) if path is not None]


@torch.no_grad()
def infer(
    model: CamoXpert, images: Tensor, device: torch.device | str, autocast: Autocast = nullcontext
) -> tuple[CamoXpertOutput, Tensor]:
    """Run the model on uint8 images [B, 3, S, S] RGB; gives its output and probabilities, float32 [B, S, S].

    All are on `device`. The model must be in eval mode.
    """
    batch = images.to(device, non_blocking=True).float().div_(255)
    with autocast():
        output = model(batch)
    return output, output.logits[:, 0].float().sigmoid()


def require_finite(probabilities: np.ndarray, names: Sequence[str]) -> None:
    """Raise CheckpointError, naming the images, where the model gave NaN: finite weights can still overflow."""
    broken = [name for name, map_ in zip(names, probabilities, strict=True) if np.isnan(map_).any()]
    if broken:
        raise CheckpointError(
            f"the model's output is NaN for {_listed(broken)}: an activation overflowed (fp16 does so first); "
            "take another checkpoint of the run"
        )


def predict(
    path_or_model: str | Path | LoadedModel,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    overlay: bool = False,
    batch_size: int = 1,
    weights: Weights = "auto",
    overwrite: bool = False,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Write `<stem>.png` for every image: a uint8 probability map (255 = object) at the image's own size.

    Args:
        path_or_model: a checkpoint, a run's folder, or what `load_model` gave (then `weights`, `image_size`
            and `device` were chosen there).
        images: an image file, a folder (its own images, not those of subfolders), or several of these.
        out: folder for the results, made where it does not exist.
        overlay: also write `<stem>_overlay.png`, the image with the predicted object tinted and outlined.
        batch_size: images that the model sees at once.
        weights: "raw", "ema", or "auto" for whichever scored better on held-out data.
        overwrite: replace results that are there already.
        image_size: size at which the model sees images; by default the one it was trained at.
        device: where the model runs; by default a GPU if there is one.
        console: where notices go; standard output by default.

    EXIF orientation is applied. Files of a folder that are no images by their suffix are skipped with a notice.
    Gives the written files in order.

    Raises:
        CheckpointError: the model cannot be loaded, or gives NaN.
        DataError: no image, two images of one stem, results already there; after all other images are done, one
            that names those that could not be read.
    """
    console = console or Console()
    jobs = _plan(_find_images(images, console), Path(out), overlay, overwrite)
    loaded = path_or_model
    if not isinstance(loaded, LoadedModel):
        loaded = load_model(loaded, weights, image_size, device)
    console.notice(f"{loaded.checkpoint}: {loaded.reason}; images at {loaded.image_size} px on {loaded.device}")
    written: list[Path] = []
    unreadable: list[str] = []
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        for start in range(0, len(jobs), batch_size):
            readable = list(_read(jobs[start : start + batch_size], unreadable))
            if readable:
                written += _predict_batch(loaded, readable)
    except OSError as error:
        raise DataError(f"{out}: results cannot be written ({error}): free space, or give another --out") from error
    console.notice(f"{len(written)} files written to {out}")
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(jobs)} images cannot be read (the others are done):\n  "
            + "\n  ".join(unreadable)
        )
    return written


def _find_images(images: str | Path | Sequence[str | Path], console: Console) -> list[Path]:
    given = [images] if isinstance(images, str | Path) else list(images)
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            found += _images_of_folder(path, console)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder: give images, or folders of images")
    if not found:
        raise DataError("no images given: name image files, or folders of images")
    return found


def _images_of_folder(folder: Path, console: Console) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{folder}: has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): give the folder that holds the "
            "images itself; subfolders are not searched"
        )
    others = [path.name for path in files if path not in images]
    if others:
        console.notice(f"{folder}: {len(others)} files are no images and are skipped: {_listed(others)}")
    return images


def _plan(images: Sequence[Path], out: Path, overlay: bool, overwrite: bool) -> list[_Job]:
    """Where each image's results go; everything that would be lost is found before anything is written."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a folder as --out")
    jobs = [
        _Job(path, out / f"{path.stem}.png", out / f"{path.stem}_overlay.png" if overlay else None) for path in images
    ]
    owners: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs:
            if output in owners:
                raise DataError(
                    f"{owners[output]} and {job.image} would both become {output}: rename one of them, or predict "
                    "them into two folders"
                )
            owners[output] = job.image
    sources = {path.resolve() for path in images}
    lost = [str(output) for output in owners if output.resolve() in sources]
    if lost:
        raise DataError(f"{out}: results would replace the images {_listed(lost)}: give another --out")
    existing = [output.name for output in owners if output.exists()]
    if existing and not overwrite:
        raise DataError(
            f"{out}: {len(existing)} results are there already: {_listed(existing)}; give another --out, or "
            "--overwrite to replace them"
        )
    return jobs


def _read(jobs: Sequence[_Job], unreadable: list[str]) -> Iterator[tuple[_Job, np.ndarray]]:
    for job in jobs:
        try:
            yield job, read_image(job.image)
        except DataError as error:
            unreadable.append(str(error))


def _predict_batch(loaded: LoadedModel, batch: Sequence[tuple[_Job, np.ndarray]]) -> list[Path]:
    resized = np.stack([resize_image(image, loaded.image_size) for _, image in batch])
    images = torch.from_numpy(np.ascontiguousarray(resized.transpose(0, 3, 1, 2)))
    _, maps = infer(loaded.model, images, loaded.device)
    probabilities = maps.cpu().numpy()
    require_finite(probabilities, [str(job.image) for job, _ in batch])
    for (job, image), probability in zip(batch, probabilities, strict=True):
        probability = _at_size(probability, image.shape[0], image.shape[1])
        _write_png(job.mask, np.rint(probability * 255).astype(np.uint8))
        if job.overlay is not None:
            _write_png(job.overlay, cv2.cvtColor(draw_overlay(image, probability), cv2.COLOR_RGB2BGR))
    return [output for job, _ in batch for output in job.outputs]


def _at_size(probability: np.ndarray, height: int, width: int) -> np.ndarray:
    # The same rule as measures.evaluator.resize_probability, whose import costs a second (a test compares them).
    resized = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(resized, 0, 1)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W] or [H, W, 3] BGR beside its place, then rename: a kill leaves no half picture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
