"""What a suite found, as one JSON object and as tables for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

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
    "weights_bytes": "weights MB",
    "seconds_per_gigabyte": "s per GB",
    "anonymous_bytes": "anonymous MB",
    "blocked_seconds": "training waits s",
    "safe_seconds": "safe after s",
    "disk_bytes": "MB on disk",
    "images_per_second": "images/s",
    "exchanged_bytes": "MB per step",
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

    judged: bool
    """Whether it was measured with the settings that the targets are stated for."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it; `met` of a target that is not judged is None."""
        targets = [{**target._asdict(), "met": target.met if self.judged else None} for target in self.targets]
        return {"results": self.results, "ratios": self.ratios, "targets": targets}


def show(document: Mapping[str, Any], console: Console) -> None:
    """Prints one table per section of `Report.plain()`, with medians where there is a spread.

    What is too wide for the console becomes several tables, each with the names of the rows.
    """
    for section in _tables(document):
        for columns in _parts(section, console):
            console.print(_screen_table(section, columns))


def markdown_tables(document: Mapping[str, Any]) -> str:
    """The same tables as Markdown, below a line that says with what and where they were measured."""
    machine, versions, settings = document["machine"], document["versions"], document["settings"]
    if "parts" in document["results"]:
        sizes = f"{settings['backbone']}, width {settings['width']}"
    elif "prediction" in document["results"]:
        sizes = "Model of experiments/quickstart.toml, 100 images of five sizes"
    elif "megabytes" in settings:
        sizes = f"{settings['megabytes']} MB of weights"
    elif settings.keys() == {"rounds"}:
        sizes = "fresh processes"
    elif not settings.keys() & {"backbone", "image_size"}:
        sizes = "each on one core"
    elif "image_size" not in settings:
        sizes = f"state of {settings['backbone']}, width {settings['width']}"
    elif "backbone" not in settings:
        sizes = f"{settings['image_size']}², batch {settings['batch']}"
    else:
        sizes = f"{settings['backbone']}, {settings['image_size']}², batch {settings['batch']}, {settings['precision']}"
    if "rounds" in settings:
        how = f"{sizes}, medians of {settings['rounds']} interleaved rounds"
    else:
        how = "Counted, not timed" if settings["device"] == "cpu" else "Counted, and measured"
    where = (
        f"{how}; {machine.get('gpu', machine['processor'])}, "
        f"{machine['threads']} threads, torch {versions['torch']}. Made by `{document['command']}`."
    )
    texts = []
    for _, (header, *rows) in _tables(document):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        texts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([where, *texts])


def quotient(rows: Rows, figure: str, name: str, other: str) -> float:
    """One row's figure ÷ another's, to five significant digits."""
    return significant(rows[name][figure] / rows[other][figure])


class _Section(NamedTuple):
    """A table as rows of text, the heading first; the first `names` cells of a row say what it is about."""

    names: int
    lines: list[list[str]]


def _tables(document: Mapping[str, Any]) -> Iterator[_Section]:
    for title, rows in document["results"].items():
        figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
        header = [title, *(_HEADINGS.get(figure, figure) for figure in figures)]
        cells = [[name, *(_figure(row.get(figure), figure) for figure in figures)] for name, row in rows.items()]
        yield _Section(1, [header, *cells])
    ratios = [["ratio", "of", "median", "least", "most"]]
    for figure, pairs in document["ratios"].items():
        for pair, value in pairs.items():
            spread = value if isinstance(value, dict) else {"median": value}
            ratios.append([figure, pair, *(_cell(spread.get(key)) for key in ("median", "least", "most"))])
    yield _Section(2, ratios)
    if not document["targets"]:
        return
    targets = [["target", "at most", "measured", "met"]]
    for target in document["targets"]:
        met = {True: "yes", False: "no", None: "–"}[target["met"]]
        targets.append([target["what"], _cell(target["at_most"]), _cell(target["measured"]), met])
    yield _Section(1, targets)


def _parts(section: _Section, console: Console) -> list[list[int]]:
    """The columns of figures, in parts that fit beside the names; a part has one column at least."""
    parts: list[list[int]] = []
    for column in range(section.names, len(section.lines[0])):
        wider = [*parts[-1], column] if parts else [column]
        unlimited = console.options.update(width=10_000)
        if parts and Measurement.get(console, unlimited, _screen_table(section, wider)).maximum <= console.width:
            parts[-1] = wider
        else:
            parts.append([column])
    return parts


def _screen_table(section: _Section, columns: Sequence[int]) -> Table:
    """The names and these columns; where even they are too wide, the widest is broken into lines, none is cut."""
    names = list(range(section.names))
    header, *rows = [[Text(line[number]) for number in (*names, *columns)] for line in section.lines]
    table = Table(box=SIMPLE_HEAD)
    for number, heading in enumerate(header):
        table.add_column(heading, justify="left" if number < section.names else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


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
