"""Weighted F (Margolin et al., CVPR 2014, beta² = 1) from one distance transform and one Gaussian filter.

An error outside the object counts 1 to 2 times, the more the further away. One inside is replaced by the mean around
it where that is less, and there a pixel outside has the error of the object pixel nearest to it. Only pixels within
3 of the object are ever asked for that, so the nearest pixel is looked up for these alone.
"""

import math

import cv2
import numpy as np

from camox.measures.curves import EPSILON
from camox.measures.extent import Extent

DECAY = math.log(0.5) / 5
"""Per pixel of distance: the factor of an error at distance d is 2 - exp(DECAY d)."""

REACH = 120
"""Further away than this the factor is taken to be 2; it is above 2 - 6e-8."""

RADIUS = 3
"""Of the Gaussian window."""

FURTHEST = 4
"""Rows or columns to the object pixel nearest to a corner of the window: 4, 1 is nearer than 3, 3."""

MARGIN = RADIUS + FURTHEST

_AXIS = np.exp(-(np.arange(-RADIUS, RADIUS + 1.0) ** 2) / (2 * 5**2))
KERNEL = _AXIS / _AXIS.sum()
"""One dimension of MATLAB's 7×7 Gaussian of sigma 5, float64 [7]."""

_SQUARED = 2 * RADIUS**2
NEAREST_FIRST = sorted(
    (
        (row, column)
        for row in range(-FURTHEST, FURTHEST + 1)
        for column in range(-FURTHEST, FURTHEST + 1)
        if 0 < row * row + column * column <= _SQUARED
    ),
    key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset[1], offset[0]),
)
"""(rows, columns) to where the nearest object pixel can be, in the order in which scipy's transform prefers them: of
equally near ones the lowest column, then the lowest row. Another order moves the measure by up to 3e-5."""


def weighted_sums(probability: np.ndarray, truth: np.ndarray, extent: Extent) -> tuple[float, float]:
    """Sum of the errors inside the object, at most its pixels, and of the weighted errors outside it.

    probability: float [H, W] in [0, 1]; truth: uint8 [H, W] in {0, 1} with an object of that extent.
    """
    near = extent.around(REACH)
    close = probability[near].astype(np.float32, copy=False)
    background = 1 - truth[near]
    error = cv2.copyTo(close, background)
    factor = cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squared distances are whole numbers. The last bit that OpenCV gives depends on where its arrays lie in memory, and
    # with it a summary would on the order of images.
    np.multiply(factor, factor, out=factor)
    np.rint(factor, out=factor)
    np.sqrt(factor, out=factor)
    np.multiply(factor, DECAY, out=factor)
    np.exp(factor, out=factor)
    np.subtract(2, factor, out=factor)
    np.multiply(factor, error, out=factor)
    outside = cv2.sumElems(factor)[0]
    if close.shape != probability.shape:
        outside += 2 * max(cv2.sumElems(probability)[0] - cv2.sumElems(probability[near])[0], 0.0)
    return _errors_inside(probability, truth, extent), outside


def _errors_inside(probability: np.ndarray, truth: np.ndarray, extent: Extent) -> float:
    inside = truth[extent.box]
    shape = (inside.shape[0] + 2 * MARGIN, inside.shape[1] + 2 * MARGIN)
    present, error = np.zeros(shape, np.uint8), np.zeros(shape)
    middle = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    present[middle] = inside
    # In double precision: the error of an empty map must not come out below 1.
    np.subtract(1, probability[extent.box], out=error[middle], where=inside.view(bool), dtype=np.float64)

    spread = error.copy()
    around = cv2.dilate(present, np.ones((2 * RADIUS + 1, 2 * RADIUS + 1), np.uint8)) - present
    _extend(spread, error, present, np.flatnonzero(extent.within_image(around, MARGIN).view(bool)))
    mean = cv2.sepFilter2D(spread, -1, KERNEL, KERNEL, borderType=cv2.BORDER_CONSTANT)
    return float(cv2.sumElems(cv2.min(mean, error))[0])


def _extend(spread: np.ndarray, error: np.ndarray, present: np.ndarray, pixels: np.ndarray) -> None:
    """Write to `spread`, at these flat indices, the `error` of the object pixel nearest to each."""
    to, of, is_object = spread.ravel(), error.ravel(), present.ravel().view(bool)
    for row, column in NEAREST_FIRST:
        nearest = pixels + (row * error.shape[1] + column)
        found = is_object[nearest]
        to[pixels[found]] = of[nearest[found]]
        pixels = pixels[~found]
        if not pixels.size:
            return


def weighted_f(inside: float, outside: float, object_pixels: float, exact: bool) -> float:
    """Weighted F in [0, 1] of what `weighted_sums` gave; the truth has an object pixel.

    The reference adds an epsilon to divisors; without it a perfect map scores exactly 1.
    """
    epsilon = 0.0 if exact else EPSILON
    true_positives = object_pixels - inside
    recall = 1 - inside / object_pixels
    found = true_positives + outside + epsilon
    precision = true_positives / found if found else 0.0
    total = recall + precision + epsilon
    value = 2 * recall * precision / total if total else 0.0
    # Rounding leaves 1e-16 of an empty map's score.
    return round(max(value, 0.0), 15) if exact else value
