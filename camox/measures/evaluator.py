"""One image, then a whole dataset: probability maps and ground truths in, named measures out.

Results are plain picklable objects, so that ranks can gather them; a summary is the same to the last bit in
whatever order, batches or shards they came.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from camox.measures.protocol import (
    ALL_MEASURES,
    FALSE_POSITIVE_SHARE,
    Protocol,
    check_measures,
    get_protocol,
)
from camox.measures.scores import image_scores
from camox.measures.sums import ImageSums, find_needs, level_sums, map_sums, round_to_levels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageResult:
    """Measures of one image.

    scalars: measures by name; `*_max` and `*_mean` are those of this image's own curve. A truth without an
    object also has `false_positive_area` (share of pixels called object) and `false_positive` (1.0 or 0.0),
    and nothing else where the protocol leaves such images out of the means.
    curves: float64 [256] per family ("f", "e", "iou", "dice") whose maximum or mean was asked for.
    counts: whether the image takes part in the means; has_object: whether its truth has an object pixel.
    """

    scalars: dict[str, float]
    curves: dict[str, np.ndarray]
    has_object: bool
    counts: bool


@dataclass(frozen=True)
class Record:
    """An image's result with its place in the dataset (`index`), its name and its group ("" for none)."""

    index: int
    name: str
    group: str
    result: ImageResult


def measure_image(
    probability: np.ndarray,
    truth: np.ndarray,
    protocol: str | Protocol = "camox",
    measures: Iterable[str] = ALL_MEASURES,
) -> ImageResult:
    """Score a probability map, float [H, W] in [0, 1], against its truth, uint8 or bool [H, W] in {0, 1}.

    Only the measures asked for are computed. Raises ValueError for a map with NaN or values outside [0, 1]
    (a broken model must not look like a bad score), for shapes that differ, and for a truth that is not
    binary.
    """
    protocol, measures = get_protocol(protocol), check_measures(measures)
    check_probability(probability)
    if truth.shape != probability.shape:
        raise ValueError(f"probability map {probability.shape} and truth {truth.shape} differ in shape")
    check_truth(truth)
    truth = np.ascontiguousarray(truth).view(np.uint8)
    if protocol.quantise:
        return _measure_levels(round_to_levels(probability), truth, protocol, measures)
    if probability.dtype not in (np.float32, np.float64):
        probability = probability.astype(np.float32)
    called = None if truth.any() else probability >= protocol.binary_threshold
    counts = called is None or protocol.count_empty
    return _result(
        map_sums(probability, truth, protocol, find_needs(measures)) if counts else None, called, protocol, measures
    )


def _measure_levels(
    levels: np.ndarray, truth: np.ndarray, protocol: Protocol, measures: tuple[str, ...]
) -> ImageResult:
    called = None if truth.any() else levels >= 255 * protocol.binary_threshold
    counts = called is None or protocol.count_empty
    return _result(
        level_sums(levels, truth, protocol, find_needs(measures)) if counts else None, called, protocol, measures
    )


def _result(
    sums: ImageSums | None, called: np.ndarray | None, protocol: Protocol, measures: tuple[str, ...]
) -> ImageResult:
    """The result of an image by its sums, None where it takes no part in the means.

    called: bool [H, W], the pixels called object, where the truth has none.
    """
    false_positives = {} if called is None else _false_positives(called)
    if sums is None:
        return ImageResult(false_positives, {}, has_object=False, counts=False)
    scalars, curve_of = image_scores(sums, protocol, measures)
    return ImageResult(scalars | false_positives, curve_of, has_object=called is None, counts=True)


