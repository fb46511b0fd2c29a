"""What a run says to people. The only place in the package that prints.

On a terminal: colour, live lines while something goes on. Elsewhere (a log file, a pipe): sober lines, one per log
interval and per validation, without control characters. Names of files and classes are never read as markup.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from camox.tracking.progress import Count, TrainingProgress, live_lines
from camox.tracking.score_lines import group_scores, names_in, score_list, score_tables
from camox.tracking.terminal import Steadfast, is_live
from camox.tracking.wording import counted as counted
from camox.tracking.wording import duration as duration
from camox.tracking.wording import short

_VERDICTS = {"pass": "green", "warn": "bold yellow", "fail": "bold red", "problem": "bold red", "note": "cyan"}
_LEAST_WRAPPED = 20
"""Columns below which lines are left to the terminal to break."""

_WIDEST = 10_000


class InOnePiece(str):
    """A command, or what else is there to be copied: no line of it is broken."""


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
        def console(stderr: bool) -> Steadfast:
            return Steadfast(stream, stderr, force_terminal=terminal, width=width, quiet=not active)

        self._out = console(stderr=False)
        self._err = self._out if stream is not None else console(stderr=True)
        self._forced = bool(terminal)
        self._is_live = active and is_live(self._out, self._forced)
        self._lines: Progress | None = None
        self.active = active

    # ---- what goes on

    @contextmanager
    def training(self, total_steps: int, total_epochs: int) -> Iterator[TrainingProgress]:
        """Show the progress of a training run while the block runs.

        Args:
            total_steps: Optimizer steps of the whole run, for the estimate of the time left.
            total_epochs: Epochs of the whole run, all phases together.
        """
        with self._live_lines() as lines:
            yield TrainingProgress(self._out, lines, total_steps, total_epochs)

    @contextmanager
    def counting(self, what: str, total: int, unit: str | None = "images") -> Iterator[Count]:
        """Count up to `total` while the block runs, which calls what it is given after each, or with how many more.

        On a terminal a live line, below those that are there already. In a log a line whenever a tenth more is done,
        but not before half a minute: of short work it says nothing.

        Args:
            what: What goes on, in a few words.
            total: How many there are.
            unit: What is counted, for the pace; None where one takes much longer than another, so that it says nothing.
        """
        with self._live_lines() as lines:
            count = Count(self._out, lines, what, total, unit)
            try:
                yield count
            finally:
                count.end()

    @contextmanager
    def _live_lines(self) -> Iterator[Progress | None]:
        """All live lines there are at a time, or None where none can be: two displays would overwrite each other."""
        if self._lines is not None or not self._is_live:
            yield self._lines
            return
        with live_lines(self._out) as lines:
            self._lines = lines
            try:
                yield lines
            finally:
                self._lines = None

    # ---- what there is to say

    def header(self, title: str, rows: Sequence[tuple[str, object]]) -> None:
        """Say what is about to run: a title and lines of name and value."""
        self._out.print(Text(title, style="bold"), soft_wrap=True)
        self._rows(rows)

    def summary(self, title: str, *parts: Sequence[tuple[str, object]]) -> None:
        """Say how a run ended and where everything is, in one or several lists of name and value."""
        self._out.print()
        self._out.print(Text(title, style="bold"), soft_wrap=True)
        width = max((len(name) for part in parts for name, _ in part), default=0)
        for number, part in enumerate(part for part in parts if part):
            if number:
                self._out.print()
            self._rows(part, width)

    def notice(self, text: str) -> None:
        """Say something worth knowing."""
        self._say("", text)

    def warning(self, text: str) -> None:
        """Say something a person should act on."""
        self._loud("warning: ", "bold yellow", text)

    def error(self, text: str) -> None:
        """Say why the run cannot go on."""
        self._loud("error: ", "bold red", text)

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
        if raw.get("selected_on_test"):
            label = f"{label} on test images"
        title = f"{label}: epoch {epoch}, step {step}"
        heading = "IoU by group" if ema is None else "IoU by group, raw/ema"
        groups = group_scores(raw, ema)
        if self._is_live:
            self._out.print(Text(title, style="bold"))
            for table in score_tables(raw, ema, self._out.width):
                self._out.print(table)
            if groups:
                self._out.print(Text(heading, style="dim"))
                self._out.print(Columns([Text(group) for group in groups], padding=(0, 2)))
            return
        names = names_in(raw)
        lines = [("raw", score_list(raw, names))]
        lines += [] if ema is None else [("ema", score_list(ema, names))]
        lines += [(heading, " ".join(groups))] if groups else []
        for name, scores in lines:
            self._out.print(Text(f"{title} | {name}: {scores}"), soft_wrap=True)

    def checkpoint(self, folder: str | Path, *, seconds: float, note: str = "") -> None:
        """Say that a checkpoint is on disk; `note` may say why it is kept, such as "best s_measure 0.712"."""
        place = Text.assemble(("saved ", "green"), str(folder))
        rest = Text.assemble((f"  {seconds:.1f} s", "dim"), (f"  {note}" if note else "", "bold"))
        if self._is_live and len(place) + len(rest) > self._out.width:
            self._out.print(place, soft_wrap=True)
            self._out.print(Text("    ").append_text(rest), soft_wrap=True)
        else:
            self._out.print(place + rest, soft_wrap=True)

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
        self._say(Text.assemble((status, _VERDICTS[status]), (f"  {name:<10}  ", "bold")), summary)
        for message, remedy in problems:
            self._say("      ", message, style=_VERDICTS[status])
            self._say("      → ", remedy)
        for note in notes:
            self._say("      ", note, style="dim")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table; the first column is aligned left, the others right. In a log it is as wide as it has to be."""
        if title:
            self._out.print(Text(title, style="bold"), soft_wrap=True)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for position, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if position else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(short(cell)) for cell in row))
        if self._is_live:
            self._out.print(table)
        else:
            self._plain(table)
        self._out.print()

    # ---- how lines are laid out

    def _rows(self, rows: Sequence[tuple[str, object]], width: int | None = None) -> None:
        # Not a rich table: a long path must stay in one piece, so that it can be copied.
        width = max((len(name) for name, _ in rows), default=0) if width is None else width
        for name, value in rows:
            label = Text.assemble((f"  {name:<{width}}  ", "dim"))
            if isinstance(value, Path | InOnePiece):
                self._out.print(label.append(str(value)), soft_wrap=True)
            else:
                self._say(label, short(value))

    def _say(self, label: str | Text, text: str, style: str = "", on: Steadfast | None = None) -> None:
        """Print a text behind its label. On a terminal lines are broken between words and indented as far; in a log,
        which has no width, they are not."""
        on, indent = on or self._out, " " * len(label)
        room = on.width - len(indent)
        lines = text.split("\n")
        if is_live(on, self._forced) and room >= _LEAST_WRAPPED:
            # Words stay whole: a path can then be copied.
            wrap = textwrap.TextWrapper(room, break_long_words=False, break_on_hyphens=False)
            lines = [part for line in lines for part in wrap.wrap(line) or [""]]
        else:
            indent = ""
        for number, line in enumerate(lines):
            on.print(Text.assemble(indent if number else label, (line, style)), soft_wrap=True)

    def _plain(self, table: Table) -> None:
        options = self._out.options.update(max_width=_WIDEST)
        width = max(self._out.width, Measurement.get(self._out, options, table).maximum)
        lines = self._out.render_lines(table, options.update_width(width), pad=False)
        text = "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)
        self._out.print(Text(text), soft_wrap=True)

    def _loud(self, prefix: str, style: str, text: str) -> None:
        # While live lines are shown, printing to the same terminal by another way would tear them.
        on = self._out if self._lines is not None and self._err.is_terminal else self._err
        self._say(Text.assemble((prefix, style)), text, on=on)
