"""The rival of our measures, pysodmetrics, run its own way and read under our names."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import py_sod_metrics as pysod

PARTS = {
    "S": ("s_measure",),
    "weighted F": ("f_weighted",),
    "E": ("e_max", "e_mean", "e_adaptive"),
    "F, IoU, Dice": tuple(
        f"{family}_{kind}" for family in ("f", "iou", "dice") for kind in ("max", "mean", "adaptive")
    ),
    "MAE": ("mae",),
}
"""Part of the measures that one class of the library computes → our names for its values."""

Pairs = Iterable[tuple[np.ndarray, np.ndarray]]


def reference_measures(pairs: Pairs, parts: Sequence[str] = tuple(PARTS)) -> dict[str, float]:
    """Measures of (prediction, truth) pairs, uint8 [H, W], as the library sums them up.

    `iou` and `dice` at 0.5 are left out: the library stretches the map first.
    """
    measures = {part: _measure(part) for part in parts}
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        for prediction, truth in pairs:
            for measure in measures.values():
                measure.step(prediction, truth)
    values: dict[str, float] = {}
    for part, measure in measures.items():
        values |= _named(part, measure.get_results())
    return {name: float(value) for name, value in values.items()}


def _measure(part: str) -> Any:
    single = {"S": pysod.Smeasure, "weighted F": pysod.WeightedFmeasure, "E": pysod.Emeasure, "MAE": pysod.MAE}
    if part in single:
        return single[part]()
    handlers = {"f": pysod.FmeasureHandler, "iou": pysod.IOUHandler, "dice": pysod.DICEHandler}
    return pysod.FmeasureV2(
        {name: handler(with_dynamic=True, with_adaptive=True) for name, handler in handlers.items()}
    )


def _named(part: str, results: dict[str, Any]) -> dict[str, float]:
    if part == "E":
        values = results["em"]
        return {"e_max": values["curve"].max(), "e_mean": values["curve"].mean(), "e_adaptive": values["adp"]}
    if part in ("S", "weighted F", "MAE"):
        (value,) = results.values()
        return {PARTS[part][0]: value}
    named: dict[str, float] = {}
    for family, values in results.items():
        curve = values["dynamic"]
        named |= {
            f"{family}_max": curve.max(),
            f"{family}_mean": curve.mean(),
            f"{family}_adaptive": values["adaptive"],
        }
    return named
