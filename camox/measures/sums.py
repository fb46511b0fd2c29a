"""One pass over an image: everything its measures are computed from, counted and summed once.

A map rounded to uint8 is a histogram of 256 levels per quadrant, inside and outside the object, and all sums but those
of weighted F follow from that. A map in floating point is summed pixel by pixel, in double precision.
`camox.measures.device` has the same sums on an accelerator.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from camox.measures.curves import THRESHOLDS, Counts, counts_by_threshold, reached_thresholds
from camox.measures.extent import Extent, find_extent
from camox.measures.protocol import Protocol
from camox.measures.structure import Moments, Quadrant
from camox.measures.weighted import weighted_sums

LEVELS = 256


class Needs(NamedTuple):
    """Which sums some measures are computed from."""

    binary: bool
    adaptive: bool
    curves: bool
    moments: bool
    weighted: bool


@dataclass(frozen=True)
class ImageSums:
    """The sums of one image; None for those that are not needed.

    binary, adaptive: pixels at the protocol's `binary_threshold` and at the map's adaptive one. curves: pixels at each
    of the 256 thresholds. quadrants: moments around the object's centre. weighted: of `weighted.weighted_sums`.
    """

    extent: Extent
    binary: Counts | None = None
    adaptive: Counts | None = None
    curves: Counts | None = None
    quadrants: list[Quadrant] | None = None
    weighted: tuple[float, float] | None = None


def find_needs(measures: Collection[str]) -> Needs:
    """What the measures of these names are computed from."""
    adaptive = any(name.endswith("_adaptive") for name in measures)
    return Needs(
        binary="iou" in measures or "dice" in measures,
        adaptive=adaptive,
        curves=any(name.endswith(("_max", "_mean")) for name in measures),
        moments=adaptive or "s_measure" in measures or "mae" in measures,
        weighted="f_weighted" in measures,
    )


def round_to_levels(probability: np.ndarray) -> np.ndarray:
    """The map as if it had been written as a greyscale PNG, uint8 [H, W]."""
    return np.rint(probability * 255).astype(np.uint8)


def level_sums(levels: np.ndarray, truth: np.ndarray, protocol: Protocol, needs: Needs) -> ImageSums:
    """Sums of a map rounded to uint8 levels [H, W]; truth: uint8 [H, W] in {0, 1}."""
    extent = find_extent(truth)
    # One number per pixel, the level and the truth: OpenCV counts them several times faster than numpy.
    joint = levels.astype(np.uint16)
    joint += truth.astype(np.uint16) << 8
    counted = [_histogram(joint[quadrant], 2 * LEVELS) for quadrant in extent.quadrants]
    histogram = np.stack(counted).reshape(4, 2, LEVELS)
    weighted = None
    if needs.weighted and extent.pixels:
        values = level_values(histogram, protocol)
        weighted = weighted_sums(cv2.LUT(levels, values.astype(np.float32)), truth, extent)
    return sums_of_histogram(histogram, extent, protocol, needs, weighted, lambda values: values[levels].mean())


def _histogram(numbers: np.ndarray, bins: int) -> np.ndarray:
    if numbers.size == 0:
        return np.zeros(bins)
    return cv2.calcHist([numbers], [0], None, [bins], [0, bins]).astype(np.float64).ravel()


def level_values(histogram: np.ndarray, protocol: Protocol) -> np.ndarray:
    """The probability that each level stands for, float64 [256], by the reference's operations in their order."""
    values = np.arange(LEVELS) / (LEVELS - 1)
    present = np.flatnonzero(histogram.reshape(-1, LEVELS).any(axis=0))
    lowest, highest = values[present[0]], values[present[-1]]
    if not protocol.min_max or lowest == highest:
        return values
    return np.clip((values - lowest) / (highest - lowest), 0, 1)  # levels that do not occur would leave [0, 1]


def sums_of_histogram(
    histogram: np.ndarray,
    extent: Extent,
    protocol: Protocol,
    needs: Needs,
    weighted: tuple[float, float] | None,
    mean_in_order: Callable[[np.ndarray], float],
) -> ImageSums:
    """All sums of a map by its levels.

    histogram: pixels by quadrant, truth and level, float64 [4, 2, 256]. weighted: what does not follow from it.
    mean_in_order: the mean of the map, given the value of each level, as numpy sums it up in memory. It is asked for
    where the last bit of the reference's adaptive threshold decides about a level.
    """
    exact = protocol.formulas == "exact"
    values, by_truth = level_values(histogram, protocol), histogram.sum(axis=0)
    binary = adaptive = curves = quadrants = None
    if needs.binary:
        called = np.arange(LEVELS) / (LEVELS - 1) >= protocol.binary_threshold
        binary = _counts_where(by_truth, called)
    if needs.adaptive:
        mean = float(by_truth.sum(axis=0) @ values) / by_truth.sum()
        if not exact and np.abs(values - 2 * mean).min() < 1e-9:
            mean = mean_in_order(values)
        adaptive = _counts_where(by_truth, adaptive_call(values, mean, exact))
    if needs.curves:
        reached = reached_thresholds(values, exact)
        curves = counts_by_threshold(
            np.stack([np.bincount(reached, of_truth, THRESHOLDS + 1) for of_truth in by_truth])
        )
    if needs.moments:
        powers = np.stack([np.ones(LEVELS), values, values * values], axis=1)
        quadrants = [_quadrant_of_levels(of_quadrant, values, powers) for of_quadrant in histogram]
    return ImageSums(extent, binary, adaptive, curves, quadrants, weighted)


