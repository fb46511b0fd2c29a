"""What a suite found, as one JSON object and as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarking.timing import significant

_HEADINGS = {
    "process_seconds": "CPU s",
    "wall_seconds": "wall s",
    "device_seconds": "GPU s",
    "units_per_image": "units",
    "gmac_per_image": "GMAC",
    "parameters_millions": "M par.",
    "saved_bytes": "saved MB",
    "operators_per_forward": "calls",
    "host_copies_per_forward": "host copies",
    "peak_bytes": "peak MB",
}
Rows = dict[str, dict[str, Any]]
"""Name of what was measured → figure → a number, `{"median", "least", "most"}` over rounds, or a text."""


class Target(NamedTuple):
    """A figure that is not to be above a limit."""

    what: str
    at_most: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.at_most


class Report(NamedTuple):
    """Everything that one suite measured."""

    results: dict[str, Rows]
    """Title of a table → its rows."""

    ratios: Rows
    """Figure → "one / other" → their ratio, a number or a spread over rounds."""

    targets: Sequence[Target]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        targets = [{**target._asdict(), "met": target.met} for target in self.targets]
        return {"results": self.results, "ratios": self.ratios, "targets": targets}

    def show(self, console: Console) -> None:
        """Prints one table per section, with medians where there is a spread, then ratios and targets."""
        for title, rows in self.results.items():
            console.print(_table(title, rows))
        ratios = Table("ratio", "of", "median", "least", "most", box=SIMPLE_HEAD)
        for figure, pairs in self.ratios.items():
            for pair, value in pairs.items():
                spread = value if isinstance(value, dict) else {"median": value}
                ratios.add_row(figure, pair, *(_cell(spread.get(key)) for key in ("median", "least", "most")))
        console.print(ratios)
        targets = Table("target", "at most", "measured", "met", box=SIMPLE_HEAD)
        for target in self.targets:
            targets.add_row(target.what, _cell(target.at_most), _cell(target.measured), "yes" if target.met else "no")
        console.print(targets)


def quotient(rows: Rows, figure: str, name: str, other: str) -> float:
    """One row's figure ÷ another's, to five significant digits."""
    return significant(rows[name][figure] / rows[other][figure])


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    table = Table(box=SIMPLE_HEAD)
    table.add_column(title, no_wrap=True)
    for figure in figures:
        table.add_column(_HEADINGS.get(figure, figure), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row.get(figure), 1e-6 if figure.endswith("_bytes") else 1) for figure in figures))
    return table


def _cell(value: object, factor: float = 1) -> str:
    match value:
        case {"median": median}:
            return _cell(median, factor)
        case None:
            return ""
        case int() | float():
            scaled = value * factor
            return f"{scaled:.3g}" if scaled < 1000 else f"{scaled:,.0f}"
    return str(value)