def measure_batch(
    probabilities: "Tensor",
    truths: Sequence[np.ndarray],
    protocol: str | Protocol = "camox",
    measures: Iterable[str] = ALL_MEASURES,
) -> list[ImageResult]:
    """Score maps, float32 [B, h, w] in [0, 1], on the device they are on: what `measure_image` gives, to 1e-6.

    Each map is resized bilinearly to its truth, uint8 [H_i, W_i] in {0, 1}. The values must be in range:
    `Evaluator.add_batch` sees to that.
    """
    from camox.measures.device import batch_sums, resize_on_device, without_object  # nothing else here needs torch

    protocol, measures = get_protocol(protocol), check_measures(measures)
    maps = [resize_on_device(one, truth.shape) for one, truth in zip(probabilities, truths, strict=True)]
    called = [without_object(one, truth, protocol) for one, truth in zip(maps, truths, strict=True)]
    counted = [number for number, pixels in enumerate(called) if pixels is None or protocol.count_empty]
    sums = batch_sums([maps[n] for n in counted], [truths[n] for n in counted], protocol, find_needs(measures))
    sums_of = dict(zip(counted, sums, strict=True))
    return [_result(sums_of.get(number), pixels, protocol, measures) for number, pixels in enumerate(called)]


def measure_uint8(
    prediction: np.ndarray,
    truth: np.ndarray,
    protocol: str | Protocol = "camox",
    measures: Iterable[str] = ALL_MEASURES,
) -> ImageResult:
    """Score a uint8 map [H, W] against its uint8 ground truth [H, W], binarised by the protocol's rule."""
    protocol = get_protocol(protocol)
    for what, array in (("prediction", prediction), ("truth", truth)):
        if array.dtype != np.uint8 or array.ndim != 2:
            raise ValueError(f"a {what} is uint8 [H, W], not {array.dtype} {array.shape}")
    if prediction.shape != truth.shape or prediction.size == 0:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape or are empty")
    objects = protocol.binarise_truth(truth)
    if protocol.quantise:
        return _measure_levels(prediction, objects, protocol, check_measures(measures))
    return measure_image(uint8_probability(prediction), objects, protocol, measures)


def uint8_probability(prediction: np.ndarray) -> np.ndarray:
    """Turn a uint8 map in 0 … 255 into probabilities, float32 in [0, 1]."""
    return prediction.astype(np.float32) / np.float32(255)


