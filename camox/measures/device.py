"""The sums of a batch's images where the network has left its maps: on an accelerator.

Every image is summed by itself, at its own size, so that its numbers depend on no other image of the batch; all
results come to the host in one copy. Formulas are those of the CPU, and so are sums but for the order of summation.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from camox.measures.curves import THRESHOLDS, Counts, counts_by_threshold
from camox.measures.extent import Extent, find_extent
from camox.measures.protocol import Protocol
from camox.measures.structure import Moments, Quadrant
from camox.measures.sums import LEVELS, ImageSums, Needs, constant_value, sums_of_histogram
from camox.measures.weighted import DECAY, KERNEL, MARGIN, NEAREST_FIRST, RADIUS, REACH

_FAR = 1e9
"""A squared distance that no image has."""
_MOST_AT_ONCE = 2**25
"""Numbers in a temporary array: 128 MB of float32."""


class _Launched(NamedTuple):
    """An image whose sums are under way; `parts` are float64 vectors on the device, in the order of their names."""

    extent: Extent
    truth: np.ndarray
    levels: Tensor | None
    parts: dict[str, Tensor]


def batch_sums(
    maps: Sequence[Tensor], truths: Sequence[np.ndarray], protocol: Protocol, needs: Needs
) -> list[ImageSums]:
    """As `sums.level_sums` or `sums.map_sums` gives for each, whichever the protocol's rounding asks for.

    maps: float32 [H_i, W_i] in [0, 1], on one device; truths: uint8 [H_i, W_i] in {0, 1}, on the host.
    """
    launch = _launch_levels if protocol.quantise else _launch_map
    launched = [launch(one, truth, protocol, needs) for one, truth in zip(maps, truths, strict=True)]
    vectors = [part for one in launched for part in one.parts.values()]
    if not vectors:
        return [ImageSums(one.extent) for one in launched]
    # The one time that the host waits for all of them.
    numbers = iter(np.split(torch.cat(vectors).cpu().numpy(), np.cumsum([len(vector) for vector in vectors])[:-1]))
    finish = _finish_levels if protocol.quantise else _finish_map
    return [finish(one, {name: next(numbers) for name in one.parts}, protocol, needs) for one in launched]


def without_object(probability: Tensor, truth: np.ndarray, protocol: Protocol) -> np.ndarray | None:
    """The pixels called object, bool [H, W] on the host, where the truth has none; else None."""
    if truth.any():
        return None
    if protocol.quantise:
        return ((probability * 255).round() >= 255 * protocol.binary_threshold).cpu().numpy()
    return (probability >= protocol.binary_threshold).cpu().numpy()


def resize_on_device(probability: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resize a map, float32 [h, w], bilinearly to (H, W), with the values that `evaluator.resize_probability` gives.

    OpenCV interpolates along rows first, and rounds once per pixel and axis; torch's own bilinear mode computes
    positions in single precision and differs by up to 3e-5.
    """
    if tuple(probability.shape) == tuple(shape):
        return probability
    for axis in (1, 0):
        before, after, share = _neighbours(probability.shape[axis], shape[axis], probability.device)
        first, second = probability.index_select(axis, before), probability.index_select(axis, after)
        share = share if axis == 1 else share[:, None]
        probability = (first.double() + (second - first).double() * share).float()
    return probability.clamp_(0, 1)


