"""How much of a model's scores is left when images get worse: every corruption at every severity, on every dataset."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from camox.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from camox.data.loading import EvalSet
from camox.inference.scoring.results import write
from camox.inference.scoring.score_plots import draw_robustness
from camox.measures.evaluator import Evaluator
from camox.measures.rendering import MEASURES, TextTable, latex, markdown
from camox.measures.tables import cell, protocol_notes, write_json, write_text
from camox.tracking.console import Console

PASSES = 1 + len(CORRUPTIONS) * len(SEVERITIES)
"""How often a dataset is scored: once as it is, and once with each corruption at each severity."""
ROBUSTNESS_MEASURES = ("s_measure", "f_weighted", "e_mean", "mae", "iou")
_SHOWN = ("s_measure", "f_weighted", "mae")
_DROP_NOTE = (
    "Drop: 1 - mean over severities / score without corruption, in percent; of MAE, which rises, the rise. "
    "Corruptions are made of the image at the size the model sees; formulas are in docs/evaluation.md."
)


def measure_robustness(score: Callable[[EvalSet, str, Sequence[str]], Evaluator], clean: EvalSet) -> dict[str, Any]:
    """Scores of a dataset without corruption and with each.

    `score` scores a dataset, under a name that tells what was done to it, on the measures it is given.

    Returns:
        `{"clean": {measure: value}, "corruptions": {kind: {"severities": {"1": {measure: value} …}, "mean", "drop"}},
        "mean", "drop"}`: means over severities and, at the end, over kinds too; drops relative to "clean", None where
        that is 0.
    """
    without = _values(score(clean, "uncorrupted", ROBUSTNESS_MEASURES))
    kinds: dict[str, Any] = {}
    for kind in CORRUPTIONS:
        severities = {}
        for severity in SEVERITIES:
            worse = EvalSet(clean.source, clean.image_size, partial(corrupt, kind=kind, severity=severity))
            severities[str(severity)] = _values(score(worse, f"{kind} {severity}", ROBUSTNESS_MEASURES))
        mean = _mean(list(severities.values()))
        kinds[kind] = {"severities": severities, "mean": mean, "drop": _drop(without, mean)}
    mean = _mean([of["mean"] for of in kinds.values()])
    return {"clean": without, "corruptions": kinds, "mean": mean, "drop": _drop(without, mean)}


def report_robustness(
    of_datasets: Mapping[str, Mapping[str, Any]], protocol: Mapping[str, Any], out: str | Path, console: Console
) -> None:
    """Print what `measure_robustness` gave of each dataset, and write corruptions.json, .md, .tex and a PNG of each.

    Raises DataError where `out` cannot be written.
    """
    tables = [_table(dataset, of, measure) for dataset, of in of_datasets.items() for measure in _SHOWN]
    for dataset, of in of_datasets.items():
        for measure in _SHOWN:
            table = _table(dataset, of, measure)
            console.table(table.title, table.header, table.rows)

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "corruptions.json", {"protocol": dict(protocol), "datasets": dict(of_datasets)})
        notes = [_DROP_NOTE, *protocol_notes(protocol)]
        write_text(folder / "corruptions.md", markdown(tables, notes))
        write_text(folder / "corruptions.tex", latex(tables, notes))
        for name, (dataset, of) in zip(picture_names(len(of_datasets)), of_datasets.items(), strict=True):
            lines = {MEASURES[measure][0]: _lines(of, measure) for measure in _SHOWN}
            clean = {MEASURES[measure][0]: of["clean"][measure] for measure in _SHOWN}
            draw_robustness(dataset, lines, clean, folder / name)

    write(out, save)
    console.notice(_DROP_NOTE)
    console.notice(f"corruptions.json, corruptions.md, corruptions.tex and pictures are in {out}")


def picture_names(datasets: int) -> list[str]:
    """File names of the pictures: corruptions.png, or with the dataset's number behind where there are several."""
    if datasets == 1:
        return ["corruptions.png"]
    return [f"corruptions_{number}.png" for number in range(1, datasets + 1)]


def _values(evaluator: Evaluator) -> dict[str, float | None]:
    summary = evaluator.summary()
    return {measure: summary[measure] for measure in ROBUSTNESS_MEASURES}


def _mean(values: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for measure in ROBUSTNESS_MEASURES:
        known = [value for of in values if (value := of[measure]) is not None]
        means[measure] = sum(known) / len(values) if len(known) == len(values) else None
    return means


def _drop(clean: Mapping[str, float | None], worse: Mapping[str, float | None]) -> dict[str, float | None]:
    drops: dict[str, float | None] = {}
    for measure in ROBUSTNESS_MEASURES:
        before, after = clean[measure], worse[measure]
        if not before or after is None:
            drops[measure] = None
        else:
            drops[measure] = after / before - 1 if measure == "mae" else 1 - after / before
    return drops


def _lines(of: Mapping[str, Any], measure: str) -> dict[str, list[float | None]]:
    return {
        kind: [severity[measure] for severity in one["severities"].values()] for kind, one in of["corruptions"].items()
    }


def _table(dataset: str, of: Mapping[str, Any], measure: str) -> TextTable:
    header = ["corruption", *map(str, SEVERITIES), "mean", "rise" if measure == "mae" else "drop"]
    rows = [["none", *("" for _ in SEVERITIES), cell(of["clean"][measure]), ""]]
    rows += [
        [kind, *map(cell, _lines(of, measure)[kind]), cell(one["mean"][measure]), _percent(one["drop"][measure])]
        for kind, one in of["corruptions"].items()
    ]
    rows.append(["all", *("" for _ in SEVERITIES), cell(of["mean"][measure]), _percent(of["drop"][measure])])
    return TextTable(f"{dataset}: {MEASURES[measure][0]} by severity", header, rows)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
