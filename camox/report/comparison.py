"""Several runs side by side: how each ended, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from camox.report.facts import state_in_words, worst_name
from camox.report.gallery import Examined
from camox.report.phases import spans_of
from camox.report.routers import at_strides
from camox.report.run import Run
from camox.report.verdict import Verdict, number, title_of

_NAMES = ("experiment.name", "experiment.output", "experiment.notes", "experiment.tags")


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run that no other has: the experiment's, else the folder's path."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]


def outcome_table(
    runs: Sequence[Run], verdicts: Sequence[Verdict], examined: Sequence[Examined], labels: Sequence[str]
) -> Mapping[str, Any]:
    """A column per run: state, collapse, phases, worst image, best score, trouble."""
    monitors = [title_of(run.monitor) for run in runs]
    rows = [
        ["state", *map(state_in_words, verdicts)],
        ["did a router collapse?", *(_collapse(verdict) for verdict in verdicts)],
        ["best on held-out data", *(_best(verdict, name) for verdict, name in zip(verdicts, monitors, strict=True))],
        ["phases", *(_phases(run) for run in runs)],
        ["worst image", *(worst_name(run, one) for run, one in zip(runs, examined, strict=True))],
        ["missing from the folder", *("\n".join(verdict.missing) or "nothing" for verdict in verdicts)],
        ["steps", *(run.last_step for run in runs)],
        ["steps skipped", *(_last(run, "stability/skipped_batches") for run in runs)],
        ["rollbacks", *(sum(event.kind == "rollback" for event in run.events) for run in runs)],
        ["images per second, median", *(_median(run, "train/images_per_second") for run in runs)],
        ["folder", *(str(run.path) for run in runs)],
    ]
    return {"title": "Outcome", "header": ["", *labels], "rows": rows, "notes": []}


def settings_table(runs: Sequence[Run], labels: Sequence[str]) -> Mapping[str, Any]:
    """Every key of the experiments that is not the same in all of them."""
    of_runs = [dict(_flat(run.experiment.plain())) if run.experiment else {} for run in runs]
    keys = list(dict.fromkeys(key for of_run in of_runs for key in of_run if key not in _NAMES))
    rows = []
    for key in keys:
        values = [_shown(of_run[key]) if key in of_run else "–" for of_run in of_runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return {"title": "What differs in the experiments", "header": ["key", *labels], "rows": rows, "notes": []}


def _collapse(verdict: Verdict) -> str:
    signs = [str(scale.stride) for scale in verdict.routers.scales if scale.signs]
    shown = verdict.routers.answer == "no" and signs
    return verdict.routers.answer + (f", but there is a sign of it at {at_strides(signs)}" if shown else "")


def _phases(run: Run) -> str:
    return "\n".join(f"{span.name}: from epoch {span.epoch}, step {span.after + 1}" for span in spans_of(run)) or "–"


def _best(verdict: Verdict, measure: str) -> str:
    best = verdict.best
    return f"{measure} {best.score:.4f}, epoch {best.epoch}, {best.weights}" if best else "–"


def _last(run: Run, name: str) -> str:
    values = run.series(name)[1]
    return number(values[-1], 0) if values else "–"


def _median(run: Run, name: str) -> str:
    values = sorted(value for value in run.series(name)[1] if value == value)
    return number(values[len(values) // 2], 1) if values else "–"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [
            item for key, child in value.items() for item in _flat(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list | tuple) and value and all(isinstance(child, Mapping) for child in value):
        names = [str(child.get("name", position)) for position, child in enumerate(value)]
        named = names if len(set(names)) == len(names) else [str(position) for position in range(len(value))]
        return [item for name, child in zip(named, value, strict=True) for item in _flat(child, f"{prefix}.{name}")]
    return [(prefix, value)]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)
