"""From the sums that a logging interval gathered to the names that people and trackers see."""

from collections.abc import Mapping, Sequence

import numpy as np

from camox.measures.routing import routing_measures

Sums = Mapping[str, np.ndarray]


def training_values(batches: Sums, steps: Sums, experts: Sequence[str], strides: Sequence[int]) -> dict[str, float]:
    """Loss terms, gradient norms and routing of one interval.

    Args:
        batches: sums over all micro-batches of all ranks.
        steps: sums over optimizer steps, each rank having counted the same ones.
        experts: names, in order.
        strides: the scales that have a router.
    """
    count = batches["batches"]
    values = {
        "train/loss": _ratio(batches["loss/loss"], count),
        "train/iou": _ratio(batches["iou"], batches["images"]),
    }
    for name in batches:
        if name.startswith("loss/") and name not in ("loss/loss", "loss/z_loss", "loss/balance"):
            values[f"train/{name}"] = _ratio(batches[name], count)
    values["router/z_loss"] = _ratio(batches["loss/z_loss"], count)
    values |= _gradient_values(steps)
    values |= _routing_values(batches, experts, strides)
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


def _routing_values(batches: Sums, experts: Sequence[str], strides: Sequence[int]) -> dict[str, float]:
    values: dict[str, float] = {}
    balances = []
    for stride in strides:
        measures = routing_measures(
            batches[f"{stride}/counts"],
            batches[f"{stride}/probabilities"],
            float(batches[f"{stride}/entropy"]),
            batches[f"{stride}/pairs"],
            experts,
        )
        values |= {f"router/stride_{stride}/{name}": value for name, value in measures.items()}
        balances.append(measures.get("load_balance", float("nan")))
    if balances:
        values["router/load_balance"] = float(np.mean(balances))
    return values


def _ratio(total: np.ndarray, count: np.ndarray) -> float:
    return float(total) / float(count) if count > 0 else float("nan")
