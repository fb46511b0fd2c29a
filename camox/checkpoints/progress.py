"""How far a long look at files is: a bar on a terminal, nothing anywhere else."""

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

    Only where stderr is a terminal. rich, which draws it, takes 0.04 s to import: only who waits pays that.
    """

    PATIENCE = 0.5
    """Seconds before it shows."""
    PERIOD = 0.1
    """Seconds between two changes: there are thousands of pieces in a second."""

    def __init__(self) -> None:
        self._is_wanted = sys.stderr.isatty()
        self._due = time.monotonic() + self.PATIENCE
        self._total = 0
        self._read = 0
        self._lock = threading.Lock()
        self._bar: RichProgress | None = None

    def expect(self, size: int) -> None:
        """There are `size` bytes more to read."""
        self._total += size

    def advance(self, size: int) -> None:
        """`size` bytes more have been read. May be called from several threads."""
        if not self._is_wanted:
            return
        with self._lock:
            self._read += size
            if time.monotonic() < self._due:
                return
            self._due = time.monotonic() + self.PERIOD
            self._bar = self._bar or _drawn_bar()
            # A file that grows meanwhile is no reason to show more than all.
            self._bar.update(self._bar.task_ids[0], total=self._total, completed=min(self._read, self._total))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _drawn_bar() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("reading")
    bar.start()
    return bar
