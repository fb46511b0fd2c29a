"""Where a run's checkpoints lie: list, find, point at, thin out and tidy them. Needs no torch.

``RUN/checkpoints/epoch_0005/`` is a checkpoint; ``RUN/checkpoints/latest`` and ``best`` are small text files,
each holding the name of one. Hidden folders beside them are the remains of something that was interrupted.
"""

import math
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from camox.checkpoints.manifest import (
    POINTERS,
    REPLACED_PREFIX,
    finished_in,
    is_checkpoint,
    is_plain_name,
    read_manifest,
    read_text,
    replaced_name,
)
from camox.errors import CheckpointError

CHECKPOINTS = "checkpoints"
TEMPORARY_PREFIX = ".tmp-"

# Every other measure (s_measure, iou, …) is better the higher it is.
_LOWER_IS_BETTER = {"mae", "loss"}


def list_checkpoints(run: str | Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first (by epoch, then step); empty where there are none."""
    return finished_in(Path(run) / CHECKPOINTS)


def list_unreadable(run: str | Path) -> list[Path]:
    """What is named as training names checkpoints and is none: its manifest is missing or damaged.

    No interrupted save leaves such a folder: it happened afterwards.
    """
    folder = Path(run) / CHECKPOINTS
    known = list_checkpoints(run)
    return sorted(path for path in folder.glob("epoch_*") if path.is_dir() and path not in known)


def set_pointer(run: str | Path, pointer: str, name: str) -> None:
    """Let `latest` or `best` name a checkpoint. Atomic: a reader sees the old name or the new one."""
    assert pointer in POINTERS, pointer
    folder = Path(run) / CHECKPOINTS
    if not is_checkpoint(folder / name):
        raise CheckpointError(f"{folder / name}: {pointer} cannot name it, it is not a finished checkpoint")
    temporary = folder / f"{TEMPORARY_PREFIX}{pointer}-{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / pointer)
        sync_folder(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{folder / pointer}: cannot be written: {error.strerror}; it keeps its old value. Free space."
        ) from error


def read_pointer(run: str | Path, pointer: str) -> Path | None:
    """The checkpoint that `latest` or `best` names; None where the pointer or its checkpoint is gone."""
    return _named_in(Path(run) / CHECKPOINTS / pointer)


def follow_pointer(path: Path) -> Path | None:
    """The checkpoint that `path` names where it is itself the `latest` or `best` of a run; None where it is not.

    Raises:
        CheckpointError: it is, and its checkpoint is gone.
    """
    if path.name not in POINTERS or not os.path.isfile(path) or path.parent.resolve().name != CHECKPOINTS:
        return None
    found = _named_in(path)
    if found is None:
        raise CheckpointError(f"{path}: names no checkpoint that is there {_finished(path.parent)}")
    return found


def _named_in(pointer: Path) -> Path | None:
    folder = pointer.parent
    try:
        name = read_text(pointer).strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not is_plain_name(name):
        return None
    candidates = (folder / name, folder / f"{REPLACED_PREFIX}{name}")
    return next((candidate for candidate in candidates if is_checkpoint(candidate)), None)


def resolve(path: str | Path, prefer: Sequence[str] = POINTERS) -> Path:
    """The checkpoint folder that `path` means: itself, or the one its run prefers.

    `path` is a run folder, its `checkpoints` folder, a checkpoint folder, or the file `latest` or `best` of a run. Of a
    run, the first of the pointers in `prefer` that names a finished checkpoint decides. `latest` without such a file
    means the newest finished checkpoint, so that one saved just before a crash is found. Raises CheckpointError where
    nothing is found.
    """
    path = Path(path)
    if is_checkpoint(path):
        return path
    pointed = follow_pointer(path)
    if pointed is not None:
        return pointed
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such folder. Give a run's folder or one of its checkpoints.")
    run = run_of(path)
    for pointer in prefer:
        found = read_pointer(run, pointer)
        if found is None and pointer == "latest":
            found = next(reversed(list_checkpoints(run)), None)
        if found is not None:
            return found
    raise CheckpointError(f"{path}: no {' or '.join(prefer)} checkpoint here {_finished(run / CHECKPOINTS)}")


def _finished(folder: Path) -> str:
    names = ", ".join(checkpoint.name for checkpoint in finished_in(folder)) or "none"
    return f"(finished checkpoints: {names}). Give a run's folder or one of its checkpoints."


def run_of(path: Path) -> Path:
    """The run folder of `path`, where `path` is the run folder or its `checkpoints` folder."""
    inside = path.name == CHECKPOINTS or (path.resolve().name == CHECKPOINTS)
    return path.resolve().parent if inside and not (path / CHECKPOINTS).is_dir() else path


def is_better(candidate: float, best: float | None, monitor: str) -> bool:
    """Whether a score beats the best so far: higher for all measures but MAE and loss. NaN beats nothing."""
    if math.isnan(candidate):
        return False
    if best is None or math.isnan(best):
        return True
    return candidate < best if _lower_is_better(monitor) else candidate > best


def rank_checkpoints(run: str | Path, monitor: str) -> list[Path]:
    """Checkpoints with a score (NaN is none) in `measures[monitor]`, best first, then earliest first."""
    scored = []
    for folder in list_checkpoints(run):
        score = read_manifest(folder).measures.get(monitor, math.nan)
        if not math.isnan(score):
            scored.append((score if _lower_is_better(monitor) else -score, folder))
    return [folder for _, folder in sorted(scored, key=lambda item: item[0])]


def retain(
    run: str | Path,
    keep_last: int,
    keep_best: int,
    monitor: str,
    keep_every: int = 0,
    protected: Collection[str] = (),
) -> list[str]:
    """Delete checkpoints that are neither among the newest nor among the best; gives the names deleted.

    Call it after the new checkpoint is safe. Kept are the `keep_last` (>= 1) newest, the `keep_best` best by
    `measures[monitor]`, those after every `keep_every`-th epoch (0: none for that), those in `protected`, and those
    that `latest` and `best` name.
    """
    assert keep_last >= 1, keep_last
    assert keep_best >= 0, keep_best
    checkpoints = list_checkpoints(run)
    pointed = [folder for folder in (read_pointer(run, pointer) for pointer in POINTERS) if folder]
    regular = [folder for folder in checkpoints if keep_every and _ends_epoch(folder, keep_every)]
    kept = {*checkpoints[-keep_last:], *rank_checkpoints(run, monitor)[:keep_best], *pointed, *regular}
    doomed = [folder for folder in checkpoints if folder not in kept and folder.name not in protected]
    for folder in doomed:
        # Renamed first: killed half-way, a folder with some files gone must not look like a checkpoint.
        trash = folder.with_name(f"{TEMPORARY_PREFIX}deleted-{folder.name}")
        shutil.rmtree(trash, ignore_errors=True)
        try:
            folder.rename(trash)
        except OSError as error:
            raise CheckpointError(f"{folder}: old checkpoint cannot be deleted: {error.strerror}") from error
        shutil.rmtree(trash, ignore_errors=True)
    return [folder.name for folder in doomed]


def clean_leftovers(run: str | Path) -> list[str]:
    """Remove what an interrupted save left, put back what it was replacing; gives the names touched.

    Only for the process that owns the run: it would remove the half-written checkpoint of another one. Raises
    CheckpointError where the disk refuses.
    """
    folder = Path(run) / CHECKPOINTS
    if not folder.is_dir():
        return []
    try:
        return [child.name for child in sorted(folder.iterdir()) if _tidy(child)]
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: what an interrupted save left cannot be tidied: {error.strerror}. "
            "Check the folder's permissions and the disk."
        ) from error


def _tidy(child: Path) -> bool:
    """Whether something in the folder of checkpoints was left over; it no longer is."""
    if child.name.startswith(TEMPORARY_PREFIX):
        _remove(child)
        return True
    name = replaced_name(child)
    if name is None:  # no name that camox gives: not ours to remove
        return False
    successor = child.with_name(name)
    if is_checkpoint(child) and not is_checkpoint(successor):
        _remove(successor)
        child.rename(successor)
    else:
        _remove(child)
    return True


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # of a link only the link is ours
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _ends_epoch(folder: Path, every: int) -> bool:
    """Whether a checkpoint was saved at the end of an epoch whose number `every` divides."""
    epoch = read_manifest(folder).epoch
    return epoch % every == 0 and folder.name == f"epoch_{epoch:04d}"


def _lower_is_better(monitor: str) -> bool:
    return monitor.rsplit("/", 1)[-1] in _LOWER_IS_BETTER
