"""Measures of a binarised map: F, E, IoU and Dice at 256 thresholds and at the map's adaptive threshold.

F: Achanta et al., CVPR 2009, beta² = 0.3. E: Fan et al., IJCAI 2018. The reference's values are pysodmetrics'
own; the exact ones are defined in `camox.measures.protocol`. Curves are float64 [256], by ascending
threshold.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from py_sod_metrics import DICEHandler, Emeasure, FmeasureHandler, FmeasureV2, IOUHandler

_HANDLERS = {"f": FmeasureHandler, "iou": IOUHandler, "dice": DICEHandler}


class Counts(NamedTuple):
    """Pixels by prediction and truth; integers, or integer arrays with one entry per threshold."""

    tp: Any
    fp: Any
    fn: Any
    tn: Any


def count_pixels(predicted: np.ndarray, truth: np.ndarray) -> Counts:
    """Count a binary prediction, bool [H, W], against a truth, bool [H, W]."""
    positives = int(np.count_nonzero(truth))
    tp = int(np.count_nonzero(predicted & truth))
    fp = int(np.count_nonzero(predicted)) - tp
    return Counts(tp, fp, positives - tp, truth.size - positives - fp)


def overlap(family: str, counts: Counts) -> Any:
    """F, IoU or Dice ("f", "iou", "dice"), in [0, 1]; 0 where neither map nor truth has an object pixel."""
    return _HANDLERS[family](False, False)(**counts._asdict())


def reference_scores(
    probability: np.ndarray, truth: np.ndarray, curves: Collection[str], adaptive: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Curves and adaptive values of the named families as pysodmetrics computes them.

    probability: float64 [H, W] in [0, 1], already stretched; truth: bool [H, W].
    """
    curve_of: dict[str, np.ndarray] = {}
    adaptive_of: dict[str, float] = {}
    overlaps = {
        family: _HANDLERS[family](family in curves, family in adaptive)
        for family in _HANDLERS
        if family in curves or family in adaptive
    }
    if overlaps:
        FmeasureV2(overlaps).step(probability, truth, normalize=False)
    for family, handler in overlaps.items():
        if family in curves:
            curve_of[family] = np.flip(handler.dynamic_results[0])  # the library counts thresholds downwards
        if family in adaptive:
            adaptive_of[family] = float(handler.adaptive_results[0])
    if "e" in curves or "e" in adaptive:
        e_measure = Emeasure()
        e_measure.step(probability, truth, normalize=False)
        if "e" in curves:
            curve_of["e"] = np.flip(e_measure.changeable_ems[0])
        if "e" in adaptive:
            adaptive_of["e"] = float(e_measure.adaptive_ems[0])
    return curve_of, adaptive_of


def exact_scores(
    probability: np.ndarray, truth: np.ndarray, curves: Collection[str], adaptive: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Curves and adaptive values of the named families; one histogram serves every family.

    probability: float [H, W] in [0, 1]; truth: bool [H, W] with at least one object pixel.
    """
    curve_of: dict[str, np.ndarray] = {}
    adaptive_of: dict[str, float] = {}
    if curves:
        counts = _count_by_threshold(probability, truth)
        curve_of = {family: _exact_score(family, counts) for family in curves}
    if adaptive:
        threshold = min(2 * probability.mean(dtype=np.float64), 1.0)
        # An empty map has threshold 0, which without the second condition would call every pixel object.
        counts = count_pixels((probability >= threshold) & (probability > 0), truth)
        adaptive_of = {family: float(_exact_score(family, counts)) for family in adaptive}
    return curve_of, adaptive_of


def _count_by_threshold(probability: np.ndarray, truth: np.ndarray) -> Counts:
    # A pixel's level, 0 … 256, is the number of thresholds (k + 0.5) / 256 that it reaches.
    level = (probability * 256 + 0.5).astype(np.intp)
    joint = np.bincount((2 * level + truth).ravel(), minlength=2 * 257).reshape(257, 2)
    fp, tp = joint[::-1].cumsum(axis=0)[::-1][1:].T
    background, positives = joint.sum(axis=0)
    return Counts(tp, fp, positives - tp, background - fp)


def _exact_score(family: str, counts: Counts) -> Any:
    return enhanced_alignment(counts) if family == "e" else overlap(family, counts)


def enhanced_alignment(counts: Counts) -> Any:
    """E of the counts, in [0, 1]: mean over the pixels of (1 + alignment)² / 4.

    0.25 is the value of a map that says nothing (no pixel or every pixel called object). With the whole
    image as the truth, E is the share called object. The truth must have an object pixel.
    """
    positives = counts.tp + counts.fn
    pixels = positives + counts.fp + counts.tn
    if np.all(counts.fp + counts.tn == 0):
        return counts.tp / pixels
    predicted_share = (counts.tp + counts.fp) / pixels
    true_share = positives / pixels
    parts = (
        (counts.tp, 1 - predicted_share, 1 - true_share),
        (counts.fp, 1 - predicted_share, -true_share),
        (counts.fn, -predicted_share, 1 - true_share),
        (counts.tn, -predicted_share, -true_share),
    )
    # The truth is neither empty nor full, so b is never 0 and the quotient needs no epsilon.
    total = sum(count * (1 + 2 * a * b / (a * a + b * b)) ** 2 / 4 for count, a, b in parts)
    return np.minimum(total / pixels, 1.0)
