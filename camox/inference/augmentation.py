"""Test-time augmentation: the same image as it is, mirrored, and at other sizes, and what the model says of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from camox.errors import ExperimentError

HFLIP, VFLIP, SCALES = "hflip", "vflip", "scales"
AUGMENTATIONS = (HFLIP, VFLIP, SCALES)
"""Mirrored left to right, mirrored top to bottom, and at the sizes of `SCALE_FACTORS`."""
SCALE_FACTORS = (1.0, 0.75, 1.25)
_STRIDE, _LEAST = 32, 64
"""Sizes are multiples of the coarsest stride; the network would pad others up to one."""


@dataclass(frozen=True)
class View:
    """One of the ways in which the model sees an image: at `size`² pixels, mirrored along `axes` of [B, C, H, W]."""

    size: int
    axes: tuple[int, ...] = ()

    def mirrored(self, images: Tensor) -> Tensor:
        """Images [..., H, W] as this view has them; a map of a mirrored image is turned back by the same."""
        return images.flip(self.axes) if self.axes else images


def check_augmentations(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in the order of `AUGMENTATIONS`. Raises ExperimentError for others."""
    unknown = sorted(set(names) - set(AUGMENTATIONS))
    if unknown:
        raise ExperimentError(
            f"there is no test-time augmentation {', '.join(unknown)}: there are {', '.join(AUGMENTATIONS)}; several "
            "are joined by commas, such as hflip,scales"
        )
    return tuple(name for name in AUGMENTATIONS if name in names)


def views(image_size: int, augmentations: Sequence[str]) -> list[View]:
    """Every combination of flips and scales, the plain image first: twice as many for each flip, three times for
    scales."""
    factors = SCALE_FACTORS if SCALES in augmentations else SCALE_FACTORS[:1]
    horizontal = ((), (-1,)) if HFLIP in augmentations else ((),)
    vertical = ((), (-2,)) if VFLIP in augmentations else ((),)
    found = [
        View(_scaled(image_size, factor), flipped_v + flipped_h)
        for factor, flipped_v, flipped_h in product(factors, vertical, horizontal)
    ]
    return list(dict.fromkeys(found))  # a small image size has no smaller one


def _scaled(image_size: int, factor: float) -> int:
    if factor == 1:
        return image_size
    whole = math.floor if factor < 1 else math.ceil  # away from the size itself, which is there already
    return max(_LEAST, whole(image_size * factor / _STRIDE) * _STRIDE)
