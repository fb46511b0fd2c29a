"""Measures of a binarised map: F, E, IoU and Dice at 256 thresholds and at the map's adaptive threshold.

F: Achanta et al., CVPR 2009, beta² = 0.3. E: Fan et al., IJCAI 2018. Each has two flavours, the reference's and the
exact one, defined in `camox.measures.protocol`. Curves are float64 [256], by ascending threshold.
"""

from typing import Any, NamedTuple

import numpy as np

THRESHOLDS = 256
F_BETA_SQUARED = 0.3
EPSILON = float(np.spacing(1.0))
"""What pysodmetrics adds to divisors."""


class Counts(NamedTuple):
    """Pixels by prediction and truth; integers, or integer arrays with one entry per threshold."""

    tp: Any
    fp: Any
    fn: Any
    tn: Any


def reached_thresholds(values: np.ndarray, exact: bool) -> np.ndarray:
    """How many of the 256 thresholds each probability reaches, uint16 in 0 … 256 (1 … 256 in the reference's way).

    `exact`: thresholds (k + 0.5) / 256. Otherwise k on floor(255 p), of which 0 is always reached.
    """
    return (values * 256 + 0.5).astype(np.uint16) if exact else (values * 255).astype(np.uint16) + np.uint16(1)


def counts_by_threshold(reached: np.ndarray) -> Counts:
    """Counts at each threshold; `reached`: pixels of background and object by how many they reach, int [2, 257]."""
    at_least = reached[:, ::-1].cumsum(axis=1)[:, ::-1]
    (background, positives), (fp, tp) = at_least[:, 0], at_least[:, 1:]
    return Counts(tp, fp, positives - tp, background - fp)


def score(family: str, counts: Counts, exact: bool) -> Any:
    """F, E, IoU or Dice ("f", "e", "iou", "dice") of the counts; exact ones lie in [0, 1].

    F, IoU and Dice are 0 where neither map nor truth has an object pixel.
    """
    if family == "e":
        return enhanced_alignment(counts) if exact else reference_alignment(counts)
    tp, fp, fn, _ = counts
    if family == "iou":
        return _quotient(tp, tp + fp + fn)
    if family == "dice":
        return _quotient(2 * tp, 2 * tp + fp + fn)
    precision, recall = _quotient(tp, tp + fp), _quotient(tp, tp + fn)
    return _quotient((1 + F_BETA_SQUARED) * precision * recall, F_BETA_SQUARED * precision + recall)


def _quotient(numerator: Any, denominator: Any) -> Any:
    """0 where the denominator is; the numerator is 0 there too."""
    return numerator / (denominator + (denominator == 0))


def enhanced_alignment(counts: Counts) -> Any:
    """E of the counts, in [0, 1]: mean over the pixels of (1 + alignment)² / 4.

    0.25 is the value of a map that says nothing (no pixel or every pixel called object). With the whole
    image as the truth, E is the share called object. The truth must have an object pixel.
    """
    pixels = sum(counts)
    if np.all(counts.fp + counts.tn == 0):
        return counts.tp / pixels
    # The truth is neither empty nor full, so no divisor is 0 and none needs an epsilon.
    return np.minimum(_alignment_sum(counts, 0.0) / pixels, 1.0)


def reference_alignment(counts: Counts) -> Any:
    """E of the counts as pysodmetrics has it: a sum over pixels - 1, so that it may exceed 1 on a small image."""
    pixels = sum(counts)
    if np.all(counts.tp + counts.fn == 0):
        total = counts.tn
    elif np.all(counts.fp + counts.tn == 0):
        total = counts.tp
    else:
        total = _alignment_sum(counts, EPSILON)
    return total / (pixels - 1 + EPSILON)


def _alignment_sum(counts: Counts, epsilon: float) -> Any:
    pixels = sum(counts)
    predicted, true = (counts.tp + counts.fp) / pixels, (counts.tp + counts.fn) / pixels
    parts = (
        (counts.tp, 1 - predicted, 1 - true),
        (counts.fp, 1 - predicted, -true),
        (counts.fn, -predicted, 1 - true),
        (counts.tn, -predicted, -true),
    )
    return sum(count * (1 + 2 * a * b / (a * a + b * b + epsilon)) ** 2 / 4 for count, a, b in parts)
