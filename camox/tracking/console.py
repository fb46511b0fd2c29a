"""What a run says to people. The only place in the package that prints.

On a terminal: colour, one live line while training. Elsewhere (a log file, a pipe): sober lines, one per log
interval and per validation, without control characters. Names of files and classes are never read as markup.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Headings short enough that all of them and a label fit into 80 columns.
_HEADINGS = {
    "loss": "Loss",
    "iou": "IoU",
    "dice": "Dice",
    "s_measure": "S",
    "f_weighted": "Fw",
    "f_max": "Fmax",
    "f_mean": "Fmean",
    "f_adaptive": "Fadp",
    "e_max": "Emax",
    "e_mean": "Emean",
    "e_adaptive": "Eadp",
    "mae": "MAE",
}
_LOWER_IS_BETTER = {"loss", "mae"}
_PHASE_WIDTH = 14
_VERDICTS = {"pass": "green", "warn": "bold yellow", "fail": "bold red", "problem": "bold red", "note": "cyan"}


class Console:
    """Prints what a run has to say.

    Args:
        active: False on all ranks but the main one: then nothing is printed.
        stream: Where to print; standard output (warnings and errors: standard error) by default.
        terminal: Whether to treat the stream as a terminal; None finds out.
        width: Columns; None takes the terminal's, or COLUMNS, or 80.
    """

    def __init__(
        self,
        active: bool = True,
        stream: IO[str] | None = None,
        terminal: bool | None = None,
        width: int | None = None,
    ):
        def console(stderr: bool) -> RichConsole:
            return _Steadfast(
                file=stream,
                stderr=stderr,
                force_terminal=terminal,
                width=width,
                quiet=not active,
                markup=False,
                emoji=False,
                highlight=False,
            )

        self._out = console(stderr=False)
        self._err = self._out if stream is not None else console(stderr=True)
        self._live = False
        self.active = active

    def header(self, title: str, rows: Sequence[tuple[str, object]]) -> None:
        """Say what is about to run: a title and lines of name and value."""
        self._out.print(Text(title, style="bold"), soft_wrap=True)
        self._rows(rows)

    def summary(self, title: str, rows: Sequence[tuple[str, object]]) -> None:
        """Say how a run ended and where everything is."""
        self._out.print()
        self.header(title, rows)

    def notice(self, text: str) -> None:
        """Say something worth knowing."""
        self._out.print(Text(text), soft_wrap=True)

    def warning(self, text: str) -> None:
        """Say something a person should act on."""
        self._loud("warning: ", "bold yellow", text)

    def error(self, text: str) -> None:
        """Say why the run cannot go on."""
        self._loud("error: ", "bold red", text)

    @contextmanager
    def training(self, total_steps: int, total_epochs: int) -> Iterator["TrainingProgress"]:
        """Show the progress of a training run while the block runs.

        Args:
            total_steps: Optimizer steps of the whole run, for the estimate of the time left.
            total_epochs: Epochs of the whole run, all phases together.
        """
        if not (self._out.is_terminal and self.active):
            yield TrainingProgress(self._out, None, total_steps, total_epochs)
            return
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._out,
            transient=True,
            expand=True,
            refresh_per_second=4,
        )
        with bar:
            self._live = True
            try:
                yield TrainingProgress(self._out, bar, total_steps, total_epochs)
            finally:
                self._live = False

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar on a terminal while the block runs; it calls what it is given after each of `total` items."""
        if not (self._out.is_terminal and self.active):
            yield lambda: None
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self._out, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    def validation(
        self,
        raw: Mapping[str, Any],
        ema: Mapping[str, Any] | None = None,
        *,
        epoch: int,
        step: int,
        label: str = "validation",
    ) -> None:
        """Show the measures of raw and EMA weights side by side, and each group's IoU if there are several.

        Args:
            raw: Measures by name, as `Evaluator.summary()` gives them; "groups" holds the same per group, and
                "selected_on_test" says that these are test images.
            ema: The same for the EMA weights, where there are any.
            epoch: Finished epochs, as people count them.
            step: Optimizer steps taken.
            label: What was validated on.
        """
        names = [name for name in _HEADINGS if name in raw]
        if raw.get("selected_on_test"):
            label = f"{label} on test images"
        title = f"{label}: epoch {epoch}, step {step}"
        if not self._out.is_terminal:
            self._plain_line(f"{title} |", "raw", _scores(raw, names))
            if ema is not None:
                self._plain_line(f"{title} |", "ema", _scores(ema, names))
            if groups := _group_scores(raw, ema):
                self._plain_line(f"{title} |", "IoU by group" if ema is None else "IoU by group, raw/ema", groups)
            return
        self._out.print(Text(title, style="bold"))
        self._out.print(_score_table(raw, ema, names))
        if groups := _group_scores(raw, ema):
            heading = "IoU by group" if ema is None else "IoU by group, raw/ema"
            self._out.print(Text(heading, style="dim"))
            self._out.print(Columns([Text(group) for group in groups], padding=(0, 2)))

    def checkpoint(self, folder: str | Path, *, seconds: float, note: str = "") -> None:
        """Say that a checkpoint is on disk; `note` may say why it is kept, such as "best s_measure 0.712"."""
        text = Text("saved ", style="green").append(str(folder), style="default")
        text.append(f"  {seconds:.1f} s", style="dim")
        if note:
            text.append(f"  {note}", style="bold")
        self._out.print(text, soft_wrap=True)

    def verdict(
        self,
        status: str,
        name: str,
        summary: str,
        problems: Iterable[tuple[str, str]] = (),
        notes: Iterable[str] = (),
    ) -> None:
        """Say how a check ended: one line, below it what is wrong with its remedy, and what is worth knowing.

        Args:
            status: "pass", "warn" or "fail"; or "problem" or "note", for something that was found.
            name: What was checked, or how often something was found, at most 10 characters.
            summary: What was measured.
            problems: Messages and what to do about each.
            notes: Said quietly.
        """
        line = Text(status, style=_VERDICTS[status]).append(f"  {name:<10}  ", style="not dim bold default")
        self._out.print(line.append(summary, style="not bold default"), soft_wrap=True)
        for message, remedy in problems:
            self._out.print(Text(f"      {message}", style=_VERDICTS[status]), soft_wrap=True)
            self._out.print(Text(f"      → {remedy}"), soft_wrap=True)
        for note in notes:
            self._out.print(Text(f"      {note}", style="dim"), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table; the first column is aligned left, the others right."""
        table = Table(title=Text(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
        for position, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if position else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_short(cell)) for cell in row))
        self._out.print(table)

    def _rows(self, rows: Sequence[tuple[str, object]]) -> None:
        # Not a rich table: a long path must stay in one piece, so that it can be copied.
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            line = Text(f"  {name:<{width}}  ", style="dim").append(_short(value), style="not dim")
            self._out.print(line, soft_wrap=True)

    def _plain_line(self, title: str, weights: str, scores: Sequence[str]) -> None:
        self._out.print(Text(f"{title} {weights}: {' '.join(scores)}"), soft_wrap=True)

    def _loud(self, prefix: str, style: str, text: str) -> None:
        # While the live line is shown, printing to the same terminal by another way would tear it.
        console = self._out if self._live and self._err.is_terminal else self._err
        console.print(Text(prefix, style=style).append(text, style="not bold default"), soft_wrap=True)


class _Steadfast(RichConsole):
    """Goes on in silence where nobody reads any more, as after `| head` or in a closed terminal: a run must not end for
    that."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal that was closed answers; pipes come by themselves
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # Or the interpreter fails at its end, when it writes out what is left; and so does whoever writes to the other
        # of the two streams, where both go to the same place.
        gone = self.file.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in {gone, *(number for number in (1, 2) if os.path.sameopenfile(number, gone))}:
            os.dup2(nowhere, stream)
        os.close(nowhere)


class TrainingProgress:
    """The progress of one training run; made by `Console.training`."""

    def __init__(self, out: RichConsole, bar: Progress | None, total_steps: int, total_epochs: int):
        self._out = out
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=None, status="")
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
        self._phase = f"{_shortened(phase)} {epoch}/{self._total_epochs}"
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, total=steps, completed=completed, description=self._phase)
            self._show()

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
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)
            if values is not None:
                self._show()
        elif values is not None:
            parts = [f"{self._phase}  step {step}/{self._total_steps}", *self._parts()]
            self._out.print(Text("  ".join(parts)), soft_wrap=True)

    def _show(self) -> None:
        assert self._bar is not None
        assert self._task is not None
        room = self._out.width - len(self._phase) - 12
        parts: list[str] = []
        for part in self._parts():
            if len("  ".join([*parts, part])) <= room:
                parts.append(part)
        self._bar.update(self._task, status="  ".join(parts))

    def _parts(self) -> list[str]:
        """What is known, most wanted first."""
        parts = []
        values = self._values
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
            rate = values["train/images_per_second"]
            parts.append(f"{rate:.0f} img/s" if rate >= 100 else f"{rate:.1f} img/s")
        return parts


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 step", "0 steps", "2 processes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shortened(phase: str) -> str:
    return phase if len(phase) <= _PHASE_WIDTH else phase[: _PHASE_WIDTH - 1] + "…"


