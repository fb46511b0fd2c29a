"""What a run's folder holds, read without changing anything in it.

A run may still be going, or its folder may be damaged: what cannot be read is left out, and `Run.notes` says so.
"""

import csv
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camox.checkpoints.folders import CHECKPOINTS, list_checkpoints, list_unreadable, read_pointer
from camox.checkpoints.manifest import POINTERS, Manifest, read_manifest, read_text
from camox.errors import CheckpointError, ExperimentError
from camox.experiment import Experiment
from camox.tracking.wording import counted

_MARKS = ("experiment.toml", "metrics.jsonl", "events.jsonl", "exit.json")
MOST_FILES = 60


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl."""

    time: float | None
    """Seconds since 1970."""
    step: int
    epochs_done: int
    kind: str
    severity: str
    message: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of metrics.jsonl: numbers by name, NaN where one was not finite."""

    step: int
    epoch: int
    """Counted from 0."""
    phase: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells of it. What is missing is empty or None."""

    path: Path
    experiment: Experiment | None
    experiment_text: str
    environment: Mapping[str, Any]
    rows: Sequence[Row]
    """By step."""
    events: Sequence[Event]
    exit: Mapping[str, Any]
    """exit.json: "code", "reason", "last_clean_checkpoint", "time"."""
    is_locked: bool
    """Whether a process holds the folder."""
    checkpoints: Mapping[Path, Manifest]
    """Oldest first."""
    best: Path | None
    """The checkpoint that `best` names."""
    evaluation: Mapping[str, Any]
    """measures.json of the run's own evaluation."""
    per_image: Sequence[Mapping[str, str]]
    """Rows of its per_image.csv."""
    files: Sequence[tuple[str, int]]
    """Names and sizes in bytes of what lies in the folder."""
    last_written: float | None
    """When the newest number came, in seconds since 1970."""
    notes: Sequence[str]
    """What could not be read, a sentence each."""

    @property
    def name(self) -> str:
        """The experiment's name, else the folder's."""
        return self.experiment.experiment.name if self.experiment else self.path.resolve().name

    @property
    def monitor(self) -> str:
        """The measure that checkpoints are selected by."""
        return self.experiment.checkpoints.monitor if self.experiment else "s_measure"

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        return max([0, *(row.step for row in self.rows[-1:]), *(event.step for event in self.events)])

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a logged name, empty where it was never logged."""
        found = [(row.step, row.values[name]) for row in self.rows if name in row.values]
        return [step for step, _ in found], [value for _, value in found]

    def validations(self) -> list[Row]:
        """The rows with the scores of held-out data."""
        return [row for row in self.rows if any(name.startswith("val/") for name in row.values)]


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        ExperimentError: it is none.
    """
    holds_any = any(os.path.lexists(path / name) for name in _MARKS) or (path / "checkpoints").is_dir()
    if not path.is_dir() or not holds_any:
        what = "holds no run (no experiment.toml, metrics.jsonl or events.jsonl)" if path.is_dir() else "no such folder"
        raise ExperimentError(f"{path}: {what}: give the folder that training wrote, such as runs/quickstart")
    notes: list[str] = []
    is_over = (path / "exit.json").exists()
    experiment_text = _text(path / "experiment.toml", notes)
    rows = sorted(_rows(_lines(path / "metrics.jsonl", notes, is_over)), key=lambda row: row.step)
    return Run(
        path=path,
        experiment=_experiment(path / "experiment.toml", notes) if experiment_text else None,
        experiment_text=experiment_text,
        environment=_table(path / "environment.json", notes),
        rows=rows,
        events=[_event(line) for line in _lines(path / "events.jsonl", notes, is_over)],
        exit=_table(path / "exit.json", notes, may_miss=True),
        # POSIX drops the locks of a process that closes any descriptor of the file, so the Trainer, whose run has
        # an end by now, must not open it.
        is_locked=not is_over and not _has_ended(path) and _is_held(path / ".lock"),
        checkpoints=_checkpoints(path, notes),
        best=read_pointer(path, "best"),
        evaluation=_table(path / "evaluation" / "measures.json", notes, may_miss=True),
        per_image=_per_image(path / "evaluation" / "per_image.csv", notes),
        files=list(_files(path)),
        last_written=_time_of(path / "metrics.jsonl"),
        notes=notes,
    )


def ended(events: Sequence[Event]) -> Event | None:
    """The event of the run's end, None where it goes on or was killed."""
    for event in reversed(events):
        if event.kind == "end":
            return event
        if event.kind in ("start", "resume"):
            break
    return None


def _has_ended(path: Path) -> bool:
    return ended([_event(line) for line in _lines(path / "events.jsonl", [])]) is not None


