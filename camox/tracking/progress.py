"""How far long work is: live lines on a terminal, a plain line now and then in a log."""

import threading
import time
from collections.abc import Mapping, Sequence

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from camox.tracking.wording import duration, rate

_NAME_WIDTH = 14
_LEAST_BAR = 8
_LOG_SECONDS = 30.0
"""Least time between two lines of a log on one piece of work, which then also is a tenth further."""


def live_lines(out: RichConsole) -> Progress:
    """Lines at the bottom of a terminal, one for each thing that goes on, gone when they end."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),  # not rich's red: nothing is wrong
        TextColumn("{task.fields[status]}", markup=False),
        console=out,
        transient=True,
        expand=True,
        refresh_per_second=4,
    )


class Line:
    """One of the live lines: a name, a bar, and as much of what is known as fits beside them."""

    def __init__(self, lines: Progress, name: str, total: int | None):
        self._lines = lines
        self._name = name
        self._task: TaskID = lines.add_task(name, total=total, status="")

    def restart(self, name: str, total: int, completed: int) -> None:
        """Begin anew under another name."""
        self._name = name
        self._lines.reset(self._task, total=total, completed=completed, description=name)

    def advance(self, number: int) -> None:
        """So many more are done."""
        self._lines.advance(self._task, number)

    def say(self, parts: Sequence[str]) -> None:
        """Show what is known, most wanted first: on a narrow terminal the last are left out."""
        width = self._lines.console.width
        longest = max(len(task.description) for task in self._lines.tasks)
        shown: list[str] = []
        for part in parts:
            if len("  ".join([*shown, part])) <= width - longest - _LEAST_BAR - 4:
                shown.append(part)
        self._lines.update(self._task, status="  ".join(shown))

    def remove(self) -> None:
        """Take the line away."""
        self._lines.refresh()  # what came last is seen too
        self._lines.remove_task(self._task)


class Count:
    """Counts what is done of something; called with how many more are. Made by `Console.counting`."""

    def __init__(self, out: RichConsole, lines: Progress | None, name: str, total: int, unit: str | None):
        self._out = out
        self._line = None if lines is None else Line(lines, shortened(name, max(_NAME_WIDTH, out.width // 3)), total)
        self._name = name
        self._total = total
        self._unit = unit
        self._done = 0
        self._lock = threading.Lock()
        self._started = self._told = time.monotonic()
        self._tell_from = -(-total // 10)
        if self._line is not None:
            self._line.say([f"0/{total}"])

    def __call__(self, number: int = 1) -> None:
        """So many more are done. May be called from several threads."""
        with self._lock:
            # Of images shared among processes each counts its own for all, which is too many at the end.
            number = min(number, self._total - self._done)
            self._done += number
            now = time.monotonic()
            if self._line is not None:
                self._line.advance(number)
                self._line.say([f"{self._done}/{self._total}", *self._pace(now)])
            elif self._done >= self._tell_from and now - self._told >= _LOG_SECONDS:
                self._told, self._tell_from = now, self._done + -(-self._total // 10)
                state = f"{self._name}: {self._done}/{self._total} ({self._done / self._total:.0%})"
                self._out.print(Text("  ".join([state, *self._pace(now)])), soft_wrap=True)

    def end(self) -> None:
        """Take the live line away."""
        if self._line is not None:
            self._line.remove()

    def _pace(self, now: float) -> list[str]:
        seconds = now - self._started
        if self._unit is None or not self._done or seconds <= 0:
            return []
        left = (self._total - self._done) * seconds / self._done
        return [f"ETA {duration(left)}", rate(self._done / seconds, self._unit)]


class TrainingProgress:
    """The progress of one training run; made by `Console.training`."""

    def __init__(self, out: RichConsole, lines: Progress | None, total_steps: int, total_epochs: int):
        self._out = out
        self._line = None if lines is None else Line(lines, "", None)
        self._total_steps = total_steps
        self._total_epochs = total_epochs
        self._phase = ""
        self._values: dict[str, float] = {}
        self._steps_here = 0
        self._seconds_left: float | None = None
        self._started = time.monotonic()

    def start_epoch(self, phase: str, epoch: int, steps: int, completed: int = 0) -> None:
        """Begin an epoch.

        Args:
            phase: The phase's name.
            epoch: Which epoch of the run, counted from 1.
            steps: Optimizer steps in this epoch.
            completed: Those already taken, when a run resumes in mid-epoch.
        """
        self._phase = f"{shortened(phase, min(_NAME_WIDTH, self._out.width // 4))} {epoch}/{self._total_epochs}"
        if self._line is not None:
            self._line.restart(self._phase, steps, completed)
            self._line.say(self._parts())

    def advance(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Count one optimizer step.

        Args:
            step: Steps taken in the whole run so far.
            values: At a log interval, what is logged then, by the logged names ("train/loss", "train/iou",
                "train/images_per_second", "lr/..."). None in between: nothing waits for the device then.
        """
        self._steps_here += 1
        if values is not None:
            self._values = dict(values)
            # Validation and saving are in the average, as they will be in what is left.
            pace = (time.monotonic() - self._started) / self._steps_here
            self._seconds_left = pace * (self._total_steps - step)
        if self._line is not None:
            self._line.advance(1)
            if values is not None:
                self._line.say(self._parts())
        elif values is not None:
            parts = [f"{self._phase}  step {step}/{self._total_steps}", *self._parts()]
            self._out.print(Text("  ".join(parts)), soft_wrap=True)

    def _parts(self) -> list[str]:
        """What is known, most wanted first."""
        parts = []
        values = self._values
        if values.get("amp/skip_rate") == 1:
            parts.append("all skipped")  # or the loss of no step, a NaN, would look like the run's
        else:
            if "train/loss" in values:
                parts.append(f"loss {values['train/loss']:.4f}")
            if "train/iou" in values:
                parts.append(f"IoU {values['train/iou']:.3f}")
        if self._seconds_left is not None:
            parts.append(f"ETA {duration(self._seconds_left)}")
        rates = [value for name, value in values.items() if name.startswith("lr/")]
        if rates:
            parts.append(f"lr {max(rates):.1e}")
        if "train/images_per_second" in values:
            parts.append(rate(values["train/images_per_second"], "img"))
        return parts


def shortened(name: str, width: int) -> str:
    """A name of at most `width` characters."""
    return name if len(name) <= width else name[: max(0, width - 1)] + "…"
