"""Scores become files: measures.json and per_image.csv for programs, table.md and table.tex for papers.

Every file is written beside its place and then renamed, so that a reader never sees half of one.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from camox.measures.evaluator import Record
from camox.measures.protocol import ALL_MEASURES

Datasets = Mapping[str, tuple[Mapping[str, Any], Iterable[Record]]]
"""By dataset: its summary (`Evaluator.summary`) and a record per image."""

_TITLES = {
    "s_measure": ("S", "$S_\\alpha$"),
    "f_weighted": ("wF", "$F_\\beta^w$"),
    "f_max": ("F max", "$F_\\beta^{\\max}$"),
    "f_mean": ("F mean", "$F_\\beta^{\\mathrm{mean}}$"),
    "f_adaptive": ("F adp", "$F_\\beta^{\\mathrm{adp}}$"),
    "e_max": ("E max", "$E_\\phi^{\\max}$"),
    "e_mean": ("E mean", "$E_\\phi^{\\mathrm{mean}}$"),
    "e_adaptive": ("E adp", "$E_\\phi^{\\mathrm{adp}}$"),
    "mae": ("MAE", "$M$"),
    "iou": ("IoU", "IoU"),
    "dice": ("Dice", "Dice"),
}
"""Columns of the tables for people; the other measures are in measures.json."""

_EMPTY_COLUMNS = ("false_positive_area", "false_positive")


def write_scores(folder: str | Path, datasets: Datasets, protocol: Mapping[str, object]) -> None:
    """Write measures.json, per_image.csv, table.md and table.tex into a folder, made where it does not exist.

    `protocol` is `Protocol.as_dict()`. measures.json holds `{"protocol", "datasets": {name: summary}}`; a
    value that is undefined is null there and an empty cell elsewhere. Numbers in the JSON and CSV files
    read back to the last bit. Raises OSError where the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summaries = {name: summary for name, (summary, _) in datasets.items()}
    document = _finite({"protocol": dict(protocol), "datasets": summaries})
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / "measures.json", text + "\n")
    _write(folder / "per_image.csv", _per_image_csv(datasets))
    _write(folder / "table.md", _markdown(summaries, str(protocol["name"])))
    _write(folder / "table.tex", _latex(summaries, str(protocol["name"])))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    # JSON has no NaN; Python's writer would invent one.
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _per_image_csv(datasets: Datasets) -> str:
    rows = [(dataset, record) for dataset, (_, records) in datasets.items() for record in records]
    found = {name for _, record in rows for name in record.result.scalars}
    columns = [name for name in (*ALL_MEASURES, *_EMPTY_COLUMNS) if name in found]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "name", "group", *columns])
    for dataset, record in rows:
        values = (_finite(record.result.scalars.get(column)) for column in columns)
        cells = ("" if value is None else repr(float(value)) for value in values)
        writer.writerow([dataset, record.name, record.group, *cells])
    return text.getvalue()


def _rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Measures to show, and a row of cells per dataset followed by one per group of it."""
    measures = [name for name in _TITLES if any(name in summary for summary in summaries.values())]
    rows = []
    for dataset, summary in summaries.items():
        parts = {dataset: summary} | {f"{dataset} / {group}": of for group, of in summary["groups"].items()}
        for label, part in parts.items():
            rows.append([label, str(part["count"]), *(_cell(part.get(name)) for name in measures)])
    return measures, rows


def _cell(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _empty_sentence(dataset: str, empty: Mapping[str, Any]) -> str:
    return (
        f"{dataset}: {empty['count']} images without an object, false-positive area "
        f"{_cell(empty['false_positive_area'])}, false-positive rate {_cell(empty['false_positive_rate'])}."
    )


def _empty_sentences(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    with_empty = {name: summary["empty"] for name, summary in summaries.items() if summary["empty"]["count"]}
    return [_empty_sentence(name, empty) for name, empty in with_empty.items()]


def _markdown(summaries: Mapping[str, Mapping[str, Any]], protocol: str) -> str:
    measures, rows = _rows(summaries)
    header = ["dataset", "images", *(_TITLES[name][0] for name in measures)]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[row[0].replace("|", "\\|"), *row[1:]] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *_empty_sentences(summaries), f"Protocol: {protocol}."]) + "\n"


def _latex(summaries: Mapping[str, Mapping[str, Any]], protocol: str) -> str:
    measures, rows = _rows(summaries)
    header = ["dataset", "images", *(_TITLES[name][1] for name in measures)]
    lines = [
        f"% protocol: {protocol}; needs the package booktabs",
        *(f"% {sentence}" for sentence in _empty_sentences(summaries)),
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        "\\toprule",
        " & ".join(header) + " \\\\",
        "\\midrule",
        *(" & ".join(_latex_text(cell) for cell in row) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_text(text: str) -> str:
    escapes = {character: f"\\{character}" for character in "&%$#_{}"}
    escapes |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--"}
    return "".join(escapes.get(character, character) for character in text)
