"""What there is to scan under a path: one file, a checkpoint, a run, or a folder of some other program."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camox.checkpoints.folders import CHECKPOINTS, TEMPORARY_PREFIX, follow_pointer, run_of
from camox.checkpoints.manifest import MANIFEST, REPLACED_PREFIX, finished_in, is_checkpoint, read_text
from camox.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
LEGACY_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Subject:
    """Files that stand or fall together; `index` is the list of shards, if there is one."""

    path: Path
    files: tuple[Path, ...]
    index: Path | None = None


@dataclass(frozen=True)
class Survey:
    """The subjects under a path, oldest first, and a line for each thing passed over."""

    subjects: tuple[Subject, ...]
    notes: tuple[str, ...] = ()


def survey(path: Path) -> Survey:
    """Find what to scan; CheckpointError where `path` is missing, may not be read, or holds no weights."""
    try:
        return _survey(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _survey(path: Path) -> Survey:
    pointed = follow_pointer(path)
    if pointed is not None:
        return Survey((_subject_of_folder(pointed),))
    if path.is_file():
        return Survey((_subject_of_index(path) if path.name.endswith(INDEX_SUFFIX) else Subject(path, (path,)),))
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder. Give a run, a checkpoint or a file of weights.")
    if is_checkpoint(path):
        return Survey((_subject_of_folder(path),))
    found = _survey_run(run_of(path) / CHECKPOINTS)
    if not found.subjects:
        found = Survey(_survey_foreign(path), found.notes)
    if not found.subjects:
        notes = "".join(f" {note}." for note in found.notes)
        raise CheckpointError(
            f"{path}: holds no checkpoint and no weights (.safetensors, "
            f"{', '.join(LEGACY_SUFFIXES)}).{notes} Give a run, a checkpoint or a file of weights."
        )
    return found


def is_safetensors(path: Path) -> bool:
    """Whether to read a file as safetensors: by its ending, or, if that is unknown, as it is no pickle."""
    if path.suffix == ".safetensors":
        return True
    if path.suffix in LEGACY_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return start != b"PK" and not start.startswith(b"\x80")  # a zip of torch, a bare pickle


def missing_from_shards(index: Path, names_by_file: Mapping[str, set[str]]) -> list[str]:
    """Tensors that an index promises and its shards lack, one line per shard that could be read."""
    defects = []
    for shard, promised in sorted(_read_index(index).items()):
        missing = promised - names_by_file.get(shard, promised)
        if missing:
            defects.append(f"{shard} lacks {len(missing)} tensors of {index.name}, such as {min(missing)}")
    return defects


def _survey_run(folder: Path) -> Survey:
    """The checkpoints of a run, those with a damaged manifest too (first: nothing tells their age)."""
    finished = finished_in(folder)
    damaged, notes = [], []
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not child.is_dir() or child in finished or child.name.startswith((TEMPORARY_PREFIX, REPLACED_PREFIX)):
            continue
        if is_checkpoint(child):
            damaged.append(child)
        else:
            notes.append(f"{child} has no {MANIFEST}: saving it was never finished, so it is no checkpoint")
    return Survey(tuple(_subject_of_folder(child) for child in damaged + finished), tuple(notes))


def _survey_foreign(root: Path) -> tuple[Subject, ...]:
    """Weights of other programs: a folder with safetensors is one subject, a lone .pth is one by itself."""
    subjects = []
    for folder, children, names in os.walk(root):
        children[:] = [child for child in children if not child.startswith(".")]
        weights = sorted(Path(folder, name) for name in names if _holds_weights(Path(folder, name)))
        if any(path.suffix == ".safetensors" for path in weights):
            subjects.append(_subject_of_folder(Path(folder)))
        else:
            subjects += [Subject(path, (path,)) for path in weights]
    return tuple(sorted(subjects, key=_last_change))


def _last_change(subject: Subject) -> tuple[int, list[int]]:
    """Time of the newest file in ns; where equal, the numbers in its name decide."""
    changed = max(file.stat().st_mtime_ns for file in subject.files if file.is_file())
    return changed, [int(number) for number in re.findall(r"\d+", subject.path.name)]


def _subject_of_folder(folder: Path) -> Subject:
    files = tuple(sorted(path for path in folder.iterdir() if _holds_weights(path)))
    index = next(iter(sorted(folder.glob("*.safetensors" + INDEX_SUFFIX))), None)
    if index is None:
        return Subject(folder, files)
    shards = (folder / shard for shard in _read_index(index))
    return Subject(folder, tuple(sorted({*files, *shards})), index)


def _subject_of_index(index: Path) -> Subject:
    return Subject(index, tuple(index.parent / shard for shard in sorted(_read_index(index))), index)


def _holds_weights(path: Path) -> bool:
    return path.suffix in (".safetensors", *LEGACY_SUFFIXES) and path.is_file()


def _read_index(index: Path) -> dict[str, set[str]]:
    """Names of tensors by shard, from the `weight_map` of an index as the Hugging Face hub writes it."""
    try:
        weight_map: Any = json.loads(read_text(index))["weight_map"]
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            if Path(shard).name != shard:
                raise ValueError(f"{shard!r} is not a file beside it")
            shards.setdefault(shard, set()).add(name)
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors shards: {error!r}") from error
    if not shards:
        raise CheckpointError(f"{index}: names no shard")
    return shards
