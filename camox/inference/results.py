"""Scores of datasets to a table on the console and to files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camox.errors import DataError
from camox.measures.tables import Datasets, write_scores
from camox.tracking.console import Console

_TITLES = {
    "s_measure": "S",
    "f_weighted": "weighted F",
    "f_max": "F max",
    "f_mean": "F mean",
    "f_adaptive": "F adaptive",
    "e_max": "E max",
    "e_mean": "E mean",
    "e_adaptive": "E adaptive",
    "mae": "MAE",
    "iou": "IoU",
    "dice": "Dice",
}


def report(
    datasets: Datasets, protocol: Mapping[str, object], out: str | Path | None, console: Console
) -> dict[str, Any]:
    """Print a table of the summaries and, given `out`, write the files of `write_scores` into it.

    Gives what measures.json holds. Raises DataError where `out` cannot be written.
    """
    summaries = {name: summary for name, (summary, _) in datasets.items()}
    # A column per dataset: long names fold in the heading, and numbers stay whole on a narrow terminal.
    rows = [["images scored", *(summary["count"] for summary in summaries.values())]]
    rows += [
        [title, *(_cell(summary[measure]) for summary in summaries.values())] for measure, title in _TITLES.items()
    ]
    rows += [
        [f"IoU, {group}", *(_cell(summary["groups"].get(group, {}).get("iou")) for summary in summaries.values())]
        for group in sorted({group for summary in summaries.values() for group in summary["groups"]})
    ]
    console.table(f"protocol {protocol['name']}", ["", *summaries], rows)
    for name, summary in summaries.items():
        empty = summary["empty"]
        if empty["count"]:
            console.notice(
                f"{name}: {empty['count']} images without an object; {empty['false_positive_area']:.2%} of their "
                f"area is called object, some object is seen in {empty['false_positive_rate']:.0%} of them"
            )
    if out is not None:
        try:
            write_scores(out, datasets, protocol)
        except OSError as error:
            raise DataError(f"{out}: scores cannot be written ({error}): give another --out") from error
        console.notice(f"measures.json, per_image.csv, table.md and table.tex are in {out}")
    return {"protocol": dict(protocol), "datasets": summaries}


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
