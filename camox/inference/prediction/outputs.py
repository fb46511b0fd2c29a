"""Where the results of each image go, and how they are written: nothing is lost, nothing is left half."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from camox.errors import DataError
from camox.inference.pictures import overlay as draw_overlay
from camox.inference.prediction.inputs import InputImage
from camox.tracking.wording import listed

Bits = Literal[8, 16]
OBJECTS = "objects.json"
_BINARY, _OVERLAYS = "binary", "overlays"


@dataclass(frozen=True)
class Job:
    """An image and where its results go; None for what is not asked for."""

    image: InputImage
    map: Path
    binary: Path | None
    overlay: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.map, self.binary, self.overlay) if path is not None]


def plan(
    images: Sequence[InputImage], out: Path, overlay: bool, binary: bool, objects: bool, overwrite: bool
) -> list[Job]:
    """Where each image's results go; everything that would be lost is found before anything is written.

    Maps lie in `out` itself, so that it can be scored as it is; binary masks and overlays in folders of their own.
    Raises DataError where `out` is a file or holds the images, where two results would have one name, and where a
    result would replace an image or, unless `overwrite`, an older result.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a folder as --out")
    jobs = [
        Job(
            image,
            _png(out, image.name),
            _png(out / _BINARY, image.name) if binary else None,
            _png(out / _OVERLAYS, image.name) if overlay else None,
        )
        for image in images
    ]
    owners: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs:
            if output in owners:
                raise DataError(
                    f"{owners[output]} and {job.image.path} would both become {output}: rename one of them, or predict "
                    "them into two folders"
                )
            owners[output] = job.image.path
    sources = {image.path.resolve() for image in images}
    lost = [str(output) for output in owners if output.resolve() in sources]
    if lost:
        raise DataError(f"{out}: results would replace the images {listed(lost)}: give another --out")
    if out.resolve() in {image.path.resolve().parent for image in images}:
        raise DataError(
            f"{out}: holds the images themselves, and next time maps would be taken for images: give another --out"
        )
    existing = [
        str(path.relative_to(out)) for path in (*owners, *([out / OBJECTS] if objects else [])) if path.exists()
    ]
    if existing and not overwrite:
        raise DataError(
            f"{out}: {len(existing)} results are there already: {listed(existing)}; give another --out, or "
            "--overwrite to replace them"
        )
    return jobs


def make_folders(jobs: Sequence[Job], out: Path) -> None:
    """Make every folder that results go to. Raises OSError."""
    for folder in {out, *(output.parent for job in jobs for output in job.outputs)}:
        folder.mkdir(parents=True, exist_ok=True)


def write_results(job: Job, image: np.ndarray, probability: np.ndarray, threshold: float, bits: Bits) -> None:
    """Write what is asked for of an image, uint8 [H, W, 3] RGB, and its map, float32 [H, W] in [0, 1]. Raises
    OSError."""
    _write_png(job.map, to_levels(probability, bits))
    if job.binary is not None:
        _write_png(job.binary, np.where(probability >= threshold, 255, 0).astype(np.uint8))
    if job.overlay is not None:
        _write_png(job.overlay, cv2.cvtColor(draw_overlay(image, probability, threshold), cv2.COLOR_RGB2BGR))


def to_levels(probability: np.ndarray, bits: Bits) -> np.ndarray:
    """A map as the grey levels of a PNG: uint8 in 0 … 255, or uint16 in 0 … 65535."""
    return np.rint(probability * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def write_objects(out: Path, document: Mapping[str, Any]) -> Path:
    """Write objects.json into `out`. Raises OSError."""
    path = out / OBJECTS
    _write(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def _png(folder: Path, name: Path) -> Path:
    return folder / name.parent / f"{name.name}.png"


def _write_png(path: Path, pixels: np.ndarray) -> None:
    _write(path, cv2.imencode(".png", pixels)[1].tobytes())


def _write(path: Path, data: bytes) -> None:
    """Write beside its place, then rename: a kill leaves no half file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
