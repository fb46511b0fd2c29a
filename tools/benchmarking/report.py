"""What a suite found, as one JSON object and as tables for people."""

from collections.abc import Iterator, Mapping, Sequence
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
    "wall_units_per_image": "wall units",
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


def show(document: Mapping[str, Any], console: Console) -> None:
    """Prints one table per section of `Report.plain()`, with medians where there is a spread."""
    for header, *rows in _tables(document):
        table = Table(box=SIMPLE_HEAD)
        for number, heading in enumerate(header):
            table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown_tables(document: Mapping[str, Any]) -> str:
    """The same tables as Markdown, below a line that says with what and where they were measured."""
    machine, versions, settings = document["machine"], document["versions"], document["settings"]
    where = (
        f"{settings['backbone']}, {settings['image_size']}², batch {settings['batch']}, {settings['precision']}, "
        f"medians of {settings['rounds']} interleaved rounds; {machine.get('gpu', machine['processor'])}, "
        f"{machine['threads']} threads, torch {versions['torch']}. Made by `{document['command']}`."
    )
    texts = []
    for header, *rows in _tables(document):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        texts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([where, *texts])


def quotient(rows: Rows, figure: str, name: str, other: str) -> float:
    """One row's figure ÷ another's, to five significant digits."""
    return significant(rows[name][figure] / rows[other][figure])


def _tables(document: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    """Every table as rows of text, the heading first."""
    for title, rows in document["results"].items():
        figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
        header = [title, *(_HEADINGS.get(figure, figure) for figure in figures)]
        yield [
            header,
            *([name, *(_figure(row.get(figure), figure) for figure in figures)] for name, row in rows.items()),
        ]
    ratios = [["ratio", "of", "median", "least", "most"]]
    for figure, pairs in document["ratios"].items():
        for pair, value in pairs.items():
            spread = value if isinstance(value, dict) else {"median": value}
            ratios.append([figure, pair, *(_cell(spread.get(key)) for key in ("median", "least", "most"))])
    yield ratios
    targets = [["target", "at most", "measured", "met"]]
    for target in document["targets"]:
        met = "yes" if target["met"] else "no"
        targets.append([target["what"], _cell(target["at_most"]), _cell(target["measured"]), met])
    yield targets


def _figure(value: object, name: str) -> str:
    return _cell(value, 1e-6 if name.endswith("_bytes") else 1)


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