def adaptive_call(values: np.ndarray, mean: float, exact: bool) -> np.ndarray:
    """Which values reach the adaptive threshold of a map of that mean.

    A map of zeros has threshold 0, which would call every pixel object; the exact flavour calls none.
    """
    called = values >= np.float64(min(2 * mean, 1.0))
    return called & (values > 0) if exact else called


def _counts_where(by_truth: np.ndarray, called: np.ndarray) -> Counts:
    (fp, tp), (background, positives) = by_truth[:, called].sum(axis=1), by_truth.sum(axis=1)
    return Counts(tp, fp, positives - tp, background - fp)


def _quadrant_of_levels(histogram: np.ndarray, values: np.ndarray, powers: np.ndarray) -> Quadrant:
    background, inside = histogram @ powers
    present = np.flatnonzero(histogram.any(axis=0))
    constant = float(values[present[0]]) if present.size == 1 else None
    return Quadrant(Moments(*background.tolist()), Moments(*inside.tolist()), constant)


def map_sums(probability: np.ndarray, truth: np.ndarray, protocol: Protocol, needs: Needs) -> ImageSums:
    """Sums of a map in floating point, [H, W] in [0, 1]; truth: uint8 [H, W] in {0, 1}."""
    exact = protocol.formulas == "exact"
    extent = find_extent(truth)
    binary = adaptive = curves = quadrants = weighted = None
    if needs.binary:
        binary = _count_pixels(probability >= protocol.binary_threshold, truth, extent)
    if protocol.min_max:
        probability = _stretch(probability)
    if needs.moments:
        quadrants = _quadrants_of_map(probability, truth, extent)
    if needs.adaptive:
        assert quadrants is not None
        total = sum(quadrant.background.total + quadrant.object.total for quadrant in quadrants)
        adaptive = _count_pixels(adaptive_call(probability, total / truth.size, exact), truth, extent)
    if needs.curves:
        reached = reached_thresholds(probability, exact)
        reached += truth * np.uint16(THRESHOLDS + 1)
        joint = _histogram(reached, 2 * (THRESHOLDS + 1))
        curves = counts_by_threshold(joint.reshape(2, THRESHOLDS + 1))
    if needs.weighted and extent.pixels:
        weighted = weighted_sums(probability, truth, extent)
    return ImageSums(extent, binary, adaptive, curves, quadrants, weighted)


def _count_pixels(called: np.ndarray, truth: np.ndarray, extent: Extent) -> Counts:
    tp = cv2.countNonZero(cv2.bitwise_and(called.view(np.uint8), truth))
    fp = cv2.countNonZero(called.view(np.uint8)) - tp
    return Counts(tp, fp, extent.pixels - tp, truth.size - extent.pixels - fp)


def _stretch(probability: np.ndarray) -> np.ndarray:
    lowest, highest = probability.min(), probability.max()
    if lowest == highest:
        return probability
    return (probability - lowest) / (highest - lowest)


def _quadrants_of_map(probability: np.ndarray, truth: np.ndarray, extent: Extent) -> list[Quadrant]:
    whole = probability.astype(np.float64)
    inside = whole * truth
    quadrants = []
    for box in extent.quadrants:
        of_object = _moments(inside[box], cv2.countNonZero(truth[box]) if truth[box].size else 0)
        both = _moments(whole[box], whole[box].size)
        background = Moments(*(float(all_ - part) for all_, part in zip(both, of_object, strict=True)))
        values = probability[box]
        lowest, highest = (values.min(), values.max()) if values.size else (0, 0)
        quadrants.append(Quadrant(background, of_object, constant_value(lowest, highest, background, of_object)))
    return quadrants


def _moments(values: np.ndarray, pixels: int) -> Moments:
    return Moments(pixels, float(np.einsum("ij->", values)), float(np.einsum("ij,ij->", values, values)))


def constant_value(lowest: float, highest: float, background: Moments, inside: Moments) -> float | None:
    """The value of a quadrant that has one; it is asked for only where the truth is constant too."""
    mixed = background.pixels and inside.pixels
    return None if mixed or lowest != highest or not (background.pixels or inside.pixels) else float(lowest)
