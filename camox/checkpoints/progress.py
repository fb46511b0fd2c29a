"""How far a long look at files is: a bar on a terminal, a line now and then in a log."""

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """Told how many bytes there are to read and have been read; this one keeps it for itself."""

    def expect(self, size: int) -> None:
        """There are `size` bytes more to read."""

    def advance(self, size: int) -> None:
        """`size` bytes more have been read. May be called from several threads."""


class ProgressBar(Progress):
    """Draws a bar on stderr once reading has taken half a second, and removes it at the end of its block.

    Where stderr is no terminal that can draw anew, it writes a line when a tenth more has been read, but not before
    half a minute. rich, which draws the bar, takes 0.04 s to import: only who waits pays that.
    """

    PATIENCE = 0.5
    """Seconds before it shows."""
    PERIOD = 0.1
    """Seconds between two changes: there are thousands of pieces in a second."""
    LOG_SECONDS = 30.0
    """Least time between two lines where there is no bar."""

    def __init__(self) -> None:
        self._is_drawn = _can_draw()
        self._started = time.monotonic()
        self._due = self._started + (self.PATIENCE if self._is_drawn else self.LOG_SECONDS)
        self._told = 0
        self._total = 0
        self._read = 0
        self._lock = threading.Lock()
        self._bar: RichProgress | None = None

    def expect(self, size: int) -> None:
        """There are `size` bytes more to read."""
        self._total += size

    def advance(self, size: int) -> None:
        """`size` bytes more have been read. May be called from several threads."""
        with self._lock:
            self._read += size
            if time.monotonic() < self._due:
                return
            # A file that grows meanwhile is no reason to show more than all.
            read = min(self._read, self._total)
            if not self._is_drawn:
                self._log(read)
                return
            self._due = time.monotonic() + self.PERIOD
            self._bar = self._bar or _drawn_bar()
            self._bar.update(self._bar.task_ids[0], total=self._total, completed=read, status=self._status(read))

    def _log(self, read: int) -> None:
        if (read - self._told) * 10 < self._total:
            return
        self._due, self._told = time.monotonic() + self.LOG_SECONDS, read
        sys.stderr.write(f"reading: {self._status(read)}\n")
        sys.stderr.flush()

    def _status(self, read: int) -> str:
        left = round((self._total - read) * (time.monotonic() - self._started) / max(read, 1))
        return f"{read / 1e9:.2f}/{self._total / 1e9:.2f} GB  ETA {left // 60}:{left % 60:02}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _drawn_bar() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    # Looks like the bars of tracking/progress.py, which is not for this package to import.
    column = BarColumn(bar_width=None, complete_style="cyan", finished_style="green")
    columns = (TextColumn("reading"), column, TextColumn("{task.fields[status]}"))
    bar = RichProgress(*columns, console=Console(stderr=True), transient=True, expand=True, refresh_per_second=4)
    bar.add_task("reading", status="")
    bar.start()
    return bar


def _can_draw() -> bool:
    """Whether standard error is a terminal that can move its cursor, with a person before it."""
    dumb, machine = os.environ.get("TERM", "").lower() in ("dumb", "unknown"), os.environ.get("CI", "").lower()
    return sys.stderr.isatty() and not dumb and machine in ("", "0", "false")