def _neighbours(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    position = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    before = np.floor(position).astype(np.int64)
    share = (position - before).astype(np.float32).astype(np.float64)
    after = np.minimum(before + 1, old - 1)
    return torch.from_numpy(before).to(device), torch.from_numpy(after).to(device), torch.from_numpy(share).to(device)


def _launch_levels(probability: Tensor, truth: np.ndarray, protocol: Protocol, needs: Needs) -> _Launched:
    extent, objects = find_extent(truth), torch.from_numpy(truth).to(probability.device)
    levels = (probability * 255).round().long()
    rows, columns = extent.centre
    joint = levels + LEVELS * objects.long()
    joint[rows:] += 4 * LEVELS
    joint[:, columns:] += 2 * LEVELS
    parts = {"histogram": _histogram(joint, 8 * LEVELS)}
    if needs.weighted and extent.pixels:
        values = levels.double() / (LEVELS - 1)
        if protocol.min_max:
            values = _stretch(values)
        parts["weighted"] = _weighted_sums(values.float(), objects.bool(), extent)
    return _Launched(extent, truth, levels, parts)


def _finish_levels(one: _Launched, sums: dict[str, np.ndarray], protocol: Protocol, needs: Needs) -> ImageSums:
    weighted = (float(sums["weighted"][0]), float(sums["weighted"][1])) if "weighted" in sums else None
    histogram = sums["histogram"].reshape(4, 2, LEVELS)
    return sums_of_histogram(histogram, one.extent, protocol, needs, weighted, partial(_mean_in_order, one))


def _mean_in_order(one: _Launched, values: np.ndarray) -> float:
    assert one.levels is not None
    return float(values[one.levels.cpu().numpy()].mean())


def _launch_map(probability: Tensor, truth: np.ndarray, protocol: Protocol, needs: Needs) -> _Launched:
    exact = protocol.formulas == "exact"
    extent, objects = find_extent(truth), torch.from_numpy(truth).to(probability.device)
    inside = objects.bool()
    parts: dict[str, Tensor] = {}
    if needs.binary:
        parts["binary"] = _called(probability >= protocol.binary_threshold, inside)
    if protocol.min_max:
        probability = _stretch(probability)
    exactly = probability.double()
    if needs.moments:
        parts["moments"] = _moments(exactly, inside, extent)
    if needs.adaptive:
        called = exactly >= (2 * exactly.mean()).clamp(max=1)
        parts["adaptive"] = _called(called & (exactly > 0) if exact else called, inside)
    if needs.curves:
        reached = (probability * 256 + 0.5).long() if exact else (probability * 255).long() + 1
        parts["curves"] = _histogram(reached + (THRESHOLDS + 1) * objects.long(), 2 * (THRESHOLDS + 1))
    if needs.weighted and extent.pixels:
        parts["weighted"] = _weighted_sums(probability, inside, extent)
    return _Launched(extent, truth, None, parts)


def _finish_map(one: _Launched, sums: dict[str, np.ndarray], protocol: Protocol, needs: Needs) -> ImageSums:
    extent = one.extent

    def counts(name: str) -> Counts | None:
        if name not in sums:
            return None
        called, tp = (int(value) for value in sums[name])
        fp = called - tp
        return Counts(tp, fp, extent.pixels - tp, one.truth.size - extent.pixels - fp)

    curves = quadrants = None
    if needs.curves:
        curves = counts_by_threshold(sums["curves"].reshape(2, THRESHOLDS + 1))
    if needs.moments:
        of_quadrant = zip(sums["moments"].reshape(4, 6), extent.quadrants, strict=True)
        quadrants = [_quadrant(values, one.truth[box]) for values, box in of_quadrant]
    weighted = (float(sums["weighted"][0]), float(sums["weighted"][1])) if "weighted" in sums else None
    return ImageSums(extent, counts("binary"), counts("adaptive"), curves, quadrants, weighted)


def _histogram(numbers: Tensor, bins: int) -> Tensor:
    return torch.bincount(numbers.flatten(), minlength=bins).double()


def _called(called: Tensor, inside: Tensor) -> Tensor:
    return torch.stack([called.sum(), (called & inside).sum()]).double()


def _stretch(probability: Tensor) -> Tensor:
    lowest, highest = probability.aminmax()
    return torch.where(highest > lowest, (probability - lowest) / (highest - lowest), probability)


def _moments(probability: Tensor, inside: Tensor, extent: Extent) -> Tensor:
    """For each quadrant: sum and squares of all pixels and of the object's, least and greatest value; float64 [24]."""
    of_object = probability * inside
    terms = torch.stack([probability, probability.square(), of_object, of_object.square()])
    rows = []
    for box in extent.quadrants:
        values = probability[box]
        extremes = torch.stack(values.aminmax()) if values.numel() else values.new_zeros(2)
        rows += [terms[:, box[0], box[1]].sum((1, 2)), extremes]
    return torch.cat(rows)


def _quadrant(values: np.ndarray, truth: np.ndarray) -> Quadrant:
    total, squares, object_total, object_squares, lowest, highest = values.tolist()
    pixels = cv2.countNonZero(truth) if truth.size else 0
    background = Moments(truth.size - pixels, total - object_total, squares - object_squares)
    inside = Moments(pixels, object_total, object_squares)
    return Quadrant(background, inside, constant_value(lowest, highest, background, inside))


def _weighted_sums(probability: Tensor, inside: Tensor, extent: Extent) -> Tensor:
    """What `weighted.weighted_sums` gives, float64 [2]."""
    near = extent.around(REACH)
    close, present = probability[near], inside[near]
    factor = 2 - (_squared_distance(present).sqrt() * DECAY).exp()
    outside = (factor * close * ~present).double().sum()
    outside += 2 * (probability.double().sum() - close.double().sum()).clamp(min=0)
    return torch.stack([_errors_inside(probability, inside, extent), outside])


def _squared_distance(present: Tensor) -> Tensor:
    """To the nearest object pixel, float32 [h, w], at least 1e9 where there is none within `REACH` rows and columns."""
    height, width = present.shape
    rows = torch.arange(height, dtype=torch.float32, device=present.device)[:, None]
    above = torch.where(present, rows, -_FAR).cummax(0).values
    below = torch.where(present, rows, _FAR).flip(0).cummin(0).values.flip(0)
    vertical = torch.minimum(rows - above, below - rows)
    squared = torch.where(vertical <= REACH, vertical.square(), _FAR)
    reach = min(REACH, width - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=present.device).square()
    windows = functional.pad(squared, (reach, reach), value=_FAR).unfold(1, 2 * reach + 1, 1)
    step = max(1, _MOST_AT_ONCE // (width * (2 * reach + 1)))
    return torch.cat([(part + offsets).amin(-1) for part in windows.split(step)])


def _errors_inside(probability: Tensor, inside: Tensor, extent: Extent) -> Tensor:
    margins = (MARGIN, MARGIN, MARGIN, MARGIN)
    present = functional.pad(inside[extent.box], margins)
    error = functional.pad((1 - probability[extent.box].double()) * inside[extent.box], margins)
    window = 2 * RADIUS + 1
    around = functional.max_pool2d(present[None].float(), window, 1, RADIUS)[0].bool() & ~present
    around = extent.within_image(around, MARGIN)
    # Nearest last: the last to be written stays. What rolls over the border is outside `around`.
    nearest = torch.zeros_like(error, dtype=torch.int64)
    for row, column in reversed(NEAREST_FIRST):
        nearest.masked_fill_(present.roll((-row, -column), (0, 1)), row * error.shape[1] + column)
    pixels = torch.arange(error.numel(), device=error.device).view_as(error)
    spread = torch.where(around, error.flatten()[pixels + nearest * around], error)
    for axis in (0, 1):
        padded = functional.pad(spread, (0, 0, RADIUS, RADIUS) if axis == 0 else (RADIUS, RADIUS))
        spread = sum(
            weight * padded.narrow(axis, start, error.shape[axis]) for start, weight in enumerate(KERNEL.tolist())
        )
    return torch.minimum(spread, error).sum()
