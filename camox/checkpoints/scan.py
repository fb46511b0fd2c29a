"""Looks for NaN and Inf, and for damage, in anything that holds weights; needs no torch, except for pickles.

Files are read in pieces of 1 MiB, so memory stays constant whatever their size. Tensors of integers and
booleans are always finite and are not read.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camox.checkpoints.header import TensorEntry, read_header
from camox.checkpoints.manifest import MANIFEST, Manifest, find_defect, read_manifest
from camox.checkpoints.nonfinite import NonFiniteCount, can_hold_nan
from camox.checkpoints.survey import Subject, is_safetensors, missing_from_shards, survey
from camox.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 1 << 20  # fits the second-level cache: the second look at a chunk does not go to memory again


@dataclass(frozen=True)
class TensorReport:
    """One tensor: how many of its numbers are NaN or infinite, and the largest finite magnitude, if known."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nan: int
    inf: int
    absmax: float | None

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor Inf."""
        return self.nan == 0 and self.inf == 0


@dataclass(frozen=True)
class FileReport:
    """The tensors of one file; `size` in bytes."""

    path: Path
    size: int
    tensors: tuple[TensorReport, ...]

    @property
    def bad(self) -> tuple[TensorReport, ...]:
        """The tensors that hold NaN or Inf."""
        return tuple(tensor for tensor in self.tensors if not tensor.is_finite)


@dataclass(frozen=True)
class SubjectReport:
    """One checkpoint, or one file or folder of weights: its files and, a line each, what is damaged."""

    path: Path
    files: tuple[FileReport, ...]
    defects: tuple[str, ...] = ()
    manifest: Manifest | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no tensor that could be read holds NaN or Inf."""
        return not any(file.bad for file in self.files)

    @property
    def is_clean(self) -> bool:
        """Whether it is finite and undamaged."""
        return self.is_finite and not self.defects


@dataclass(frozen=True)
class Report:
    """What was found under `path`, oldest first; `notes` name what was passed over, as unfinished saves."""

    path: Path
    subjects: tuple[SubjectReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all finite; 1 NaN or Inf found; 2 none found, but something is damaged and cannot be trusted."""
        if not all(subject.is_finite for subject in self.subjects):
            return 1
        return 2 if any(subject.defects for subject in self.subjects) else 0


def scan_file(path: str | Path) -> FileReport:
    """Count NaN and Inf in every tensor of one file: safetensors, or a pickle of torch (.pth, .pt, .bin).

    Raises CheckpointError where the file is missing, damaged, or a pickle that would run code.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such file")
    tensors = tuple(_scan_safetensors(path) if is_safetensors(path) else _scan_legacy(path))
    return FileReport(path, path.stat().st_size, tensors)


def scan(path: str | Path) -> Report:
    """Scan a file, an index of shards (`*.index.json`), a checkpoint, or every checkpoint of a run.

    Of camox checkpoints the files are also compared with the manifest. Any other folder is searched for
    weights, every folder below it too. Damage inside a folder is reported as defects of its subject;
    CheckpointError is raised where `path` itself is a file that cannot be read or a folder without any
    weights.
    """
    path = Path(path)
    found = survey(path)
    if found.subjects[0].files == (path,):
        return Report(path, (SubjectReport(path, (scan_file(path),)),))
    return Report(path, tuple(_scan_subject(subject) for subject in found.subjects), found.notes)


def last_clean(run: str | Path) -> Path | None:
    """The newest checkpoint of a run that is undamaged and all finite, None where there is none.

    Newest first, and no further than needed. In folders of other programs, the time of change tells the
    order.
    """
    for subject in reversed(survey(Path(run)).subjects):
        if _scan_subject(subject).is_clean:
            return subject.path
    return None


def _scan_subject(subject: Subject) -> SubjectReport:
    manifest = None
    defects: list[str] = []
    if (subject.path / MANIFEST).is_file():
        try:
            manifest = read_manifest(subject.path)
        except CheckpointError as error:
            defects.append(str(error))
    files = []
    # Hashing takes ten times as long as scanning; both leave Python's lock, so they run side by side.
    with ThreadPoolExecutor(max_workers=2) as pool:
        records = manifest.files.items() if manifest else ()
        differences = [pool.submit(find_defect, subject.path / name, record) for name, record in records]
        for file in subject.files:
            try:
                files.append(scan_file(file))
            except CheckpointError as error:
                defects.append(str(error))
        defects += [found for found in (difference.result() for difference in differences) if found]
    if subject.index is not None:
        defects += missing_from_shards(subject.index, {file.path.name: _names(file) for file in files})
    return SubjectReport(subject.path, tuple(files), tuple(defects), manifest)


def _names(file: FileReport) -> set[str]:
    return {tensor.name for tensor in file.tensors}


def _scan_safetensors(path: Path) -> Iterator[TensorReport]:
    buffer = np.empty(CHUNK_BYTES, dtype=np.uint8)
    entries = read_header(path)
    try:
        # Plain reads, no memory map: as fast, and a file cut short meanwhile is an error, not a bus fault.
        with path.open("rb", buffering=0) as file:
            for entry in entries:
                count = NonFiniteCount(entry.dtype)
                if can_hold_nan(entry.dtype):
                    file.seek(entry.start)
                    for chunk in _chunks(file, entry, buffer, path):
                        count.add(chunk)
                yield TensorReport(entry.name, entry.dtype, entry.shape, count.nan, count.inf, count.absmax)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _chunks(file: Any, entry: TensorEntry, buffer: Any, path: Path) -> Iterator[NDArray[np.uint8]]:
    left = entry.size
    while left:
        wanted = min(left, len(buffer))
        filled = 0
        while filled < wanted:
            received = file.readinto(memoryview(buffer)[filled:wanted])
            if not received:
                raise CheckpointError(f"{path}: became shorter while it was read. Is it being written? Try again.")
            filled += received
        yield buffer[:wanted]
        left -= wanted


def _scan_legacy(path: Path) -> Iterator[TensorReport]:
    from camox.checkpoints.legacy import bytes_of, read_legacy  # torch takes 2 s to import

    for name, tensor in read_legacy(path).items():
        if tensor.is_nested:
            raise CheckpointError(
                f"{path}: tensor {name!r} is a nested one, which no weights are: save it as plain ones"
            )
        dtype = _dtype_name(tensor)
        count = NonFiniteCount(dtype)
        if can_hold_nan(dtype):
            try:
                raw = bytes_of(tensor)
            except (RuntimeError, TypeError, ValueError) as error:  # a kind of tensor without numbers, or too large
                raise CheckpointError(f"{path}: tensor {name!r} cannot be read: {error}") from error
            for start in range(0, raw.size, CHUNK_BYTES):
                count.add(raw[start : start + CHUNK_BYTES])
        yield TensorReport(name, dtype, tuple(tensor.shape), count.nan, count.inf, count.absmax)


_TORCH_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


def _dtype_name(tensor: "torch.Tensor") -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return _TORCH_NAMES.get(name, name)
