"""A run's folder: opened by one run at a time, never overwritten, with its end written into it."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from camox.checkpoints.manifest import read_manifest
from camox.checkpoints.store import (
    clean_leftovers,
    find_trouble,
    list_checkpoints,
    list_unreadable,
    resolve,
    set_pointer,
)
from camox.errors import CamoxError, CheckpointError, ExperimentError
from camox.experiment import Experiment
from camox.experiment.experiment import differences
from camox.stability.recovery import Recovery
from camox.stability.watchdog import MEETING_FOLDER
from camox.training.environment import describe_environment

EXPERIMENT_FILE = "experiment.toml"
RECOVERY_FILE = "recovery.json"
# What may differ when a run is resumed: nothing that training computes depends on it.
_FREE = {
    "experiment.name",
    "experiment.output",
    "experiment.notes",
    "experiment.tags",
    "data.workers",
    "checkpoints.every_epochs",
    "checkpoints.keep_last",
    "checkpoints.keep_best",
    "checkpoints.keep_every",
    "checkpoints.asynchronous",
    "experiment.max_hours",
    "stability.stall_seconds",
}
_FREE_TABLE = "tracking"
_PARTIAL = ".partial"


class RunFolder:
    """The folder `output/name` of one run, locked while it runs (the lock ends with the process, however it ends).

    `damaged` says of each checkpoint that was passed over on opening what is wrong with it and where it is now.

    Raises:
        ExperimentError: it is in use, holds another run, or there is nothing to resume.
        CheckpointError: the checkpoint to resume from cannot be found, or all that there are are damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.damaged: list[str] = []
        self._lock: IO[str] | None = None

    def open(self, experiment: Experiment, resume: str | None) -> Path | None:
        """Locks the folder and writes experiment and environment into it.

        Args:
            experiment: what is to be run.
            resume: None for a new run; "auto" (go on where there is a checkpoint, else start), "latest", or the path
                of a checkpoint. "auto" takes the newest that is intact and finite, and sets aside those that are not.

        Returns:
            The checkpoint to go on from, or None for a start from scratch.
        """
        # Not `Path.exists`, which raises for a name that is too long to exist.
        if resume == "latest" and not os.path.exists(self.path):
            raise ExperimentError(f"--resume latest: there is no run at {self.path}; start it without --resume")
        self._acquire()
        try:
            return self._prepare(experiment, resume)
        except CamoxError:
            self._release()
            raise

    def holds_run(self) -> bool:
        """Whether there is anything to lose: a start that failed before its first number may simply be repeated."""
        metrics = self.path / "metrics.jsonl"
        return bool(list_checkpoints(self.path)) or (metrics.exists() and metrics.stat().st_size > 0)

    def last_sound(self, step: int, or_first: bool = False) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is intact, finite and from step `step` or before, None where there is none; and
        what is wrong with each that was passed over.

        Args:
            or_first: whether to take the oldest of all that are intact and finite instead of none.
        """
        ours = list_checkpoints(self.path)
        before = [checkpoint for checkpoint in ours if read_manifest(checkpoint).step <= step]
        passed_over: list[str] = []
        for checkpoint in [*reversed(before), *(ours[len(before) :] if or_first else ())]:
            if (trouble := find_trouble(checkpoint)) is None:
                return checkpoint, passed_over
            passed_over.append(f"{checkpoint} is damaged: {trouble}. It is passed over")
        return None, passed_over

    def note_recovery(self, books: Mapping[str, Any]) -> None:
        """Keeps what recovery has done: a kill before the next checkpoint must not make it forget."""
        _write_json(self.path / RECOVERY_FILE, books)

    def noted_recovery(self) -> dict[str, Any] | None:
        """What `note_recovery` kept, None where it kept nothing.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.path / RECOVERY_FILE
        try:
            books = json.loads(path.read_text(encoding="utf-8"))
            Recovery(0, 1.0, 0, ()).load_state_dict(books)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error!r}. Remove it to go on without it.") from error
        return dict(books)

    def set_aside_after(self, checkpoint: Path | None) -> None:
        """Moves the checkpoints that came after one of this run (None: all) to `abandoned/`, whole."""
        ours = list_checkpoints(self.path)
        for newer in ours if checkpoint is None else ours[ours.index(checkpoint) + 1 :]:
            self._set_aside(newer)

    def _set_aside(self, checkpoint: Path) -> Path:
        aside = self.path / "abandoned" / f"{checkpoint.name}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        return checkpoint.rename(aside)

    def go_on_from(self, checkpoint: Path, best: str | None) -> None:
        """Makes `checkpoint` the newest of the run: what came after it is set aside, the pointers follow.

        Where the checkpoint lies in another folder nothing changes.

        Args:
            checkpoint: what training was restored from.
            best: name of the best checkpoint as of then, if there was one.
        """
        if checkpoint not in list_checkpoints(self.path):
            return
        self.set_aside_after(checkpoint)
        set_pointer(self.path, "latest", checkpoint.name)
        kept = {path.name for path in list_checkpoints(self.path)}
        set_pointer(self.path, "best", best if best in kept else checkpoint.name)

    def close(self, code: int, reason: str) -> None:
        """Writes `exit.json` and gives the folder free; the reason another process already gave stays."""
        try:
            if code != 1 or not (self.path / "exit.json").exists():
                self._write_end(code, reason)
        finally:
            self._release()

    def _write_end(self, code: int, reason: str) -> None:
        last = list_checkpoints(self.path)
        _write_json(
            self.path / "exit.json",
            {
                "code": code,
                "reason": reason,
                "last_clean_checkpoint": str(last[-1]) if last else None,
                "time": round(time.time(), 3),
            },
        )

    def _prepare(self, experiment: Experiment, resume: str | None) -> Path | None:
        before = self.path / EXPERIMENT_FILE
        holds_run = self.holds_run()
        if holds_run and resume is None:
            raise ExperimentError(
                f"{self.path} already holds a run: go on with it by --resume auto, "
                "or choose another place with --output or experiment.name"
            )
        clean_leftovers(self.path)
        checkpoint, troubles = self._find(resume)
        if holds_run:
            _refuse_other_run(before, experiment)
        if checkpoint is not None and (origin := checkpoint.parents[1] / EXPERIMENT_FILE) != before and origin.exists():
            _refuse_other_run(origin, experiment)
        try:
            for left in self.path.glob(f".*{_PARTIAL}"):  # of a run that was killed while it wrote one
                left.unlink()
            _write(before, experiment.to_toml())
            _write_json(self.path / "environment.json", describe_environment(experiment.experiment.seed))
            (self.path / "exit.json").unlink(missing_ok=True)
            shutil.rmtree(self.path / MEETING_FOLDER, ignore_errors=True)
            self.damaged = [
                f"{path} is damaged: {trouble}. It is set aside as {self._set_aside(path)}; the run goes on from "
                f"{checkpoint}"
                for path, trouble in troubles.items()
            ]
        except OSError as error:
            raise ExperimentError(
                f"{error.filename2 or error.filename}: cannot be written ({error.strerror}): remove what stands there, "
                "or choose another place with --output"
            ) from error
        return checkpoint

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # For reading too, or a pipe that somebody left there would be waited for.
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            self._lock = os.fdopen(lock, "w")
        except OSError as error:
            raise ExperimentError(
                f"the run's folder {self.path} cannot be written ({error.strerror}): choose another place with --output"
            ) from error
        try:
            # Not flock: data workers would inherit it and hold it on for seconds after the run was killed.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # which of the two depends on the system
            self._release()
            raise ExperimentError(
                f"{self.path} is in use by a run that is still going: wait for it, or choose another "
                "place with --output or experiment.name"
            ) from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _find(self, resume: str | None) -> tuple[Path | None, dict[Path, str]]:
        """The checkpoint to go on from, and what is wrong with those that it is taken instead of."""
        if resume is None:
            return None, {}
        if resume not in ("auto", "latest"):
            given = resolve(resume, prefer=("latest",)).resolve()
            # Named as the list of this run's checkpoints names it, where it is one of them.
            return next((path for path in list_checkpoints(self.path) if path.resolve() == given), given), {}
        found, troubles = self._newest_sound()
        if troubles and (found is None or resume == "latest"):
            what = "; ".join(f"{path.name}: {trouble}" for path, trouble in troubles.items())
            remedy = (
                "none is intact: restore one from a copy, or start again with another experiment.name"
                if found is None
                else f"--resume auto sets aside what is damaged and goes on from {found}"
            )
            raise CheckpointError(f"--resume {resume}: damaged checkpoints in {self.path}: {what}; {remedy}")
        if found is None and resume == "latest":
            raise ExperimentError(
                f"--resume latest: {self.path} has no finished checkpoint; --resume auto starts it anew"
            )
        return found, troubles

    def _newest_sound(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest checkpoint that is intact and finite, and what is wrong with those that would come before it."""
        troubles = {path: find_trouble(path) or "" for path in list_unreadable(self.path)}
        # Not the pointer: a kill between a checkpoint's rename and the pointer's would lose an epoch.
        for checkpoint in reversed(list_checkpoints(self.path)):
            if (trouble := find_trouble(checkpoint)) is None:
                return checkpoint, troubles
            troubles[checkpoint] = trouble
        return None, troubles


def _refuse_other_run(before: Path, experiment: Experiment) -> None:
    """A resume with other settings would be another run under the same name."""
    earlier = Experiment.load(before).plain()
    now = experiment.plain()
    changed = [key for key in differences(earlier, now) if key not in _FREE and key.partition(".")[0] != _FREE_TABLE]
    if changed:
        raise ExperimentError(
            f"{before.parent} was started with other settings of {', '.join(changed)}: resume with the same ones "
            f"(they are in {before}), or start a new run with another experiment.name"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    # Processes that fail together write exit.json together.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # renamed away if all went well
