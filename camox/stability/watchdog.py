"""Ends a run that stands still, so that it can be started again, and keeps what every process was doing."""

import faulthandler
import json
import multiprocessing
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from camox.stability.stacks import WorkerStacks, thread_stacks

STACKS_FILE = "stacks.txt"
MEETING_FOLDER = ".stall"
"""In the run's folder, from when a process finds that the run stands still until the run is opened again."""

_EXIT_CODE = 1
# After the limit: the other processes still wait for this one then.
_MARGIN = 3.0
_GRACE = 10.0


class Heartbeat(NamedTuple):
    """The last sign of life."""

    time: float
    """Of the watchdog's clock, in seconds."""
    activity: str
    """What began then."""


class Watchdog:
    """While its block runs, a thread looks for this process's heartbeats, and ends the process when none comes.

    Every process of a run has one. Where a process has not beaten for `limit` seconds it tells the others by a folder
    in the run's, which works across machines that share it and needs nothing of a process group that hangs. Each then
    appends the stacks of all its threads to `stacks.txt`; when all have, or some seconds later, the first of them
    tells what happened, and all leave with exit code 1.

    Should the interpreter itself hang, so that no Python runs, a timer outside of it writes the stacks and ends the
    process, without more words.

    Args:
        folder: the run's; it exists.
        limit: seconds without a heartbeat that are too many; 0 watches nothing.
        rank: of this process.
        ranks: processes of the run.
        where: gives the position of the run in words. Called from another thread.
        on_stall: is told, in one process, the message and the details of what happened. Called from another thread.
        grace: seconds to wait for the other processes' stacks.
        clock: gives seconds.
        abort: ends the process with an exit code.
    """

    def __init__(
        self,
        folder: Path,
        limit: float,
        rank: int = 0,
        ranks: int = 1,
        where: Callable[[], str] = lambda: "",
        on_stall: Callable[[str, Mapping[str, Any]], None] = lambda message, details: None,
        grace: float = _GRACE,
        clock: Callable[[], float] = time.monotonic,
        # Not sys.exit: that ends a thread. Nor destroy_process_group first: it waits for operations that hang.
        abort: Callable[[int], object] = os._exit,
    ):
        self.stacks = folder / STACKS_FILE
        self.limit = limit
        self.rank = rank
        self.ranks = ranks
        self._meeting = folder / MEETING_FOLDER
        self._where = where
        self._on_stall = on_stall
        self._grace = grace
        self._clock = clock
        self._abort = abort
        self._last = Heartbeat(clock(), "starting")
        self._workers = WorkerStacks()
        self._file: IO[str] | None = None
        self._stopped = threading.Event()
        self._arming = threading.Lock()

    def __enter__(self) -> "Watchdog":
        if self.limit:
            self.beat("starting")
            self._stopped.clear()
            self._file = self.stacks.open("a", encoding="utf-8")  # now: the timer cannot open it
            self._workers.open()
            self._arm(self.limit + _MARGIN)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        with self._arming:
            self._stopped.set()
            faulthandler.cancel_dump_traceback_later()
        self._workers.close()
        self._file.close()
        self._file = None
        if self.rank == 0 and self.stacks.exists() and not self.stacks.stat().st_size:
            self.stacks.unlink()

    def beat(self, activity: str) -> None:
        """Says that this process is alive and begins `activity`. Costs a microsecond: no lock, no file."""
        self._last = Heartbeat(self._clock(), activity)

    def look(self) -> str | None:
        """Why the run has to end: this process stands still, or another one says that it does. None if all is well."""
        quiet = self._clock() - self._last.time
        if quiet >= self.limit:
            return f"no heartbeat for {quiet:.0f} s"
        if self._meeting.exists():
            return f"another process stands still; last heartbeat here {quiet:.0f} s ago"
        return None

    def _watch(self) -> None:
        interval = min(1.0, self.limit / 4)
        while not self._stopped.wait(interval):
            self._arm(self.limit + _MARGIN)
            reason = self.look()
            if reason is not None and not self._stopped.is_set():
                # Whatever hangs in what follows, a disk or a full pipe: the process ends.
                self._arm(3 * self._grace + _MARGIN)
                self._end(reason)
                return

    def _arm(self, seconds: float) -> None:
        """Sets the timer that fires unless it is set again; it needs no interpreter."""
        with self._arming:
            if not self._stopped.is_set() and self._file is not None:
                faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def _end(self, reason: str) -> None:
        quiet, activity = self._clock() - self._last.time, self._last.activity
        position = " ".join([activity, *([f"({where})"] if (where := self._where()) else [])])
        with suppress(OSError):  # a full disk must not keep the run standing
            self._meeting.mkdir(exist_ok=True)  # before the stacks: a process that waits for its disk asks all the same
        with suppress(OSError):
            self._append_stacks(f"{reason}; last: {position}")
        with suppress(OSError):
            self._leave_note(str(self.rank), json.dumps({"seconds": round(quiet, 1), "doing": position}))
        self._wait(lambda: len(self._notes()) == self.ranks)
        notes = self._notes()
        if self.rank == min(notes, default=self.rank):
            self._tell({self.rank: {"seconds": round(quiet, 1), "doing": position}} | notes)
            with suppress(OSError):
                self._leave_note("told", "")
        else:
            # A launcher kills all as soon as one has left.
            self._wait((self._meeting / "told").exists)
        for worker in multiprocessing.active_children():
            worker.kill()  # one that hangs would outlive this process, and hold its memory and its pipes
        self._abort(_EXIT_CODE)

    def _append_stacks(self, reason: str) -> None:
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        process = f"process {self.rank} of {self.ranks} ({socket.gethostname()}, pid {os.getpid()})"
        section = "\n".join([f"==== {when} {process}: {reason}", thread_stacks(), self._workers.ask(), ""])
        # In one write to the file's end: sections of several processes do not mix.
        file = os.open(self.stacks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, section.encode())
        finally:
            os.close(file)

    def _tell(self, notes: Mapping[int, Mapping[str, Any]]) -> None:
        longest = max(note["seconds"] for note in notes.values())
        alike = defaultdict(list)
        for rank, note in sorted(notes.items()):
            alike[note["doing"]].append(rank)
        for rank in set(range(self.ranks)) - set(notes):
            alike["does not answer"].append(rank)
        # First who does what no other does: mostly the one that all wait for.
        groups = sorted(alike.items(), key=lambda group: len(group[1]))
        doing = "; ".join(f"process {', '.join(map(str, ranks))}: {what}" for what, ranks in groups)
        message = (
            f"stalled: no step for {longest:.0f} s ({doing}): {self.stacks} has the stacks of all threads; go on from "
            "the last checkpoint with --resume auto, or raise stability.stall_seconds if the pause was no fault"
        )
        os.write(2, f"error: {message}\n".encode())  # not by way of an object whose lock may be taken
        try:
            self._on_stall(message, {"seconds": longest, "limit": self.limit, "processes": dict(notes)})
        except Exception as error:  # noqa: BLE001  the process has to end in any case
            os.write(2, f"error: the stall could not be noted in the run's folder: {error}\n".encode())

    def _leave_note(self, name: str, text: str) -> None:
        temporary = self._meeting / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._meeting / name)

    def _notes(self) -> dict[int, dict[str, Any]]:
        """What each process has said so far, by its rank."""
        with suppress(OSError):
            return {int(path.name): json.loads(path.read_text()) for path in self._meeting.glob("[0-9]*")}
        return {}

    def _wait(self, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + self._grace
        while not ready() and time.monotonic() < until:
            time.sleep(0.1)