def _scores(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{_HEADINGS[name]} {_score(values.get(name))}" for name in names]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _group_scores(raw: Mapping[str, Any], ema: Mapping[str, Any] | None) -> list[str]:
    groups = raw.get("groups") or {}
    if len(groups) < 2:
        return []
    of_ema = (ema or {}).get("groups") or {}
    scores = []
    for name, measures in sorted(groups.items()):
        if "iou" not in measures:
            continue
        score = f"{name} {_score(measures['iou'])}"
        if ema is not None:
            score += f"/{_score(of_ema.get(name, {}).get('iou'))}"
        scores.append(score)
    return scores


def _score_table(raw: Mapping[str, Any], ema: Mapping[str, Any] | None, names: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(_HEADINGS[name], justify="right", no_wrap=True, min_width=5)
    for label, values, other in (("raw", raw, ema), ("ema", ema, raw)):
        if values is not None:
            cells = [_cell(name, values.get(name), None if other is None else other.get(name)) for name in names]
            table.add_row(Text(label, style="dim"), *cells)
    return table


def _cell(name: str, value: float | None, other: float | None) -> Text:
    """A score, in bold where it is better than its neighbour's."""
    if value is None or other is None:
        return Text(_score(value))
    better = value < other if name in _LOWER_IS_BETTER else value > other
    return Text(_score(value), style="bold" if better else "")
