"""How sure a mean over images is: 95 % intervals from drawing the images again, and paired ones for two models.

Bias-corrected and accelerated bootstrap (BCa; Efron, JASA 1987): unlike plain percentiles it follows the skew of scores
that crowd near 0 or 1. It covers the chance of which images a dataset holds, not that of training.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from camox.measures.evaluator import ImageResult

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
FEWEST_IMAGES = 10
"""Of fewer there is no interval: drawn from a handful of images it is far too narrow."""

_AT_ONCE = 2**21  # weights in memory at once: 16 MiB

Interval = tuple[float, float]


class Difference(NamedTuple):
    """Second minus first, with its interval; None where there is none."""

    value: float | None
    interval: Interval | None


class Table(NamedTuple):
    """Values of N images: `scalars` float64 [N, M], and `curves`, float64 [N, 256] each, of those measures that are the
    maximum of a mean curve. Column m is measure `names[m]`; curves come after the scalars."""

    names: tuple[str, ...]
    scalars: np.ndarray
    curves: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, results: Sequence[ImageResult], measures: Sequence[str]) -> "Table":
        """Of images that all have the measures asked for."""
        maxima = [name for name in measures if name.endswith("_max")]
        means = [name for name in measures if not name.endswith("_max")]
        scalars = np.array([[result.scalars[name] for name in means] for result in results], np.float64)
        families = [name.removesuffix("_max") for name in maxima]
        curves = tuple(np.stack([result.curves[family] for result in results]) for family in families)
        return cls((*means, *maxima), scalars.reshape(len(results), len(means)), curves)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Measures of the dataset with each image so heavy: weights [B, N] with sums of 1 give [B, M]."""
        maxima = [(weights @ curve).max(axis=1) for curve in self.curves]
        return np.column_stack([weights @ self.scalars, *maxima])

    def whole(self) -> np.ndarray:
        """Measures of all images, [M]."""
        maxima = [curve.mean(axis=0).max() for curve in self.curves]
        return np.concatenate([self.scalars.mean(axis=0), maxima])

    def without_each(self) -> np.ndarray:
        """Measures of all images but the n-th, [N, M]."""
        maxima = [_means_without_each(curve).max(axis=1) for curve in self.curves]
        return np.column_stack([_means_without_each(self.scalars), *maxima])


def intervals(
    results: Sequence[ImageResult], measures: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, Interval | None]:
    """The 95 % interval of each measure of a dataset; `*_max` is found anew from each resample's mean curve.

    None where there are fewer than `FEWEST_IMAGES` images, or a value that is undefined. The same images in the same
    order give the same numbers.
    """
    if len(results) < FEWEST_IMAGES:
        return dict.fromkeys(measures)
    table = Table.of(results, measures)
    drawn = np.concatenate([table.weighted(weights) for weights in draw(len(results), resamples)])
    found = bca(table.whole(), drawn, table.without_each())
    of_measure = dict(zip(table.names, found, strict=True))
    return {name: of_measure[name] for name in measures}


def paired_differences(
    first: Sequence[ImageResult],
    second: Sequence[ImageResult],
    measures: Sequence[str],
    resamples: int = RESAMPLES,
) -> dict[str, Difference]:
    """Second minus first of each measure, with the 95 % interval from drawing the same images for both.

    first, second: results of the same images in the same order. The interval is much narrower than those of the two
    scores suggest, since most of their chance is which images are hard, and that is shared.
    """
    assert len(first) == len(second), (len(first), len(second))
    if not first:
        return dict.fromkeys(measures, Difference(None, None))
    tables = Table.of(first, measures), Table.of(second, measures)
    value = tables[1].whole() - tables[0].whole()
    found: Sequence[Interval | None] = [None] * len(measures)
    if len(first) >= FEWEST_IMAGES:
        drawn = [tables[1].weighted(weights) - tables[0].weighted(weights) for weights in draw(len(first), resamples)]
        found = bca(value, np.concatenate(drawn), tables[1].without_each() - tables[0].without_each())
    by_name = {
        name: Difference(None if np.isnan(one) else float(one), interval)
        for name, one, interval in zip(tables[0].names, value, found, strict=True)
    }
    return {name: by_name[name] for name in measures}


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of a mean; None for fewer than `FEWEST_IMAGES`."""
    named = [ImageResult({"value": value}, {}, has_object=False, counts=True) for value in values]
    return intervals(named, ["value"])["value"]


def describe() -> Mapping[str, object]:
    """What is stored with intervals."""
    return {
        "method": "BCa bootstrap over images",
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "fewest_images": FEWEST_IMAGES,
    }


def draw(images: int, resamples: int) -> Iterator[np.ndarray]:
    """Share of each image in each resample, float64 [≤ resamples, images], in pieces; rows sum to 1."""
    generator = np.random.default_rng(SEED)
    rows = max(1, _AT_ONCE // images)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        chosen = generator.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=count * images)
        yield counts.reshape(count, images) / images


def bca(whole: np.ndarray, drawn: np.ndarray, without_each: np.ndarray) -> list[Interval | None]:
    """BCa intervals of M statistics: of all images [M], of B resamples [B, M], and without each image [N, M]."""
    return [_bca(*columns) for columns in zip(whole, drawn.T, without_each.T, strict=True)]


def _bca(whole: float, drawn: np.ndarray, without_each: np.ndarray) -> Interval | None:
    if not (np.isfinite(drawn).all() and np.isfinite(without_each).all()):
        return None
    if np.ptp(drawn) == 0:
        return float(drawn[0]), float(drawn[0])
    normal = NormalDist()
    # Half of the ties count as below: a statistic that many resamples share is no bias.
    below = (np.count_nonzero(drawn < whole) + 0.5 * np.count_nonzero(drawn == whole)) / len(drawn)
    bias = normal.inv_cdf(float(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))))
    influence = without_each.mean() - without_each
    spread = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    quantiles = []
    for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        shifted = bias + normal.inv_cdf(tail)
        quantiles.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(drawn, quantiles)
    return float(low), float(high)


def _means_without_each(values: np.ndarray) -> np.ndarray:
    return (values.sum(axis=0) - values) / (len(values) - 1)
