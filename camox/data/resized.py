"""A sample at the size that it is trained at, before augmentation: from its files, or from a cache of them."""

from typing import Protocol, TypeGuard

import numpy as np

from camox.data.samples import Samples, read_reduced
from camox.data.transforms import resize_image, resize_mask
from camox.errors import DataError

Resized = tuple[np.ndarray, np.ndarray]
"""Image uint8 [S, S, 3] RGB and mask uint8 [S, S] in {0, 1}."""


class Keeping(Protocol):
    """Samples of which some are there at some sizes already."""

    def kept(self, index: int, size: int) -> Resized | None:
        """Sample `index` at `size`² pixels, to own; None where it is not there."""


def read_resized(samples: Samples, index: int, size: int) -> Resized:
    """Sample `index` at `size`² pixels, the same to the bit whether a cache has it or not.

    Raises:
        DataError: it cannot be read, or nothing can be seen in it.
    """
    found = samples.kept(index, size) if _keeps(samples) else None
    if found is not None:
        return found
    sample = read_reduced(samples, index, size)
    image, mask = resize_image(sample.image, size), resize_mask(sample.mask, size)
    if image.min() == image.max():
        raise DataError("every pixel of the image is the same: nothing can be seen in it; remove or replace it")
    return image, mask


def _keeps(samples: object) -> TypeGuard[Keeping]:
    return hasattr(samples, "kept")
