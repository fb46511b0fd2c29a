"""Scores of raw and EMA weights side by side: a table on a terminal, a line each elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

# Headings short enough that all of them and a label fit into 80 columns.
HEADINGS = {
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
_CELL = 6
"""Columns of a score with the space behind it."""


def names_in(values: Mapping[str, Any]) -> list[str]:
    """The scores that are shown, in their order."""
    return [name for name in HEADINGS if name in values]


def score_list(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Scores in one line: "IoU 0.712 MAE 0.034"."""
    return " ".join(f"{HEADINGS[name]} {score(values.get(name))}" for name in names)


def score(value: float | None) -> str:
    """A score with three digits, or a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def group_scores(raw: Mapping[str, Any], ema: Mapping[str, Any] | None) -> list[str]:
    """Each group's IoU, of raw weights and EMA weights where there are any; nothing where there are no two groups."""
    groups = raw.get("groups") or {}
    if len(groups) < 2:
        return []
    of_ema = (ema or {}).get("groups") or {}
    scores = []
    for name, measures in sorted(groups.items()):
        if "iou" not in measures:
            continue
        text = f"{name} {score(measures['iou'])}"
        if ema is not None:
            text += f"/{score(of_ema.get(name, {}).get('iou'))}"
        scores.append(text)
    return scores


def score_tables(raw: Mapping[str, Any], ema: Mapping[str, Any] | None, width: int) -> list[Table]:
    """One table of all scores, or several below each other where they do not fit into `width` columns."""
    names = names_in(raw)
    room = max(1, (width - 4) // _CELL)
    return [_table(raw, ema, names[start : start + room]) for start in range(0, len(names), room)]


def _table(raw: Mapping[str, Any], ema: Mapping[str, Any] | None, names: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True, min_width=5)
    for label, values, other in (("raw", raw, ema), ("ema", ema, raw)):
        if values is not None:
            cells = [_cell(name, values.get(name), None if other is None else other.get(name)) for name in names]
            table.add_row(Text(label, style="dim"), *cells)
    return table


def _cell(name: str, value: float | None, other: float | None) -> Text:
    """A score, in bold where it is better than its neighbour's."""
    if value is None or other is None:
        return Text(score(value))
    better = value < other if name in _LOWER_IS_BETTER else value > other
    return Text(score(value), style="bold" if better else "")
