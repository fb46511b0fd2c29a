"""Scores of datasets to tables on the console and to files."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camox.errors import DataError
from camox.inference.scoring.score_plots import draw_curves
from camox.measures import bootstrap
from camox.measures.breakdown import OBJECT_SIZES
from camox.measures.comparison import DIFFERENCE_NOTE, Compared, compare, comparison_tables, difference_cell
from camox.measures.published import MEASURES as PUBLISHED_MEASURES
from camox.measures.published import published_on, warning
from camox.measures.rendering import NAMES, latex, markdown
from camox.measures.tables import Datasets, protocol_notes, write_json, write_scores, write_text
from camox.tracking.console import Console, counted


def report(
    datasets: Datasets, protocol: Mapping[str, object], out: str | Path | None, console: Console
) -> dict[str, Any]:
    """Print tables of the summaries and, given `out`, write the files of `write_scores` and curves.png into it.

    Gives what measures.json holds. Raises DataError where `out` cannot be written.
    """
    document = save_scores(datasets, protocol, out)
    summaries = document["datasets"]
    console.table(f"protocol {protocol['name']}", ["", *summaries], _score_rows(summaries))
    if any(any(summary["intervals"].values()) for summary in summaries.values()):
        console.notice("± half of the 95 % interval, by bootstrap over the images; the intervals are in measures.json")
    for name, summary in summaries.items():
        _say_empty(name, summary["empty"], console)
    print_published({name: {"this result": summary} for name, summary in summaries.items()}, console)
    if out is not None:
        curves = "curves.csv and .png" if (Path(out) / "curves.png").exists() else "curves.csv"
        console.notice(f"measures.json, per_image.csv, {curves}, table.md and .tex are in {out}")
    return document


def save_scores(datasets: Datasets, protocol: Mapping[str, object], out: str | Path | None) -> dict[str, Any]:
    """Write the files of `report` without a word; gives what measures.json holds. Raises DataError as it does."""
    choices = {**protocol, "intervals": bootstrap.describe(), "object_sizes": dict(OBJECT_SIZES)}
    if out is not None:
        write(out, lambda folder: write_scores(folder, datasets, choices))
        write(out, lambda folder: draw_curves({"": datasets}, folder / "curves.png"))
    return {"protocol": choices, "datasets": {name: scores.summary for name, scores in datasets.items()}}


def report_comparison(
    compared: Compared, protocol: Mapping[str, object], notes: Sequence[str], out: str | Path | None, console: Console
) -> dict[str, Any]:
    """Print how models compare on each dataset and, given `out`, write comparison.json, .md, .tex and .png into it.

    `notes`: sentences on each model, such as what it was selected on. Gives what comparison.json holds. Raises
    DataError where `out` cannot be written.
    """
    of_datasets = compare(compared)
    choices = {**protocol, "intervals": bootstrap.describe()}
    document = {"protocol": choices, "notes": list(notes), "datasets": of_datasets}
    for dataset, of in of_datasets.items():
        scores, differences = of["scores"], of["differences"]
        console.table(f"{dataset}, protocol {protocol['name']}", ["", *scores], _score_rows(scores))
        if differences:
            _print_differences(dataset, next(iter(scores)), differences, console)
        for model, one in scores.items():
            _say_empty(f"{dataset}, {model}", one["empty"], console)
    print_published({dataset: of["scores"] for dataset, of in of_datasets.items()}, console)
    differences = [difference for of in of_datasets.values() for difference in of["differences"].values()]
    if any(one["interval"] for difference in differences for one in difference.values()):
        console.notice(DIFFERENCE_NOTE)
    for note in notes:
        console.notice(note)
    if out is not None:
        tables, below = comparison_tables(of_datasets), [DIFFERENCE_NOTE, *protocol_notes(protocol), *notes]

        def save(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "comparison.json", document)
            write_text(folder / "comparison.md", markdown(tables, below))
            write_text(folder / "comparison.tex", latex(tables, below))
            draw_curves(compared, folder / "comparison.png")

        write(out, save)
        console.notice(f"comparison.json, comparison.md, comparison.tex and comparison.png are in {out}")
    return document


def print_published(ours: Mapping[str, Mapping[str, Mapping[str, Any]]], console: Console) -> None:
    """Print, for each dataset on which anything is published, our summaries by name above that."""
    known = {dataset: methods for dataset in ours if (methods := published_on(dataset))}
    for dataset, methods in known.items():
        rows: list[list[str]] = [
            [name, "", *(_cell(summary.get(measure), 3) for measure in PUBLISHED_MEASURES)]
            for name, summary in ours[dataset].items()
        ]
        rows += [[one.method, one.backbone, *(f"{score:.3f}" for score in one.scores)] for one in methods]
        console.table(f"{dataset}: published", ["", "backbone, size", "S", "weighted F", "MAE"], rows)
    if known:
        console.notice(warning())


def write(out: str | Path, save: Callable[[Path], None]) -> None:
    """Save into the folder `out`. Raises DataError where it cannot be written."""
    try:
        save(Path(out))
    except OSError as error:
        raise DataError(f"{out}: scores cannot be written ({error}): give another --out") from error


def _score_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[object]]:
    """A column per summary: long names fold in the heading, and numbers stay whole on a narrow terminal."""
    columns = summaries.values()
    rows: list[list[object]] = [["images scored", *(summary["count"] for summary in columns)]]
    rows += [
        [title, *(_with_half_interval(summary, measure) for summary in columns)] for measure, title in NAMES.items()
    ]
    for part, shown in (("groups", "IoU, {}"), ("sizes", "IoU, {} object")):
        names = dict.fromkeys(name for summary in columns for name in summary.get(part, {}))
        for name in names if part == "sizes" else sorted(names):
            of = [summary.get(part, {}).get(name, {}) for summary in columns]
            if any(one.get("count") for one in of):
                rows.append([shown.format(name), *(_cell(one.get("iou")) for one in of)])
    return rows


def _with_half_interval(summary: Mapping[str, Any], measure: str) -> str:
    interval = summary["intervals"].get(measure)
    text = _cell(summary.get(measure))
    # Apart by a space: on a narrow terminal the second part goes to a line of its own.
    return text if interval is None else f"{text} ±{(interval[1] - interval[0]) / 2:.3f}"


def _say_empty(name: str, empty: Mapping[str, Any], console: Console) -> None:
    if empty["count"]:
        console.notice(
            f"{name}: {counted(empty['count'], 'image')} without an object; {empty['false_positive_area']:.2%} of "
            f"their area is called object, some object is seen in {empty['false_positive_rate']:.0%} of them"
        )


def _print_differences(
    dataset: str, first: str, differences: Mapping[str, Mapping[str, Any]], console: Console
) -> None:
    rows = [
        [title, *(difference_cell(one[measure]) for one in differences.values())]
        for measure, title in NAMES.items()
        if all(measure in one for one in differences.values())
    ]
    console.table(f"{dataset}: difference from {first}", ["", *differences], rows)


def _cell(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
