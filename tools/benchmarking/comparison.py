"""Two files of results of one suite against each other: did a later commit make anything worse?

Compared are ratios, and times in units of the matrix product of the same rounds: they hold on any machine of the kind;
of suites that only count, everything.
One is worse where the noise of neither file explains it: the new median lies beyond all old rounds, and the old median
beyond all new ones. What is counted has no noise. An asked figure is lost that was met and no longer is.

Seconds say nothing between two machines, and little between two hours: of the same machine they are shown and not
judged, of different ones not even shown.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarking.timing import LEAST_ROUNDS
from camox.errors import DataError
from pages import SHAPE_ERRORS

MORE_IS_BETTER = ("times as fast", "images/s", "images per second", "share of")
"""Words in the title of ratios that are gains; all others are costs."""
UNITS = "units_per_image"
OF_THE_CARD = ("allocated GiB", "reserved GiB")
"""Figures that are measured in a suite that counts: they depend on the card and the libraries."""
ROUNDING = 1e-4
"""Relative difference of two counts that five significant digits do not tell apart."""

WORSE, BETTER, GONE, NEW, LOST, WON = "worse", "better", "gone", "new", "lost", "won"

Document = Mapping[str, Any]


class Spread(NamedTuple):
    """A figure over rounds; of one that was counted all three are the same."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.4g}" + (f" ({self.least:.3g} to {self.most:.3g})" if self.least < self.most else "")


class Line(NamedTuple):
    """One figure of both files."""

    title: str
    what: str
    old: Spread | None
    new: Spread | None
    verdict: str

    @property
    def change(self) -> str:
        """In percent of the old median."""
        if self.old is None or self.new is None or not self.old.median:
            return ""
        return f"{100 * (self.new.median / self.old.median - 1):+.1f} %"


class Comparison(NamedTuple):
    """What two files of results have to say about each other."""

    ratios: list[Line]
    targets: list[Line]
    seconds: list[Line]
    remarks: list[str]

    @property
    def worse(self) -> list[Line]:
        """Ratios that became worse, asked figures that were lost."""
        return [line for line in (*self.ratios, *self.targets) if line.verdict in (WORSE, LOST)]


def compare(old: Document, new: Document, names: tuple[str, str]) -> Comparison:
    """Compares two documents of one suite; `names` are their files'.

    Raises:
        DataError: they were measured with different settings or threads, in too few rounds, or have no figure in
            common; or one of them is damaged.
    """
    try:
        remarks = _require_like_settings(old, new, names)
        ratios = _lines(dict(_ratio_figures(old)), dict(_ratio_figures(new)))
        targets = _targets(old, new)
        seconds: list[Line] = []
        if old["machine"] == new["machine"]:
            seconds = [
                line._replace(verdict="") for line in _lines(dict(_second_figures(old)), dict(_second_figures(new)))
            ]
        else:
            remarks.append("different machines: their seconds are not compared, the ratios are")
    except SHAPE_ERRORS as error:
        raise DataError(f"{names[0]}, {names[1]}: cannot be read as results of a benchmark: {error!r}") from error
    if not any(line.old and line.new for line in (*ratios, *targets)):
        raise DataError(f"{names[0]} and {names[1]} have no figure in common: measure both with code of like suites")
    return Comparison(ratios, targets, seconds, remarks)


def show_comparison(
    found: Comparison, documents: tuple[Document, Document], console: Console, everything: bool = False
) -> None:
    """Prints where both come from, what is asked, came, went or changed, or `everything`, and a closing line."""
    for name, document in zip(("old", "new"), documents, strict=True):
        console.print(Text(f"{name}: {_origin(document)}"))
    for remark in found.remarks:
        console.print(Text(remark))
    left_out = 0
    for heading, lines in (("ratio", found.ratios), ("asked", found.targets), ("seconds, not judged", found.seconds)):
        shown = [line for line in lines if everything or line.verdict or lines is found.targets]
        left_out += len(lines) - len(shown)
        if shown:
            console.print(_table(heading, shown))
    if left_out:
        console.print(Text(f"{left_out} figures that did not change beyond the noise, or are not judged: see --all"))
    better = sum(line.verdict == BETTER for line in found.ratios)
    console.print(Text(f"{len(found.worse)} worse, {better} better beyond the noise, of {len(found.ratios)} ratios"))
    for line in found.worse:
        console.print(Text(f"{line.verdict}: {line.title}, {line.what}: {line.old} became {line.new}"))