def resize_probability(probability: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a probability map, float [h, w], bilinearly to `shape` = (H, W), if it has another size."""
    if probability.shape == shape:
        return probability
    height, width = shape
    resized = cv2.resize(np.asarray(probability, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(resized, 0, 1)  # float32 interpolation may leave [0, 1] by one unit in the last place


def check_probability(probability: np.ndarray) -> None:
    """Raise ValueError unless the map is a non-empty float [H, W] of finite values in [0, 1]."""
    if probability.ndim != 2 or probability.size == 0 or not np.issubdtype(probability.dtype, np.floating):
        raise ValueError(f"a probability map is float [H, W], not {probability.dtype} {probability.shape}")
    check_range(float(probability.min()), float(probability.max()))


def check_range(lowest: float, highest: float) -> None:
    """Raise ValueError unless a map's least and greatest value are in [0, 1]; both are NaN where one value is."""
    if np.isnan(lowest):
        raise ValueError("the probability map has NaN")
    if lowest < 0 or highest > 1:
        raise ValueError(f"the probability map leaves [0, 1]: {lowest} to {highest} (logits in place of them?)")


def check_truth(truth: np.ndarray) -> None:
    """Raise ValueError unless the truth is uint8 or bool [H, W] in {0, 1}."""
    if truth.dtype not in (np.uint8, np.bool_) or truth.max() > 1:
        raise ValueError(f"a truth is uint8 or bool with values 0 and 1, not {truth.dtype} up to {truth.max()}")


@contextmanager
def _naming(index: int, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"image {index} ({name}): {error}") from error


class Evaluator:
    """Collects the results of a dataset and summarises them under one protocol.

    Every rank adds its own images; after `extend` with the gathered `results` of the others each has the same
    summary. Raises ValueError for an unknown protocol or measure.
    """

    def __init__(self, protocol: str | Protocol = "camox", measures: Iterable[str] = ALL_MEASURES):
        self.protocol: Protocol = get_protocol(protocol)
        self.measures: tuple[str, ...] = check_measures(measures)
        self._records: dict[int, Record] = {}

    def add(self, index: int, name: str, group: str, probability: np.ndarray, truth: np.ndarray) -> None:
        """Score image `index` of the dataset.

        probability: float [h, w] in [0, 1], resized bilinearly to the truth's size; truth: uint8 [H, W] in
        {0, 1}.
        group: label under which it is also summarised, "" for none. Raises ValueError, naming the image,
        for what `measure_image` refuses and for an index that was added before.
        """
        with _naming(index, name):
            check_probability(probability)
            resized = resize_probability(probability, (truth.shape[0], truth.shape[1]))
            result = measure_image(resized, truth, self.protocol, self.measures)
        self.extend([Record(index, name, group, result)])

    def add_batch(
        self,
        indices: Sequence[int],
        names: Sequence[str],
        groups: Sequence[str],
        probabilities: "Tensor",
        truths: Sequence[np.ndarray],
    ) -> None:
        """`add` for the images of a batch, computed where `probabilities`, float32 [B, h, w], are.

        The results are those of `add` to 1e-6 and do not depend on what else is in the batch.
        """
        extremes = probabilities.flatten(1).aminmax(dim=1)
        ranges = zip(extremes.min.tolist(), extremes.max.tolist(), strict=True)
        for index, name, truth, (lowest, highest) in zip(indices, names, truths, ranges, strict=True):
            with _naming(index, name):
                check_range(lowest, highest)
                check_truth(truth)
        results = measure_batch(probabilities, truths, self.protocol, self.measures)
        self.extend(map(Record, indices, names, groups, results))

    @property
    def results(self) -> list[Record]:
        """All results so far, by index."""
        return [self._records[index] for index in sorted(self._records)]

    def extend(self, results: Iterable[Record]) -> None:
        """Take over results of other ranks or processes. Raises ValueError for an index already there."""
        for record in results:
            if record.index in self._records:
                raise ValueError(
                    f"image {record.index} ({record.name}) was added twice: does the loader repeat images to "
                    "fill its last batch? They would count twice"
                )
            self._records[record.index] = record

    def summary(self) -> dict[str, Any]:
        """Means over images: `{"count", <measure> …, "groups": {group: {"count", <measure> …}}, "empty"}`.

        `count` is the number of images in the means. `*_max` is the maximum of the mean curve, not the mean
        of the images' maxima. "empty" has the `count` of images without an object, `false_positive_area`
        (mean share of pixels called object) and `false_positive_rate` (share of images with a predicted
        object of more than 0.1 %). A mean over no image is None.
        """
        records = self.results
        counted = [record for record in records if record.result.counts]
        groups = sorted({record.group for record in counted if record.group})
        of_group = {group: self._means([record for record in counted if record.group == group]) for group in groups}
        empty = [record.result for record in records if not record.result.has_object]
        return {
            **self._means(counted),
            "groups": of_group,
            "empty": {
                "count": len(empty),
                "false_positive_area": _mean([result.scalars["false_positive_area"] for result in empty]),
                "false_positive_rate": _mean([result.scalars["false_positive"] for result in empty]),
            },
        }

    def _means(self, records: list[Record]) -> dict[str, Any]:
        results = [record.result for record in records]
        maximum = {
            name: float(np.mean([result.curves[name.removesuffix("_max")] for result in results], axis=0).max())
            for name in self.measures
            if name.endswith("_max") and results
        }
        means: dict[str, Any] = {"count": len(results)}
        for name in self.measures:
            means[name] = maximum.get(name) if name.endswith("_max") else _mean([r.scalars[name] for r in results])
        return means


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _false_positives(predicted: np.ndarray) -> dict[str, float]:
    _, _, components, _ = cv2.connectedComponentsWithStats(predicted.astype(np.uint8), connectivity=8)
    largest = components[1:, cv2.CC_STAT_AREA].max(initial=0)  # component 0 is the background
    return {
        "false_positive_area": float(predicted.mean()),
        "false_positive": float(largest > FALSE_POSITIVE_SHARE * predicted.size),
    }
