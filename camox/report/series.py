"""Curves of few enough points to draw, that still show every peak."""

import math
from collections.abc import Sequence

import numpy as np

MOST_POINTS = 1000


def thinned(
    steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS
) -> tuple[list[int], list[float | None]]:
    """At most `most` points of a curve: the first, the last, and the least and greatest of each stretch between them.

    Values have five significant digits; one that is not finite is None, a gap, unless its stretch has finite ones.
    """
    numbers = np.asarray(values, np.float64)
    kept = np.arange(len(numbers))
    if len(numbers) > most:
        inner = np.array_split(kept[1:-1], (most - 2) // 2)
        kept = np.unique([0, len(numbers) - 1, *(place for part in inner for place in _extremes(numbers, part))])
    places = kept.tolist()
    return [steps[place] for place in places], [rounded(float(numbers[place])) for place in places]


def rounded(value: float) -> float | None:
    """Five significant digits; None for what JSON cannot hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _extremes(numbers: np.ndarray, part: np.ndarray) -> list[int]:
    finite = part[np.isfinite(numbers[part])]
    if not len(finite):
        return [int(part[0])]
    return [int(finite[numbers[finite].argmin()]), int(finite[numbers[finite].argmax()])]