def _require_like_settings(old: Document, new: Document, names: tuple[str, str]) -> list[str]:
    """Remarks about settings that only one of them has."""
    both = {
        **{key: (old["settings"].get(key), new["settings"].get(key)) for key in {**old["settings"], **new["settings"]}},
        "threads": (old["machine"]["threads"], new["machine"]["threads"]),
    }
    rounds = both.pop("rounds", (None, None))
    different = {key: pair for key, pair in both.items() if pair[0] != pair[1] and None not in pair}
    if different:
        told = ", ".join(f"{key} {one} and {other}" for key, (one, other) in different.items())
        raise DataError(f"{names[0]} and {names[1]} do not compare: measured with {told}; measure with the same")
    for name, count in zip(names, rounds, strict=True):
        if count is not None and count < LEAST_ROUNDS:  # of what is only counted there are none
            raise DataError(f"{name}: measured in {count} rounds, which tell no noise; take --rounds {LEAST_ROUNDS}")
    return [
        f"{key} = {one if other is None else other} is a setting of one of them only"
        for key, (one, other) in both.items()
        if None in (one, other) and one != other
    ]


def _ratio_figures(document: Document) -> Iterator[tuple[tuple[str, str], Spread]]:
    for title, pairs in document["ratios"].items():
        for pair, value in pairs.items():
            yield (title, pair), _spread(value)
    for table, rows in document["results"].items():
        for name, row in rows.items():
            if UNITS in row:
                yield (f"{table}, units per image", name), _spread(row[UNITS])
            for figure, value in row.items():
                if (
                    "rounds" not in document["settings"]
                    and figure not in OF_THE_CARD
                    and isinstance(value, int | float)
                ):
                    yield (f"{table}, {figure}", name), _spread(value)


def _second_figures(document: Document) -> Iterator[tuple[tuple[str, str], Spread]]:
    for table, rows in document["results"].items():
        for name, row in rows.items():
            for figure, value in row.items():
                if figure.endswith("_seconds"):
                    yield (f"{table}, {figure.removesuffix('_seconds')}", name), _spread(value)


def _spread(value: Any) -> Spread:
    if isinstance(value, Mapping):
        return Spread(*(float(value[key]) for key in Spread._fields))
    return Spread(*[float(value)] * 3)


def _lines(old: Mapping[tuple[str, str], Spread], new: Mapping[tuple[str, str], Spread]) -> list[Line]:
    return [
        Line(*key, old.get(key), new.get(key), _verdict(key[0], old.get(key), new.get(key))) for key in {**old, **new}
    ]


def _verdict(title: str, old: Spread | None, new: Spread | None) -> str:
    if old is None or new is None:
        return NEW if old is None else GONE
    rose = new.median > old.most * (1 + ROUNDING) and old.median < new.least
    fell = new.median < old.least * (1 - ROUNDING) and old.median > new.most
    if not rose and not fell:
        return ""
    return BETTER if rose == any(word in title for word in MORE_IS_BETTER) else WORSE


def _targets(old: Document, new: Document) -> list[Line]:
    """Asked figures; an asked one is the same as long as its limit is."""
    before, after = (
        {(f"at most {target['at_most']:g}", target["what"]): target for target in document["targets"]}
        for document in (old, new)
    )
    lines = []
    for key in {**before, **after}:
        one, other = before.get(key), after.get(key)
        if one is None or other is None:
            verdict = NEW if one is None else GONE
        else:
            verdict = {(True, False): LOST, (False, True): WON}.get((one["met"], other["met"]), "")
        measured = [None if target is None else _spread(target["measured"]) for target in (one, other)]
        lines.append(Line(*key, measured[0], measured[1], verdict))
    return lines


def _origin(document: Document) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    commit = str(document.get("git_commit"))[:10]
    return f"commit {commit}, {machine.get('gpu', machine['processor'])}, {machine['threads']} threads, {versions}"


def _table(heading: str, lines: list[Line]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in (heading, "of"):
        table.add_column(name, overflow="fold")
    for name in ("old", "new", "change"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for line in lines:
        old, new = ("" if value is None else str(value) for value in (line.old, line.new))
        style = {WORSE: "bold red", LOST: "bold red", BETTER: "green", WON: "green"}.get(line.verdict, "")
        table.add_row(Text(line.title), Text(line.what), old, new, line.change, Text(line.verdict, style))
    return table