def _is_held(lock: Path) -> bool:
    try:
        file = lock.open("rb")
    except OSError:  # no such file, or another user's
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a system without locks
            return False
    return False


def _text(path: Path, notes: list[str], may_miss: bool = False) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        if not may_miss:
            notes.append(f"{path.name} is missing")
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
    return ""


def _table(path: Path, notes: list[str], may_miss: bool = False) -> Mapping[str, Any]:
    text = _text(path, notes, may_miss)
    if not text:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if isinstance(table, dict):
        return table
    notes.append(f"{path.name} is damaged and left out")
    return {}


def _lines(path: Path, notes: list[str], is_over: bool = False) -> list[Mapping[str, Any]]:
    """The objects of a file of lines. A last line without an end is being written, and no damage unless all is over."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
        return []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return []
    found: list[Mapping[str, Any]] = []
    damaged = 0
    for line in lines[:-1]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            damaged += 1
    if is_over and lines[-1].strip():
        notes.append(f"{path.name}: its last line is cut off")
    if damaged:
        notes.append(f"{path.name}: {damaged} of {len(lines) - 1} lines are damaged and left out")
    return found


def _rows(lines: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for line in lines:
        values = {name: float(value) for name, value in line.items() if name not in _KEYS and _is_number(value)}
        listed = line.get("non_finite")
        values |= {str(name): math.nan for name in listed} if isinstance(listed, list) else {}
        yield Row(_whole(line.get("step")), _whole(line.get("epoch")), str(line.get("phase", "")), values)


_KEYS = ("step", "epoch", "phase", "non_finite")


def _event(line: Mapping[str, Any]) -> Event:
    time: Any = line.get("time")
    details = line.get("details")
    return Event(
        time=float(time) if _is_number(time) else None,
        step=_whole(line.get("step")),
        epochs_done=_whole(line.get("epoch")),
        kind=str(line.get("kind", "")),
        severity=str(line.get("severity", "info")),
        message=str(line.get("message", "")),
        details=details if isinstance(details, dict) else {},
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # JSON knows integers that no float holds


def _whole(value: Any) -> int:
    return int(value) if _is_number(value) and value >= 0 else 0


def _experiment(path: Path, notes: list[str]) -> Experiment | None:
    try:
        return Experiment.load(path)
    except ExperimentError as error:
        notes.append(f"experiment.toml is not valid: {str(error).splitlines()[0]}")
        return None


def _checkpoints(path: Path, notes: list[str]) -> dict[Path, Manifest]:
    """Those that can be read; of their files only the sizes are looked at, for hashes would read gigabytes."""
    found = {}
    try:
        for checkpoint in list_checkpoints(path):
            found[checkpoint] = read_manifest(checkpoint)
            notes += [
                f"{CHECKPOINTS}/{checkpoint.name}: {defect}" for defect in _defects(checkpoint, found[checkpoint])
            ]
        notes += [f"{CHECKPOINTS}/{lost.name}/manifest.json: damaged or missing" for lost in list_unreadable(path)]
    except (CheckpointError, OSError) as error:
        notes.append(str(error))
    for pointer in POINTERS:
        if os.path.lexists(path / CHECKPOINTS / pointer) and read_pointer(path, pointer) is None:
            notes.append(f"{CHECKPOINTS}/{pointer}: names no checkpoint that is there")
    return found


def _defects(checkpoint: Path, manifest: Manifest) -> Iterator[str]:
    for name, record in manifest.files.items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError:
            yield f"{name} is missing"
        else:
            if size != record.size:
                yield f"{name} has {size} bytes instead of {record.size}"


def _per_image(path: Path, notes: list[str]) -> list[Mapping[str, str]]:
    text = _text(path, notes, may_miss=True)
    try:
        return [row for row in csv.DictReader(text.splitlines(), strict=True) if None not in row and row.get("name")]
    except csv.Error as error:
        notes.append(f"per_image.csv is damaged and left out: {error}")
        return []


def _files(path: Path) -> Iterator[tuple[str, int]]:
    try:
        children = sorted(path.iterdir())
    except OSError:
        return
    shown = [child for child in children if not child.name.startswith(".")]
    for child in shown[:MOST_FILES]:
        inside = child.rglob("*") if child.is_dir() else [child]
        yield child.name + ("/" if child.is_dir() else ""), sum(_size(file) for file in inside)
    if rest := shown[MOST_FILES:]:
        yield f"and {counted(len(rest), 'other')}", sum(_size(file) for file in rest)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size if file.is_file() else 0
    except OSError:  # gone meanwhile
        return 0


def _time_of(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
