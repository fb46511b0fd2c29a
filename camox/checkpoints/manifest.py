"""What makes a folder a checkpoint: `manifest.json`, written last, with the sha256 of every other file."""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camox.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# Files beside the checkpoints of a run, each with the name of one.
POINTERS = ("best", "latest")
# While a checkpoint is saved again under its name, the old one stands aside under this prefix.
REPLACED_PREFIX = ".replaced-"

Advance = Callable[[int], None]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: `size` in bytes and `sha256` as 64 hexadecimal digits."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds and how good it is.

    `experiment` is the experiment's fingerprint. `measures` maps a name to its score; a score that is NaN or
    infinite is stored as null and read back as NaN. `finite` says that every tensor was finite when written.
    """

    experiment: str
    step: int
    epoch: int
    files: Mapping[str, FileRecord]
    measures: Mapping[str, float]
    finite: bool = True
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        table = {
            "format_version": self.format_version,
            "experiment": self.experiment,
            "step": self.step,
            "epoch": self.epoch,
            "finite": self.finite,
            "measures": {name: _finite_or_none(value) for name, value in self.measures.items()},
            "files": {name: {"sha256": file.sha256, "size": file.size} for name, file in self.files.items()},
        }
        return json.dumps(table, indent=2, allow_nan=False) + "\n"


def is_plain_name(name: str) -> bool:
    """Whether `name` may name a file or folder of a checkpoint: letters, digits, `._-`, not hidden."""
    return _PLAIN_NAME.fullmatch(name) is not None


def is_checkpoint(folder: Path) -> bool:
    """Whether saving `folder` was finished: only then does its manifest exist."""
    return os.path.isfile(folder / MANIFEST)  # unlike Path.is_file, no error where the system refuses the name


def require_regular(path: Path) -> None:
    """Raise OSError for what is no file: opening a pipe would wait for ever, and a device has no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_text(path: Path) -> str:
    """The text of a file; OSError, or UnicodeDecodeError where it is not UTF-8."""
    require_regular(path)
    return path.read_text(encoding="utf-8")


def refuse_constant(name: str) -> float:
    """What the JSON parser calls for NaN and Infinity, which no checkpoint's tables hold."""
    raise ValueError(f"{name} is no number of JSON")


def _ignore(size: int) -> None:
    """Nobody wants to know how far reading is."""


def record_file(path: Path, advance: Advance = _ignore) -> FileRecord:
    """Size and sha256 of a file, read in pieces (0.6 s per GB if the processor has SHA instructions).

    `advance` is told of the bytes of each piece.
    """
    require_regular(path)
    digest = hashlib.sha256()
    piece = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            advance(count)
        return FileRecord(digest.hexdigest(), file.tell())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder; CheckpointError where it is missing or damaged."""
    path = folder / MANIFEST
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: not a finished checkpoint: it has no {MANIFEST}, which is written last. "
            "Take another checkpoint of the run, or delete this folder."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    try:
        return _parse(json.loads(text, parse_constant=refuse_constant))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}. Take another checkpoint of the run.") from error


def find_defects(folder: Path, manifest: Manifest) -> list[str]:
    """What differs between the files and the manifest, one line each; empty where the checkpoint is intact.

    Reads every file to its end, see `record_file` for the cost.
    """
    defects = (find_defect(folder / name, record) for name, record in manifest.files.items())
    return [defect for defect in defects if defect]


def find_defect(path: Path, record: FileRecord, advance: Advance = _ignore) -> str | None:
    """What is wrong with one file of a checkpoint, None where it is what the manifest says. See `record_file`."""
    try:
        size = path.stat().st_size
        if size != record.size:
            return f"{path.name} has {size} bytes instead of {record.size}"
        if record_file(path, advance).sha256 != record.sha256:
            return f"{path.name} has another sha256 than when it was written: it was changed or damaged"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None


def verify(folder: Path) -> Manifest:
    """Check that every file of a checkpoint is there and has the size and sha256 of the manifest.

    Raises CheckpointError that names each bad file, its defect, and the newest intact checkpoint beside it.
    """
    try:
        manifest = read_manifest(folder)
        defects = find_defects(folder, manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {remedy(folder)}") from error
    if defects:
        raise CheckpointError(f"{folder}: damaged checkpoint: {'; '.join(defects)}. {remedy(folder)}")
    return manifest


def remedy(folder: Path) -> str:
    """One sentence on what to use instead of a checkpoint that is no good."""
    for other in reversed(finished_in(folder.parent)):
        if other.name != folder.name and not find_defects(other, read_manifest(other)):
            return f"The newest intact checkpoint beside it is {other}."
    return "There is no other intact checkpoint beside it: start again, or restore it from a copy."


def finished_in(folder: Path) -> list[Path]:
    """The finished checkpoints directly in `folder`, oldest first (by epoch, step, name).

    A checkpoint whose manifest cannot be read is left out. One that stood aside while it was being saved
    again counts only where its successor never arrived.
    """
    if not folder.is_dir():
        return []
    found = []
    for child in folder.iterdir():
        if not _counts(child):
            continue
        try:
            manifest = read_manifest(child)
        except CheckpointError:
            continue  # `scan` reports it; here it simply is no checkpoint
        found.append((manifest.epoch, manifest.step, child.name, child))
    return [child for *_, child in sorted(found)]


def _counts(folder: Path) -> bool:
    if not is_checkpoint(folder):
        return False
    successor = replaced_name(folder)
    if successor is not None:
        return not is_checkpoint(folder.with_name(successor))
    return _may_be_checkpoint(folder.name)


def replaced_name(folder: Path) -> str | None:
    """The name of the checkpoint that `folder` stands aside for; None where its name does not tell one."""
    name = folder.name.removeprefix(REPLACED_PREFIX)
    return name if name != folder.name and _may_be_checkpoint(name) else None


def _may_be_checkpoint(name: str) -> bool:
    return is_plain_name(name) and name not in POINTERS


def _parse(table: Any) -> Manifest:
    version = table["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r}, this camox reads up to {FORMAT_VERSION}: update camox")
    files = {name: _parse_file(name, fields) for name, fields in table["files"].items()}
    measures = {name: _parse_score(name, value) for name, value in table["measures"].items()}
    if type(table["step"]) is not int or type(table["epoch"]) is not int or type(table["finite"]) is not bool:
        raise ValueError("step and epoch must be integers, finite must be true or false")
    if type(table["experiment"]) is not str:
        raise ValueError("experiment must be a string")
    return Manifest(table["experiment"], table["step"], table["epoch"], files, measures, table["finite"], version)


def _parse_score(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    score = float(value)
    if isinstance(value, str) or not math.isfinite(score):
        raise ValueError(f"the measure {name!r} is {value!r}, which is no score")
    return score


def _parse_file(name: str, fields: Any) -> FileRecord:
    if not is_plain_name(name):
        raise ValueError(f"{name!r} is not the name of a file of a checkpoint")
    record = FileRecord(fields["sha256"], fields["size"])
    if type(record.size) is not int or type(record.sha256) is not str or len(record.sha256) != 64:
        raise ValueError(f"size or sha256 of {name!r} is not one")
    return record


def _finite_or_none(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
