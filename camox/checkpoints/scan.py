"""Looks for NaN and Inf, and for damage, in anything that holds weights; needs no torch, except for pickles.

Files are read in small pieces, so memory stays constant whatever their size.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from camox.checkpoints.folders import CHECKPOINTS, read_pointer
from camox.checkpoints.manifest import MANIFEST, POINTERS, Manifest, find_defect, read_manifest
from camox.checkpoints.progress import Progress
from camox.checkpoints.stored import StoredTensor, open_tensors
from camox.checkpoints.survey import Subject, missing_from_shards, survey
from camox.checkpoints.tally import Tally, is_countable
from camox.errors import CheckpointError

_SILENT = Progress()


@dataclass(frozen=True)
class TensorReport:
    """One tensor: how many of its `numbers` are NaN, infinite or 0, and the largest finite magnitude, if known.

    A complex number counts as two, and of a sparse tensor only what is stored. `zeros` is None where numbers share
    bytes (F4, F6): these are always finite and not read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    numbers: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int | None = None
    absmax: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor Inf."""
        return self.nan == 0 and self.inf == 0

    @property
    def zero_share(self) -> float | None:
        """Share of its numbers that are exactly 0; None where that is not known or there are none."""
        return self.zeros / self.numbers if self.zeros is not None and self.numbers else None


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
    """One checkpoint, or one file or folder of weights: its files and, a line each, what is damaged.

    `pointers` are those of its run that name it (`best`, `latest`).
    """

    path: Path
    files: tuple[FileReport, ...]
    defects: tuple[str, ...] = ()
    manifest: Manifest | None = None
    pointers: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its files of weights together."""
        return sum(file.size for file in self.files)

    @property
    def tensor_count(self) -> int:
        """Tensors in all of its files."""
        return sum(len(file.tensors) for file in self.files)

    @property
    def nan(self) -> int:
        """Numbers that are NaN."""
        return sum(tensor.nan for file in self.files for tensor in file.tensors)

    @property
    def inf(self) -> int:
        """Numbers that are infinite."""
        return sum(tensor.inf for file in self.files for tensor in file.tensors)

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


def scan_file(path: str | Path, progress: Progress = _SILENT) -> FileReport:
    """Count NaN, Inf and zeros in every tensor of one file: safetensors, or a pickle of torch (.pth, .pt, .bin).

    Raises CheckpointError where the file is missing, damaged, or a pickle that would run code.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such file")
    with open_tensors(path) as tensors:
        reports = tuple(_count(tensor, progress) for tensor in tensors)
    return FileReport(path, path.stat().st_size, reports)


def scan(path: str | Path, progress: Progress = _SILENT) -> Report:
    """Scan a file, an index of shards (`*.index.json`), a checkpoint, or every checkpoint of a run.

    Of camox checkpoints the files are also compared with the manifest. Any other folder is searched for
    weights, every folder below it too. Damage inside a folder is reported as defects of its subject;
    CheckpointError is raised where `path` itself is a file that cannot be read or a folder without any
    weights.
    """
    path = Path(path)
    found = survey(path)
    progress.expect(sum(map(_size, found.subjects)))
    if found.subjects[0].files == (path,):
        return Report(path, (SubjectReport(path, (scan_file(path, progress),)),))
    return Report(path, tuple(_scan_subject(subject, progress) for subject in found.subjects), found.notes)


def last_clean(run: str | Path, progress: Progress = _SILENT) -> Path | None:
    """The newest checkpoint of a run that is undamaged and all finite, None where there is none.

    Newest first, and no further than needed. In folders of other programs, the time of change tells the
    order.
    """
    for subject in reversed(survey(Path(run)).subjects):
        progress.expect(_size(subject))
        if _scan_subject(subject, progress).is_clean:
            return subject.path
    return None


def _size(subject: Subject) -> int:
    return sum(file.stat().st_size for file in subject.files if file.is_file())


def _scan_subject(subject: Subject, progress: Progress) -> SubjectReport:
    manifest = None
    defects: list[str] = []
    if (subject.path / MANIFEST).is_file():
        try:
            manifest = read_manifest(subject.path)
        except CheckpointError as error:
            defects.append(str(error))
    files = []
    # Hashing takes several times as long as scanning; both leave Python's lock, so they run side by side, and
    # progress is that of the slower.
    with ThreadPoolExecutor(max_workers=2) as pool:
        records = manifest.files.items() if manifest else ()
        differences = [
            pool.submit(find_defect, subject.path / name, record, progress.advance) for name, record in records
        ]
        for file in subject.files:
            try:
                files.append(scan_file(file, _SILENT if manifest else progress))
            except CheckpointError as error:
                defects.append(str(error))
        defects += [found for found in (difference.result() for difference in differences) if found]
    if subject.index is not None:
        defects += missing_from_shards(subject.index, {file.path.name: _names(file) for file in files})
    return SubjectReport(subject.path, tuple(files), tuple(defects), manifest, _pointers_to(subject.path))


def _pointers_to(path: Path) -> tuple[str, ...]:
    folder = path.resolve()
    if folder.parent.name != CHECKPOINTS:
        return ()
    return tuple(pointer for pointer in POINTERS if read_pointer(folder.parent.parent, pointer) == folder)


def _names(file: FileReport) -> set[str]:
    return {tensor.name for tensor in file.tensors}


def _count(tensor: StoredTensor, progress: Progress) -> TensorReport:
    if not is_countable(tensor.dtype):
        return TensorReport(tensor.name, tensor.dtype, tensor.shape)
    tally = Tally(tensor.dtype)
    for piece in tensor.pieces():
        tally.add(piece)
        progress.advance(len(piece))
    counts = (tally.numbers, tally.nan, tally.inf, tally.zeros, tally.absmax)
    return TensorReport(tensor.name, tensor.dtype, tensor.shape, *counts)
