"""From the sums that a logging interval gathered to the names that people and trackers see."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from camox.measures.routing import routing_measures

Sums = Mapping[str, np.ndarray]
Scores = dict[str, dict[str, Any]]
"""Summaries of an evaluator: "val" of the raw weights, "val_ema" of the averaged ones."""


def training_values(
    batches: Sums, steps: Sums, costs: Mapping[str, float], strides: Sequence[int], learned: bool = True
) -> dict[str, float]:
    """Loss terms, gradient norms and routing of one interval.

    Args:
        batches: sums over all micro-batches of all ranks.
        steps: sums over optimizer steps, each rank having counted the same ones.
        costs: name → multiply-adds per pixel of each expert, in order.
        strides: the scales that have experts.
        learned: whether routers choose them.
    """
    count = batches["batches"]
    values = {
        "train/loss": _ratio(batches["loss/loss"], count),
        "train/iou": _ratio(batches["iou"], batches["images"]),
    }
    for name in batches:
        if name.startswith("loss/") and name != "loss/loss":
            values[f"train/{name}"] = _ratio(batches[name], count)
        elif name.startswith("router/"):
            values[name] = _ratio(batches[name], count)
    values |= _gradient_values(steps)
    values |= _routing_values(batches, costs, strides, learned)
    return values


def _gradient_values(steps: Sums) -> dict[str, float]:
    values = {
        name.replace("norm/", "grad_norm/"): _ratio(total, steps["taken"])
        for name, total in steps.items()
        if name.startswith("norm/") and steps["taken"] > 0
    }
    for name in ("router", "rest"):
        values[f"grad_norm/clipped/{name}"] = _ratio(steps[f"clipped/{name}"], steps["steps"])
    values["amp/skip_rate"] = 1 - _ratio(steps["taken"], steps["steps"])
    return values


def _routing_values(
    batches: Sums, costs: Mapping[str, float], strides: Sequence[int], learned: bool
) -> dict[str, float]:
    values: dict[str, float] = {}
    for stride in strides:
        prefix = f"{stride}/"
        sums = {name.removeprefix(prefix): total for name, total in batches.items() if name.startswith(prefix)}
        measures = routing_measures(sums, costs, learned)
        values |= {f"router/stride_{stride}/{name}": value for name, value in measures.items()}
    balances = [value for name, value in values.items() if name.endswith("/load_balance")]
    if balances:
        values["router/load_balance"] = float(np.mean(balances))
    return values


def _ratio(total: np.ndarray, count: np.ndarray) -> float:
    return float(total) / float(count) if count > 0 else float("nan")


def score_values(scores: Scores) -> dict[str, Any]:
    """An evaluator's summaries by prefix ("val", "val_ema") as flat names: `val/iou`, `val/forest/iou`, and
    `val/false_positive_area` on images without an object."""
    values: dict[str, Any] = {}
    for prefix, summary in scores.items():
        values |= {f"{prefix}/{name}": value for name, value in summary.items() if name not in ("groups", "empty")}
        values |= {f"{prefix}/{group}/iou": of["iou"] for group, of in summary["groups"].items() if "iou" in of}
        if summary["empty"]["count"]:
            values[f"{prefix}/false_positive_area"] = summary["empty"]["false_positive_area"]
    return values


def reference_scales(min_scale: float) -> dict[str, float]:
    """Constants to see the fp16 loss scale beside: where a run is rolled back, and where earlier trainers of this model
    warned and gave up. Theirs are lines to look at only: a falling scale is how overflow is met."""
    return {
        "amp/reference/min_scale": min_scale,
        "amp/reference/origin_warning": 16384.0,
        "amp/reference/origin_critical": 1024.0,
    }


class Clock:
    """Seconds since the last lap, and how many of them went into waiting for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self.images = 0
        """Counted by the loop since the last lap, those of this process."""

    def waiting(self) -> "Clock":
        """Time spent in the block counts as waiting."""
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._waited += time.perf_counter() - self._entered

    def lap(self, processes: int) -> dict[str, float]:
        """What is logged of the time since the last lap, of so many processes together."""
        now = time.perf_counter()
        seconds, waited, images = now - self._start, self._waited, self.images
        self._start, self._waited, self.images = now, 0.0, 0
        return {"train/images_per_second": images * processes / seconds, "train/data_wait": waited / seconds}
