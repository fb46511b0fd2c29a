"""Measures of the map itself, without a threshold: S-measure and weighted F.

S: Fan et al., ICCV 2017, alpha = 0.5. Weighted F: Margolin et al., CVPR 2014, beta² = 1. The reference's
values are pysodmetrics' own; the exact ones leave out its epsilons, which take from the S of a perfect map
of a tiny object, and its NaN where an object's centre lies on the last row or column. As published, S
rewards the background: an empty map of a small object has an S near 0.9 under either.

All take probability float64 [H, W] in [0, 1] and truth bool [H, W].
"""

import warnings

import numpy as np
from py_sod_metrics import Smeasure, WeightedFmeasure


def reference_s_measure(probability: np.ndarray, truth: np.ndarray) -> float:
    """S as pysodmetrics computes it; NaN where it gives NaN (an object centred on the last row or column)."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return float(Smeasure().cal_sm(probability, truth))


def reference_weighted_f(probability: np.ndarray, truth: np.ndarray) -> float:
    """Weighted F as pysodmetrics computes it, in [0, 1]; 0 where the truth has no object."""
    measure = WeightedFmeasure()
    measure.step(probability, truth, normalize=False)
    return float(measure.weighted_fms[0])


def exact_weighted_f(probability: np.ndarray, truth: np.ndarray) -> float:
    """Weighted F in [0, 1]; exactly 1 for a perfect map."""
    # The library's epsilon takes 2e-16 from a perfect map of a single pixel; 15 digits give it back.
    return round(reference_weighted_f(probability, truth), 15)


def exact_s_measure(probability: np.ndarray, truth: np.ndarray) -> float:
    """S in [0, 1]; exactly 1 for a perfect map. The truth must have an object pixel."""
    share = truth.mean()
    if share == 1:
        return float(probability.mean())
    object_score = share * _object_similarity(probability[truth]) + (1 - share) * _object_similarity(
        1 - probability[~truth]
    )
    return float(np.clip(0.5 * object_score + 0.5 * _region_similarity(probability, truth), 0, 1))


def _object_similarity(values: np.ndarray) -> float:
    mean = values.mean()
    deviation = values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean * mean + 1 + deviation))


def _region_similarity(probability: np.ndarray, truth: np.ndarray) -> float:
    # Four quadrants around the object's centre, which itself belongs to the upper left one.
    rows, columns = (int(centre.mean().round()) + 1 for centre in np.nonzero(truth))
    total = 0.0
    for vertical in (slice(None, rows), slice(rows, None)):
        for horizontal in (slice(None, columns), slice(columns, None)):
            quadrant = probability[vertical, horizontal]
            if quadrant.size:
                total += quadrant.size * _structural_similarity(quadrant, truth[vertical, horizontal])
    return total / truth.size


def _structural_similarity(probability: np.ndarray, truth: np.ndarray) -> float:
    mean_p, mean_t = probability.mean(), truth.mean()
    if mean_p == 0 and mean_t == 0:
        return 1.0  # the common case, a quadrant without object that was predicted so
    freedom = max(probability.size - 1, 1)
    deviation_p, deviation_t = probability - mean_p, truth - mean_t
    variances = ((deviation_p * deviation_p).sum() + (deviation_t * deviation_t).sum()) / freedom
    covariance = (deviation_p * deviation_t).sum() / freedom
    numerator = 4 * mean_p * mean_t * covariance
    denominator = (mean_p * mean_p + mean_t * mean_t) * variances
    if denominator == 0:
        return 1.0
    return float(numerator / denominator)
