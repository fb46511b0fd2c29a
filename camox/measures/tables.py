"""Scores become files: measures.json, per_image.csv and curves.csv for programs, table.md and table.tex for papers.

Every file is written beside its place and then renamed, so that a reader never sees half of one.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from camox.measures.breakdown import OBJECT_SIZES, DatasetScores
from camox.measures.protocol import ALL_MEASURES
from camox.measures.published import MEASURES as PUBLISHED_MEASURES
from camox.measures.published import images_of, published_on, warning
from camox.measures.rendering import MEASURES, TextTable, latex, markdown

Datasets = Mapping[str, DatasetScores]

_EMPTY_COLUMNS = ("false_positive_area", "false_positive")


def write_scores(folder: str | Path, datasets: Datasets, protocol: Mapping[str, object]) -> None:
    """Write measures.json, per_image.csv, curves.csv, table.md and table.tex into a folder, made if it does not exist.

    `protocol` is `Protocol.as_dict()` with whatever else the scores depend on. measures.json holds `{"protocol",
    "datasets": {name: summary}}`; a value that is undefined is null there and an empty cell elsewhere. Numbers in the
    JSON and CSV files read back to the last bit. Raises OSError where the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"protocol": dict(protocol), "datasets": {name: scores.summary for name, scores in datasets.items()}}
    write_json(folder / "measures.json", document)
    write_text(folder / "per_image.csv", _per_image_csv(datasets))
    write_text(folder / "curves.csv", _curves_csv(datasets))
    tables, notes = score_tables(datasets), protocol_notes(protocol)
    write_text(folder / "table.md", markdown(tables, notes))
    write_text(folder / "table.tex", latex(tables, notes))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document whose undefined numbers become null."""
    text = json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite: JSON has no NaN, and Python's writer would invent one."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def cell(value: float | None) -> str:
    """A score in a table."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def cell_with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A score with its interval in brackets."""
    return cell(value) + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def score_tables(datasets: Datasets) -> list[TextTable]:
    """Every table for people: scores, intervals, object sizes, images without an object, published numbers."""
    summaries = {name: scores.summary for name, scores in datasets.items()}
    measures = [name for name in MEASURES if any(name in summary for summary in summaries.values())]
    header = ["dataset", "images", *measures]
    parts = [
        TextTable("Scores", header, list(_rows(summaries, "groups", measures))),
        _interval_table(summaries, measures),
        TextTable(
            "Scores by object size",
            header,
            list(_rows(summaries, "sizes", measures)),
            ["Sizes: " + ", ".join(f"{size} {share}" for size, share in OBJECT_SIZES.items()) + " of the image."],
        ),
        *empty_table(summaries),
        *(table for name, of in summaries.items() for table in published_table(name, {"this result": of})),
    ]
    return [table for table in parts if table.rows]


def protocol_notes(protocol: Mapping[str, Any]) -> list[str]:
    """What no table of scores may be without: the protocol, the checkpoint, and what it was selected on."""
    notes = [f"Protocol: {protocol['name']}."]
    if "selected_on" in protocol:
        selected = protocol["selected_on"]
        notes.append(f"Checkpoint: {protocol['checkpoint']}, step {protocol['step']}, {protocol['weights']} weights.")
        notes.append(f"Selected on: {selected['data']}, by {selected['monitor']}.")
    return notes


def _rows(summaries: Mapping[str, Mapping[str, Any]], parts: str, measures: Sequence[str]) -> Iterator[list[str]]:
    """A row of cells per dataset, unless its parts alone are asked for, and one for each part of it."""
    for dataset, summary in summaries.items():
        of_parts = {f"{dataset} / {part}": of for part, of in summary[parts].items()}
        if parts == "groups":
            of_parts = {dataset: summary, **of_parts}
        elif not any(of["count"] for of in of_parts.values()):
            continue
        for label, of in of_parts.items():
            yield [label, str(of["count"]), *(cell(of.get(name)) for name in measures)]


def _interval_table(summaries: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> TextTable:
    """A row per measure: with a column of brackets each, one per dataset would fit no page."""
    shown = {name: summary for name, summary in summaries.items() if any(summary["intervals"].values())}
    rows = [
        [name, *(cell_with_interval(of.get(name), of["intervals"].get(name)) for of in shown.values())]
        for name in measures
        if shown
    ]
    note = "Bootstrap over the images of a dataset; the chance of training is not in it."
    return TextTable("95 % intervals", ["measure", *shown], rows, [note])


def empty_table(summaries: Mapping[str, Mapping[str, Any]]) -> Iterator[TextTable]:
    """What is seen in images without an object, a row per summary that has any; no table where none has."""
    rows = []
    for dataset, summary in summaries.items():
        empty = summary["empty"]
        if empty["count"]:
            values = [
                cell_with_interval(empty[name], empty["intervals"][name])
                for name in ("false_positive_area", "false_positive_rate")
            ]
            rows.append([dataset, str(empty["count"]), *values])
    note = "Area: mean share of the image called object. Rate: share of images with an object seen where none is."
    header = ["dataset", "images", "false-positive area", "false-positive rate"]
    if rows:
        yield TextTable("Images without an object", header, rows, [note])


def published_table(dataset: str, ours: Mapping[str, Mapping[str, Any]]) -> Iterator[TextTable]:
    """Our summaries by name above what is published on the dataset, if anything is."""
    methods = published_on(dataset)
    if not methods:
        return
    rows = [
        [name, "", "", *(_as_published(summary.get(measure)) for measure in PUBLISHED_MEASURES)]
        for name, summary in ours.items()
    ]
    rows += [[one.method, one.backbone, one.source, *map(_as_published, one.scores)] for one in methods]
    header = ["method", "backbone, size", "source", *PUBLISHED_MEASURES]
    notes = [warning()]
    if others := {summary["count"] for summary in ours.values()} - {images_of(dataset)}:
        counts = " and ".join(map(str, sorted(others)))
        notes.append(
            f"Published are means over {images_of(dataset)} images, here over {counts}: another set of images."
        )
    yield TextTable(f"{dataset}: beside published numbers", header, rows, notes, 3)


def _as_published(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _per_image_csv(datasets: Datasets) -> str:
    found = {name for scores in datasets.values() for record in scores.records for name in record.result.scalars}
    columns = [name for name in (*ALL_MEASURES, *_EMPTY_COLUMNS) if name in found]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "name", "group", "object_share", *columns])
    for dataset, scores in datasets.items():
        for record, share in zip(scores.records, scores.object_shares, strict=True):
            values = (finite(record.result.scalars.get(column)) for column in columns)
            cells = ("" if value is None else repr(float(value)) for value in values)
            writer.writerow([dataset, record.name, record.group, repr(float(share)), *cells])
    return text.getvalue()


def _curves_csv(datasets: Datasets) -> str:
    curves = {dataset: scores.curves() for dataset, scores in datasets.items()}
    columns = list(dict.fromkeys(name for of in curves.values() for name in of))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "threshold", *columns])
    for dataset, of in curves.items():
        for index, threshold in enumerate(datasets[dataset].thresholds() if of else ()):
            cells = (repr(float(of[name][index])) if name in of else "" for name in columns)
            writer.writerow([dataset, repr(float(threshold)), *cells])
    return text.getvalue()
