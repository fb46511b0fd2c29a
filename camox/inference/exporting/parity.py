"""Does an exported model say what the model says? Measured on images of several sizes and batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from camox.data.habitats import SMALLEST_SIZE, Habitats
from camox.models.camoxpert import CamoXpert

LIMIT = 1e-3
"""The largest difference of a probability that counts as the same."""
TIE = 1e-4
"""A gate whose last chosen expert beat the next by less, in units of a logit, may choose otherwise by rounding."""

Maps = tuple[Tensor, Tensor]
"""Logits and uncertainty, each `[B, 1, H, W]`."""


@dataclass(frozen=True)
class Parity:
    """What a comparison found; differences are of probabilities and of uncertainty, both in [0, 1]."""

    images: int
    largest: float
    """Over all images without a near-tie of a gate; NaN where a map holds NaN."""
    near_ties: int
    """Images with one: they are counted apart."""
    largest_of_near_ties: float

    @property
    def holds(self) -> bool:
        """Whether the two are the same model."""
        return self.largest <= LIMIT and self.images > self.near_ties

    def __str__(self) -> str:
        compared = f"{self.images - self.near_ties} images of different sizes"
        ties = f"{self.near_ties} more have a near-tie of a gate (margin below {TIE:g})"
        differ = f", differ by at most {self.largest_of_near_ties:.1e} and are not counted" if self.near_ties else ""
        return f"largest difference {self.largest:.1e} on {compared} (at most {LIMIT:g} is allowed); {ties}{differ}"


@torch.no_grad()
def measure_parity(model: CamoXpert, exported: Callable[[Tensor], Maps], batches: Iterable[Tensor]) -> Parity:
    """Compare maps on batches `[B, 3, H, W]` of images in [0, 1]; the model is on the CPU, in eval mode."""
    images, near_ties, largest, largest_of_ties = 0, 0, 0.0, 0.0
    for batch in batches:
        output = model(batch)
        differences = _differences((output.logits, output.uncertainty), exported(batch))
        tied = model.routing_margins(output) < TIE
        images, near_ties = images + len(batch), near_ties + int(tied.sum())
        largest = _larger(largest, differences[~tied])
        largest_of_ties = _larger(largest_of_ties, differences[tied])
    return Parity(images, largest, near_ties, largest_of_ties)


def parity_batches(shapes: Sequence[tuple[int, int, int]], seed: int = 0) -> Iterator[Tensor]:
    """For each (B, H, W) a batch: every second image a synthetic habitat, the others noise of several grain sizes."""
    rng = np.random.default_rng(seed)
    number = 0
    for count, height, width in shapes:
        batch = []
        for _ in range(count):
            image = _habitat(number, height, width) if number % 2 else _noise(rng, height, width)
            batch.append(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255)
            number += 1
        yield torch.stack(batch)


def shapes_around(image_size: int) -> list[tuple[int, int, int]]:
    """Batches (B, H, W) to compare on: the size of training, and others that 32 does not divide."""

    def part(share: float) -> int:
        return max(33, round(image_size * share))

    return [
        (1, image_size, image_size),
        (2, part(0.77), part(1.09)),
        (3, part(0.53), part(0.69)),
        (1, part(1.21), part(0.37)),
        (2, 64, 96),
    ]


def _habitat(number: int, height: int, width: int) -> np.ndarray:
    size = max(height, width, SMALLEST_SIZE)
    return Habitats(number + 1, seed=2, size=size)[number].image[:height, :width]


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    grain = int(rng.integers(1, 9))
    coarse = rng.integers(0, 256, (-(-height // grain), -(-width // grain), 3), np.uint8)
    return coarse.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]


def _differences(ours: Maps, theirs: Maps) -> Tensor:
    """The largest of each image, `[B]`."""
    pairs = ((ours[0].sigmoid(), theirs[0].sigmoid()), (ours[1], theirs[1]))
    return torch.stack([(a - b).abs().flatten(1).amax(dim=1) for a, b in pairs]).amax(dim=0)


def _larger(before: float, differences: Tensor) -> float:
    """NaN stays: a comparison would lose it."""
    return float(torch.cat([differences, torch.tensor([before])]).max())
