"""Scores of a dataset in parts: with intervals, by group, by object size, and as mean curves over the threshold."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from camox.measures.bootstrap import intervals, mean_interval
from camox.measures.evaluator import Evaluator, Record
from camox.measures.protocol import ALL_MEASURES, CURVE_FAMILIES, Protocol

SMALL_FROM, SMALL_UP_TO, LARGE_FROM = 0.01, 0.1, 0.5
OBJECT_SIZES = {
    "tiny": f"< {SMALL_FROM:.0%}",
    "small": f"{SMALL_FROM:.0%} to {SMALL_UP_TO:.0%}",
    "medium": f"{SMALL_UP_TO:.0%} to {LARGE_FROM:.0%}",
    "large": f"≥ {LARGE_FROM:.0%}",
}
"""Classes by the share of the image that is object. 10 % and 50 % are where COD10K's attributes "small object" and "big
object" begin (Fan et al., CVPR 2020); "tiny" is the part of its small ones below 1 %."""


@dataclass(frozen=True)
class DatasetScores:
    """What a dataset scored.

    summary: `Evaluator.summary`, with "intervals" ({measure: [low, high] or None}) in it and in each group, the same
    for "sizes" ({size: {"count", <measure> …, "intervals"}}), and "intervals" of what is in "empty".
    records: an image each, by index; object_shares: the object's share of each of these images, in [0, 1].
    """

    summary: Mapping[str, Any]
    records: Sequence[Record]
    object_shares: Sequence[float]
    protocol: Protocol
    measures: Sequence[str] = ALL_MEASURES

    def curves(self) -> dict[str, np.ndarray]:
        """Mean curves of the images in the means, float64 [256] by ascending threshold: "precision", "recall", "f",
        "e", "iou", "dice"; those there are."""
        counted = [record.result for record in self.records if record.result.counts]
        families = [family for family in CURVE_FAMILIES if counted and family in counted[0].curves]
        curve_of: dict[str, np.ndarray] = {
            family: np.mean([result.curves[family] for result in counted], axis=0) for family in families
        }
        if "f" not in curve_of or "dice" not in curve_of:
            return curve_of
        pairs = [precision_and_recall(result.curves["f"], result.curves["dice"]) for result in counted]
        precision, recall = np.mean(pairs, axis=0)
        return {"precision": precision, "recall": recall, **curve_of}

    def thresholds(self) -> np.ndarray:
        """The 256 thresholds of the curves, in [0, 1]."""
        levels = np.arange(256)
        return (levels + 0.5) / 256 if self.protocol.formulas == "exact" else levels / 255


def summarise(evaluator: Evaluator, object_shares: Mapping[int, float]) -> DatasetScores:
    """Break down what an evaluator has collected. `object_shares`: of each image, by index.

    Images without an object have no size, so under a protocol that counts them sizes sum to less than "count".
    """
    records, measures = evaluator.results, evaluator.measures
    counted = [record for record in records if record.result.counts]
    sizes: dict[str, list[Record]] = {size: [] for size in OBJECT_SIZES}
    for record in counted:
        if record.result.has_object:
            sizes[object_size(object_shares[record.index])].append(record)
    summary = evaluator.summary()
    groups = {
        group: of | _intervals([record for record in counted if record.group == group], measures)
        for group, of in summary["groups"].items()
    }
    empty = [record.result.scalars for record in records if not record.result.has_object]
    of_empty = {
        "false_positive_area": mean_interval([scalars["false_positive_area"] for scalars in empty]),
        "false_positive_rate": mean_interval([scalars["false_positive"] for scalars in empty]),
    }
    summary |= {
        **_intervals(counted, measures),
        "groups": groups,
        "sizes": {size: _part(of, evaluator) for size, of in sizes.items()},
        "empty": summary["empty"] | {"intervals": of_empty},
    }
    shares = [object_shares[record.index] for record in records]
    return DatasetScores(summary, records, shares, evaluator.protocol, measures)


def set_apart(evaluator: Evaluator, names: Collection[str]) -> Evaluator:
    """The same with the images of these names in no mean, whatever the protocol: what a map of an image without a
    camouflaged object is worth only its false positives tell."""
    apart = set(names)
    whole = Evaluator(evaluator.protocol, evaluator.measures)
    whole.extend(
        replace(record, result=replace(record.result, counts=False)) if record.name in apart else record
        for record in evaluator.results
    )
    return whole


def object_size(share: float) -> str:
    """The class of an object that covers so much of its image, in (0, 1]."""
    if share < SMALL_FROM:
        return "tiny"
    if share <= SMALL_UP_TO:
        return "small"
    return "medium" if share < LARGE_FROM else "large"


def precision_and_recall(f: np.ndarray, dice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall from F with beta² = 0.3 and Dice, at each threshold; both 0 where nothing is hit.

    1.3 / F = 1 / P + 0.3 / R and 2 / Dice = 1 / P + 1 / R: two equations, two unknowns, and no curve more to keep of
    every image.
    """
    hit = (f > 0) & (dice > 0)
    by_f, by_dice = 1.3 / np.where(hit, f, 1), 2 / np.where(hit, dice, 1)
    by_recall = (by_dice - by_f) / 0.7
    recall = np.where(hit, 1 / np.where(hit, by_recall, 1), 0.0)
    precision = np.where(hit, 1 / np.where(hit, by_dice - by_recall, 1), 0.0)
    return precision.clip(0, 1), recall.clip(0, 1)


def _part(records: Sequence[Record], evaluator: Evaluator) -> dict[str, Any]:
    part = Evaluator(evaluator.protocol, evaluator.measures)
    part.extend(records)
    summary = part.summary()
    return {key: summary[key] for key in ("count", *evaluator.measures)} | _intervals(records, evaluator.measures)


def _intervals(records: Sequence[Record], measures: Sequence[str]) -> dict[str, Any]:
    found = intervals([record.result for record in records], measures)
    return {"intervals": {name: None if interval is None else list(interval) for name, interval in found.items()}}
