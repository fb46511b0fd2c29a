"""What a sample is, and what everything that gives samples has in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np

from camox.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One image with its truth, at native size.

    `image` is uint8 [H, W, 3] in RGB order, `mask` uint8 [H, W] with values in {0, 1}; `name` identifies the
    sample within its source and `group` (super-class, habitat, subfolder or "") is what splits stratify by.
    """

    name: str
    group: str
    image: np.ndarray
    mask: np.ndarray


class Samples(Protocol):
    """A sequence of samples whose names and groups are known without reading a file."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every sample."""

    @property
    def groups(self) -> Sequence[str]:
        """Group of every sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Reducing(Protocol):
    """Samples that are read faster where their images need not be of native size."""

    def reduced(self, index: int, at_least: int) -> Sample:
        """Sample `index`, whose image alone may be smaller than at native size, but no side below `at_least` pixels
        by that."""


def read_reduced(samples: Samples, index: int, at_least: int) -> Sample:
    """Sample `index`, its image reduced as far as `at_least` allows where that saves work, else as it is."""
    return samples.reduced(index, at_least) if _reduces(samples) else samples[index]


def _reduces(samples: object) -> TypeGuard[Reducing]:
    return hasattr(samples, "reduced")  # isinstance of a protocol takes ten times as long


class Known(Protocol):
    """Samples of which it can be told whether they have changed, without reading them."""

    def content(self, index: int) -> str:
        """A text that is another one when sample `index` is."""


def content_of(samples: Samples, index: int) -> str:
    """That text. Raises `DataError` where there is none."""
    if not _is_known(samples):
        raise DataError(
            f"{type(samples).__name__} cannot be cached: nothing tells when it changes; leave data.cache out"
        )
    return samples.content(index)


def _is_known(samples: object) -> TypeGuard[Known]:
    return hasattr(samples, "content")


class Source(Samples, Protocol):
    """Samples that know what they are called in tables and what was left out when they were opened.

    `source[i]` raises `DataError` naming the file when sample i cannot be read.
    """

    @property
    def label(self) -> str:
        """Name of the dataset in tables and messages."""

    @property
    def notices(self) -> Sequence[str]:
        """One line for each thing the user must be told, such as a count of images left out."""

    @property
    def remarks(self) -> Sequence[str]:
        """One line for each thing that was decided for the user and is as it should be."""

    @property
    def weights(self) -> Sequence[float]:
        """How often each sample comes in an epoch, on average."""
