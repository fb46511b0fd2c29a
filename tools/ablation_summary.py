"""Runs of an ablation become means, spreads and paired differences."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

Run = dict[str, Any]

MEASURES: dict[str, Callable[[Run], float | None]] = {
    "iou": lambda run: run["test"]["iou"],
    "s_measure": lambda run: run["test"]["s_measure"],
    "mae": lambda run: run["test"]["mae"],
    "cpu_seconds": lambda run: run["resources"] and run["resources"]["cpu_seconds"],
    "wall_seconds": lambda run: run["resources"] and run["resources"]["wall_seconds"],
    "peak_memory_bytes": lambda run: run["resources"] and run["resources"]["peak_memory_bytes"],
    "parameters": lambda run: run["parameters"],
    "dead": lambda run: run["routing"] and sum(scale["dead"] for scale in run["routing"]["scales"].values()),
    "largest_information_gained": lambda run: (
        run["routing"] and max(scale["information_gained"] for scale in run["routing"]["scales"].values())
    ),
    "other_kind_cost": lambda run: run["counterfactual"] and run["counterfactual"]["other_kind"]["cost"],
    "same_kind_cost": lambda run: run["counterfactual"] and run["counterfactual"]["same_kind"]["cost"],
    "random_cost": lambda run: run["counterfactual"] and run["counterfactual"]["random"]["cost"],
}


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds by row, and what the first row has more than each other with the same seed.

    Returns:
        `rows`: name → measure → `spread`, for what its runs have; `reference`, the first row; `differences`: name →
        measure → `spread` of the reference minus that row, with `by_seed`, over the seeds that both have.
    """
    names = list(dict.fromkeys(run["name"] for run in runs))
    by_name = {name: {run["seed"]: run for run in runs if run["name"] == name} for name in names}
    reference = by_name[names[0]]
    differences = {}
    for name in names[1:]:
        seeds = [seed for seed in reference if seed in by_name[name]]
        differences[name] = {
            measure: spread(by_seed.values()) | {"by_seed": by_seed}
            for measure in ("iou", "s_measure", "mae")
            if (by_seed := {str(s): _difference(measure, reference[s], by_name[name][s]) for s in seeds})
        }
    rows = {name: _of_row(list(by_name[name].values())) for name in names}
    return {"rows": rows, "reference": names[0], "differences": differences}


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of a single value), least, greatest and number of values."""
    values = list(values)
    deviation = stdev(values) if len(values) > 1 else None
    return {
        "mean": fmean(values),
        "deviation": deviation,
        "minimum": min(values),
        "maximum": max(values),
        "runs": len(values),
    }


def mean_usage(runs: Sequence[Run], stride: str, kind: str) -> list[float]:
    """Each expert's share of the choices of one kind at one scale, mean over runs."""
    usages = [run["routing"]["scales"][stride]["usage_by_kind"][kind] for run in runs]
    return [fmean(shares) for shares in zip(*usages, strict=True)]


def _of_row(runs: Sequence[Run]) -> dict[str, Any]:
    row = {}
    for measure, read in MEASURES.items():
        values = [value for run in runs if (value := read(run)) is not None]
        if values:
            row[measure] = spread(values)
    return row


def _difference(measure: str, ours: Run, theirs: Run) -> float:
    a, b = MEASURES[measure](ours), MEASURES[measure](theirs)
    assert a is not None, measure
    assert b is not None, measure
    return a - b
