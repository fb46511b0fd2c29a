"""Images become mask files: probability maps as PNG, each at its image's own size."""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from camox.errors import DataError
from camox.inference.ensemble import Ensemble
from camox.inference.loading.loaded_model import LoadedModel, Weights
from camox.inference.prediction.inputs import find_images
from camox.inference.prediction.mask_refinement import Refinement, require_refinement
from camox.inference.prediction.objects import document
from camox.inference.prediction.outputs import Bits, make_folders, plan, write_objects
from camox.inference.prediction.pipeline import Done, Settings, run
from camox.tracking.console import Console, counted


def predict(
    path_or_model: str | Path | LoadedModel,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    overlay: bool = False,
    batch_size: int | None = None,
    weights: Weights = "auto",
    overwrite: bool = False,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    console: Console | None = None,
    *,
    ensemble: Sequence[str | Path | LoadedModel] = (),
    tta: Sequence[str] = (),
    threshold: float | Literal["auto"] = "auto",
    binary: bool = False,
    refinement: Refinement | None = None,
    bits: Bits = 8,
    objects: bool = False,
) -> list[Path]:
    """Write `<stem>.png` for every image: a grey probability map (white = object) at the image's own size.

    On a CPU every image goes through the network by itself, on one thread, and as many images at once as torch has
    threads: a map then depends on nothing but its image. On a GPU images share a batch, which moves last bits.

    Args:
        path_or_model: a checkpoint, a run's folder, or what `load_model` gave (then `weights`, `image_size`
            and `device` were chosen there).
        images: an image file, a folder (its own images, not those of subfolders), a pattern such as `photos/**/*.jpg`,
            or several of these.
        out: folder for the results, made where it does not exist.
        overlay: also write `overlays/<stem>.png`, the image with the predicted object tinted and outlined.
        batch_size: images that are worked on at once; by default 8 on a GPU, and torch's threads on a CPU.
        weights: "raw", "ema", or "auto" for whichever scored better on held-out data.
        overwrite: replace results that are there already.
        image_size: size at which the model sees images; by default the one it was trained at.
        device: where the model runs; by default a GPU if there is one.
        console: where notices go; standard output by default.
        ensemble: further models, as `path_or_model`, whose maps are averaged with its own.
        tta: test-time augmentations, see `inference.augmentation`.
        threshold: probability from which on a pixel is object in binary masks, overlays and objects.json; "auto" for
            the one that was chosen on held-out images.
        binary: also write `binary/<stem>.png`, 255 for object and 0 for the rest.
        refinement: "guided" makes maps follow the edges of their images.
        bits: of the grey levels of the maps, 8 or 16.
        objects: also write objects.json, areas, boxes and scores; docs/inference.md has its schema.

    EXIF orientation is applied. Files of a folder that are no images by their suffix are skipped with a notice.
    Gives the written files in order.

    Raises:
        CheckpointError: the model cannot be loaded, or gives NaN.
        DataError: no image, two images of one stem, results already there, a library that is missing; after all other
            images are done, one that names those that could not be read.
        ExperimentError: a test-time augmentation that there is not.
    """
    console, out = console or Console(), Path(out)
    if bits not in (8, 16):
        raise ValueError(f"bits are 8 or 16, not {bits!r}")
    if threshold != "auto" and not 0 <= threshold <= 1:
        raise ValueError(f"a threshold is in [0, 1] or auto, not {threshold!r}")
    if refinement is not None:
        require_refinement()
    jobs = plan(find_images(images, out, console), out, overlay, binary, objects, overwrite)
    network = Ensemble.load(path_or_model, ensemble, tta, weights, image_size, device)
    chosen, reason = network.threshold if threshold == "auto" else (threshold, f"{threshold:g}, as asked for")
    console.notice(network.summary())
    if overlay or binary or objects:
        console.notice(f"threshold {reason}")
    done: list[Done] = []
    try:
        make_folders(jobs, out)
        with console.counting("predicting", len(jobs)) as count:
            for one in run(network, jobs, Settings(chosen, bits, refinement, objects), batch_size):
                done.append(one)
                count()
        written = [path for one in done for path in one.written]
        if objects:
            described = {"checkpoint": str(network.first.checkpoint), **network.describe(), "refinement": refinement}
            found = [(str(one.job.image.path), _below(one.job.map, out), one.found) for one in done if one.found]
            written.append(write_objects(out, document(found, chosen, reason, described)))
    except OSError as error:
        remedy = "free space, or give another --out" if error.errno == errno.ENOSPC else "give another --out"
        raise DataError(
            f"{out}: results cannot be written ({error}): {remedy}; what was written until then is whole"
        ) from error
    console.notice(f"{len(written)} files written to {out}")
    problems = [one.problem for one in done if one.problem]
    if problems:
        rest = " (the others are done)" if len(problems) < len(jobs) else ""
        raise DataError(
            f"{len(problems)} of {counted(len(jobs), 'image')} cannot be read{rest}:\n  " + "\n  ".join(problems)
        )
    return written


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
