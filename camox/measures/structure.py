"""S-measure (Fan et al., ICCV 2017, alpha = 0.5) from sums over the four quadrants around the object's centre.

The reference's flavour equals pysodmetrics, with its epsilons, which take from the S of a perfect map of a tiny
object, and its NaN where the object's centre lies on the last row or column. The exact one leaves both out. As
published, S rewards the background: an empty map of a small object has an S near 0.9 under either.
"""

import math
from typing import NamedTuple

import numpy as np

from camox.measures.curves import EPSILON


class Moments(NamedTuple):
    """Number, sum and sum of squares of the probabilities of some pixels."""

    pixels: float
    total: float
    squares: float

    def __add__(self, other: "Moments") -> "Moments":  # type: ignore[override]
        return Moments(self.pixels + other.pixels, self.total + other.total, self.squares + other.squares)


class Quadrant(NamedTuple):
    """The pixels of one quadrant by truth. `constant` is the one value that the map has in all of it, else None."""

    background: Moments
    object: Moments
    constant: float | None

    @property
    def pixels(self) -> float:
        return self.background.pixels + self.object.pixels


def s_measure(quadrants: list[Quadrant], shape: tuple[int, int], centre: tuple[int, int], exact: bool) -> float:
    """S of one image: in [0, 1] if `exact`, else as pysodmetrics computes it, NaN included.

    quadrants: upper left, upper right, lower left, lower right; their common corner is `centre`, the (rows, columns)
    of the upper left one. shape: (H, W). For the exact flavour the truth must have an object pixel.
    """
    background, inside = (sum(parts[1:], parts[0]) for parts in list(zip(*quadrants, strict=True))[:2])
    pixels = background.pixels + inside.pixels
    if inside.pixels == 0:
        return 1 - background.total / pixels
    if background.pixels == 0:
        return inside.total / pixels
    share, epsilon = inside.pixels / pixels, 0.0 if exact else EPSILON
    unlike = Moments(  # the moments of 1 - p
        background.pixels,
        background.pixels - background.total,
        background.pixels - 2 * background.total + background.squares,
    )
    of_object = share * _similarity(inside, epsilon) + (1 - share) * _similarity(unlike, epsilon)
    of_region = 0.0
    for number, quadrant in enumerate(quadrants):
        if quadrant.pixels:
            flat = _is_flat(quadrant, number, shape, centre, exact)
            of_region += quadrant.pixels * _structural_similarity(quadrant, flat, epsilon)
        elif not exact:
            return math.nan
    whole = 0.5 * of_object + 0.5 * of_region / pixels
    return max(0.0, min(whole, 1.0) if exact else whole)


def _similarity(values: Moments, epsilon: float) -> float:
    mean = values.total / values.pixels
    variance = (values.squares - values.pixels * mean * mean) / max(values.pixels - 1, 1)
    return 2 * mean / (mean * mean + 1 + math.sqrt(max(variance, 0.0)) + epsilon)


def _structural_similarity(quadrant: Quadrant, flat: bool, epsilon: float) -> float:
    pixels = quadrant.pixels
    if quadrant.object.pixels in (0, pixels):
        # No covariance: 1 where nothing varies, and 0 where the map alone does.
        return 1.0 if flat else 0.0
    both = quadrant.background + quadrant.object
    mean_p, mean_t = both.total / pixels, quadrant.object.pixels / pixels
    # The three are computed alike, so that for a perfect map they are the same number.
    variance_p = both.squares - pixels * mean_p * mean_p
    variance_t = quadrant.object.pixels - pixels * mean_t * mean_t
    covariance = quadrant.object.total - pixels * mean_p * mean_t
    freedom = pixels - 1 + epsilon
    alignment = 4 * mean_p * mean_t * covariance / freedom
    return alignment / ((mean_p * mean_p + mean_t * mean_t) * (variance_p + variance_t) / freedom + epsilon)


def _is_flat(quadrant: Quadrant, number: int, shape: tuple[int, int], centre: tuple[int, int], exact: bool) -> bool:
    """Whether the map varies nowhere in the quadrant.

    The reference subtracts numpy's mean of the quadrant. Where summation has rounded it, a constant map seems to vary,
    and whether it does depends on the order in memory: this is found out by doing the same.
    """
    constant = quadrant.constant
    if exact or constant in (None, 0.0, 1.0):
        return constant is not None
    rows, columns = centre
    vertical = slice(None, rows) if number < 2 else slice(rows, None)
    horizontal = slice(None, columns) if number % 2 == 0 else slice(columns, None)
    return bool(np.full(shape, constant)[vertical, horizontal].mean() == constant)
