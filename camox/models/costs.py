"""What each expert costs, counted rather than timed: the same on every machine, and known before a run starts."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from camox.models.experts import EXPERTS

_SIDE = 32
"""Side of the feature map that costs are counted on: between strides 8 and 16 at 352². Only the logarithm in a
Fourier transform, and the few multiply-adds per image, depend on it."""


def expert_costs(names: Iterable[str], channels: int) -> dict[str, float]:
    """Multiply-adds per pixel of a forward pass through each expert at `channels` channels, by name.

    Convolutions and matrix products are those of `torch.utils.flop_counter`, which counts two operations per
    multiply-add and nothing elementwise. It does not know Fourier transforms: they count by the usual estimate of
    5·n·log₂(n) operations for n complex points and half of that for n real ones (FFTW's convention). That is 0.2 to
    0.3·C² of an expert's 8 to 11·C² at C = 128, and four times as much at C = 32.

    Each expert is built and run once on the CPU, in some milliseconds; PyTorch's random state stays as it was. Tensors
    without storage would take twice as long.
    """
    costs = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        features = torch.zeros(1, channels, _SIDE, _SIDE)
        for name in names:
            expert = EXPERTS[name](channels)
            with FlopCounterMode(display=False, custom_mapping=FOURIER_TRANSFORMS) as counter:
                expert(features)
            costs[name] = counter.get_total_flops() / 2 / _SIDE**2
    return costs


def _complex_transform(shape: Sequence[int], dims: Sequence[int], *_: Any, **__: Any) -> int:
    return _operations(5.0, shape, dims)


def _from_real(shape: Sequence[int], dims: Sequence[int], *_: Any, **__: Any) -> int:
    return _operations(2.5, shape, dims)


def _to_real(shape: Sequence[int], dims: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return _operations(2.5, out_shape, dims)


def _operations(factor: float, shape: Sequence[int], dims: Sequence[int]) -> int:
    """`factor`·n·log₂(n) for a transform of n points, times the number of transforms."""
    points = math.prod(shape[dim] for dim in dims)
    return round(factor * math.prod(shape) * math.log2(points))


FOURIER_TRANSFORMS = {
    torch.ops.aten._fft_c2c: _complex_transform,
    torch.ops.aten._fft_r2c: _from_real,
    torch.ops.aten._fft_c2r: _to_real,
}
"""For `FlopCounterMode(custom_mapping=…)`: operator → its operations from its arguments."""
