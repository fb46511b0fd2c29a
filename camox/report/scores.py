"""Test measures as tables: with their intervals, by group, and beside what others published."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from camox.measures.published import MEASURES as PUBLISHED_MEASURES
from camox.measures.published import images_of, published_on, warning
from camox.measures.rendering import MEASURES
from camox.report.run import Run
from camox.report.verdict import number, title_of
from camox.tracking.console import counted

Table = Mapping[str, Any]


def score_tables(runs: Sequence[Run], labels: Sequence[str]) -> list[Table]:
    """A table of all measures for each dataset, a column per run: `title`, `header`, `rows`, `notes`."""
    tables: list[Table] = []
    for name in _datasets(runs):
        summaries = [_summary(run, name) for run in runs]
        shown = [measure for measure in MEASURES if any(measure in summary for summary in summaries)]
        rows = [[title_of(measure), *(_with_interval(of, measure) for of in summaries)] for measure in shown]
        rows.insert(0, ["images scored", *(number(of.get("count"), 0) for of in summaries)])
        groups = dict.fromkeys(group for of in summaries for group in _tables_in(of, "groups"))
        for group in groups:
            cells = [_with_interval(_tables_in(of, "groups").get(group, {}), "iou") for of in summaries]
            rows.append([f"IoU, {group}", *cells])
        tables.append({"title": name, "header": ["measure", *labels], "rows": rows, "notes": _notes(runs, name)})
    return tables


def published_tables(runs: Sequence[Run], labels: Sequence[str]) -> list[Table]:
    """For each dataset on which anything is published, the runs' measures above that."""
    tables: list[Table] = []
    for name in _datasets(runs):
        methods = published_on(name)
        if not methods:
            continue
        ours = [
            [label, "this run", *(number(_summary(run, name).get(measure)) for measure in PUBLISHED_MEASURES)]
            for run, label in zip(runs, labels, strict=True)
        ]
        theirs = [
            [one.method, f"{one.backbone}; {one.source}", *(number(score) for score in one.scores)] for one in methods
        ]
        notes = [warning()]
        counts = {count for run in runs if isinstance(count := _summary(run, name).get("count"), int)}
        if counts - {images_of(name)}:
            notes.append(
                f"Published numbers are means over {images_of(name)} images, those of the runs over "
                f"{', '.join(map(str, sorted(counts)))}."
            )
        header = ["method", "backbone, size; source", *map(title_of, PUBLISHED_MEASURES)]
        tables.append({"title": name, "header": header, "rows": ours + theirs, "ours": len(ours), "notes": notes})
    return tables


def _datasets(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in _tables_in(run.evaluation, "datasets")))


def _tables_in(table: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
    """The tables under a key of a file that anybody may have changed."""
    found = table.get(key)
    return {name: of for name, of in found.items() if isinstance(of, dict)} if isinstance(found, dict) else {}


def _summary(run: Run, dataset: str) -> Mapping[str, Any]:
    return _tables_in(run.evaluation, "datasets").get(dataset, {})


def _with_interval(summary: Mapping[str, Any], measure: str) -> str:
    intervals = summary.get("intervals")
    interval = intervals.get(measure) if isinstance(intervals, dict) else None
    text = number(summary.get(measure))
    if isinstance(interval, list) and len(interval) == 2 and all(_is_finite(bound) for bound in interval):
        return f"{text}  [{interval[0]:.3f}, {interval[1]:.3f}]"
    return text


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _notes(runs: Sequence[Run], dataset: str) -> list[str]:
    notes: dict[str, None] = {}
    for run in runs:
        protocol = run.evaluation.get("protocol")
        if isinstance(protocol, dict) and dataset in _tables_in(run.evaluation, "datasets"):
            of = f"epoch {protocol.get('epoch')}, {protocol.get('weights')} weights, protocol {protocol.get('name')}"
            used = _tables_in(protocol, "data").get(dataset, {}).get("used_for")
            known = {"test": "test images, used for nothing else"}
            of += _together(protocol)
            notes[f"{run.name}: {of}" + (f"; {known.get(used, used)}" if used else "") + "."] = None
    return list(notes)


def _together(protocol: Mapping[str, Any]) -> str:
    """What the scores are of besides one model that sees every image once."""
    tta, others = protocol.get("tta"), protocol.get("ensemble")
    text = f", test-time augmentation {', '.join(map(str, tta))}" if isinstance(tta, list) and tta else ""
    return text + (f", with {counted(len(others), 'other model')}" if isinstance(others, list) and others else "")
