"""Samples become batches: uint8 until they are on the device, the same for any number of workers."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camox.data.resized import read_resized
from camox.data.samples import Samples
from camox.data.streams import Reading, StreamedRow
from camox.data.transforms import augment, augmentation_seed, build_augmentation, resize_image, resize_mask
from camox.data.workers import prepare_worker
from camox.errors import DataError


@dataclass(frozen=True)
class TrainBatch:
    """Images and masks of B training samples at one size S.

    `images` uint8 [B, 3, S, S] RGB, `masks` uint8 [B, 1, S, S] in {0, 1}, `indices` int64 [B] into the
    source, or -1 for streamed samples, which have no place in one. `problems` has a message for every sample that is
    not fit to train on; zeros stand in its place. `weights` float32 [B] is 0 for these and 1 for all others.
    """

    images: Tensor
    masks: Tensor
    indices: Tensor
    weights: Tensor
    problems: list[str]
    names: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TrainBatch":
        """The batch with its tensors on `device`; asynchronous only from pinned memory."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            masks=self.masks.to(device, non_blocking=non_blocking),
            indices=self.indices.to(device, non_blocking=non_blocking),
            weights=self.weights.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "TrainBatch":
        """The batch in page-locked memory; called by the DataLoader's pinning thread."""
        return replace(
            self,
            images=self.images.pin_memory(),
            masks=self.masks.pin_memory(),
            indices=self.indices.pin_memory(),
            weights=self.weights.pin_memory(),
        )


@dataclass(frozen=True)
class EvalBatch:
    """Images of B samples at one size S with their truths at native size.

    `images` uint8 [B, 3, S, S] RGB, `truths[i]` uint8 [H_i, W_i] in {0, 1}, `indices` int64 [B] into the
    source. `problems` has a message for every sample that could not be read; zeros stand in for its image and
    truth [S, S].
    """

    images: Tensor
    truths: list[np.ndarray]
    names: list[str]
    groups: list[str]
    indices: Tensor
    problems: list[str]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EvalBatch":
        """The batch with its images on `device`; truths stay where measures are taken."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "EvalBatch":
        """The batch with its images in page-locked memory; called by the DataLoader's pinning thread."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class _Item:
    """One loaded sample: image uint8 [S, S, 3], mask uint8 [S, S] (training) or native (evaluation)."""

    index: int
    image: np.ndarray
    mask: np.ndarray
    problem: str | None = None
    name: str = ""


TrainKey = tuple[Any, ...]
"""Epoch, sample, and where sizes vary its size in pixels. A sample is given by its index, a streamed one is its row."""


class TrainSet(Dataset[_Item]):
    """Training samples, resized and augmented; the key is a `TrainKey`.

    Samples have `image_size`² pixels, or the key's size, which is then to be one of `sizes`. `augment` lists
    albumentations transforms (see `transforms.build_augmentation`, whose errors this raises); they see the resized
    image, and what they make of another size is resized again. What a key gives depends on nothing but the source, the
    arguments and the key.
    """

    def __init__(
        self,
        source: Samples | Reading,
        image_size: int,
        augment: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        sizes: Sequence[int] = (),
    ):
        self.source = source
        self.image_size = image_size
        self.seed = seed
        # The same chain for all; but one that crops may be too large for the smallest.
        chains = [build_augmentation(augment, size) for size in {image_size, *sizes}] if augment else [None]
        self.augmentation = chains[0]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: TrainKey) -> _Item:
        epoch, sample, *rest = key
        size = rest[0] if rest else self.image_size
        streamed = isinstance(sample, StreamedRow)
        number, name = (sample.number, sample.name) if streamed else (sample, self._samples.names[sample])
        problem = None
        try:
            source, index = (sample.opened(), 0) if streamed else (self._samples, sample)
            image, mask = self._load(source, index, size, augmentation_seed(self.seed, epoch, number))
        except DataError as error:
            # Raised in a worker it would end this process only, and other ranks would wait for it forever.
            image, mask = _zeros(size)
            # The number of a streamed sample is another one each time that it comes.
            problem = f"sample {name}: {error}" if streamed else _problem(name, number, error)
        return _Item(-1 if streamed else number, image, mask, problem, name)

    @property
    def _samples(self) -> Samples:
        assert not isinstance(self.source, Reading), "streamed samples come with their keys"
        return self.source

    def _load(self, source: Samples, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = read_resized(source, index, size)
        if self.augmentation is None:
            return image, mask
        image, mask = augment(self.augmentation, image, mask, seed)
        return resize_image(image, size), resize_mask(mask, size)


class EvalSet(Dataset[_Item]):
    """Images resized to `image_size`² pixels with native truths; the key is the index.

    `alter`, if given, makes another image uint8 [S, S, 3] of the resized one and the sample's name.
    """

    def __init__(self, source: Samples, image_size: int, alter: Callable[[np.ndarray, str], np.ndarray] | None = None):
        self.source = source
        self.image_size = image_size
        self.alter = alter

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Item:
        try:
            sample = self.source[index]
        except DataError as error:
            image, mask = _zeros(self.image_size)
            return _Item(index, image, mask, _problem(self.source.names[index], index, error))
        image = resize_image(sample.image, self.image_size)
        return _Item(index, image if self.alter is None else self.alter(image, sample.name), sample.mask)

    def collate(self, items: Sequence[_Item]) -> EvalBatch:
        """Put loaded samples together."""
        return EvalBatch(
            images=_stacked_images(items),
            truths=[item.mask for item in items],
            names=[self.source.names[item.index] for item in items],
            groups=[self.source.groups[item.index] for item in items],
            indices=torch.tensor([item.index for item in items], dtype=torch.int64),
            problems=_problems(items),
        )


def train_loader(
    dataset: TrainSet,
    batch_sampler: Iterable[Sequence[TrainKey]],
    workers: int,
    pin_memory: bool,
) -> DataLoader[TrainBatch]:
    """Batches of training samples; `batch_sampler` yields the keys of each batch, which have one size.

    With `workers` > 0 that many processes load ahead (two batches each) and live as long as the loader. Each
    `iter()` asks the batch sampler anew.
    """
    return _loader(dataset, batch_sampler, workers, pin_memory, collate_train)


def eval_loader(
    dataset: EvalSet, indices: Sequence[int], batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[EvalBatch]:
    """Batches of the samples at `indices`, in that order; the last one may be smaller. Processes as above."""
    return _loader(dataset, _Chunks(indices, batch_size), workers, pin_memory, dataset.collate)


class _Chunks:
    """`items` in lists of `size`, the last one possibly shorter."""

    def __init__(self, items: Sequence[int], size: int):
        assert size >= 1
        self.items, self.size = list(items), size

    def __len__(self) -> int:
        return -(-len(self.items) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.items), self.size):
            yield self.items[start : start + self.size]


def _loader(
    dataset: Dataset[_Item], batch_sampler: Iterable[Any], workers: int, pin_memory: bool, collate: Any
) -> DataLoader[Any]:
    # More workers than cores is the user's choice; torch repeats its doubts for every loader of every process, when
    # it is made or when it is first asked for a batch.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=prepare_worker,
        # Otherwise every iter() draws a number from torch's global generator, and a run that was resumed in
        # mid-epoch goes on with other dropout than the uninterrupted one.
        generator=torch.Generator().manual_seed(0),
    )


def collate_train(items: Sequence[_Item]) -> TrainBatch:
    """Put loaded training samples together."""
    return TrainBatch(
        images=_stacked_images(items),
        masks=torch.from_numpy(np.stack([item.mask for item in items])[:, None]),
        indices=torch.tensor([item.index for item in items], dtype=torch.int64),
        weights=torch.tensor([float(item.problem is None) for item in items]),
        problems=_problems(items),
        names=[item.name for item in items],
    )


def _stacked_images(items: Sequence[_Item]) -> Tensor:
    # A third of what a copy of the transposed array takes.
    planes = np.stack([plane for item in items for plane in cv2.split(item.image)])
    return torch.from_numpy(planes.reshape(len(items), 3, *planes.shape[1:]))


def _problems(items: Sequence[_Item]) -> list[str]:
    return [item.problem for item in items if item.problem is not None]


def _problem(name: str, index: int, error: DataError) -> str:
    return f"sample {index} ({name}): {error}"


def _zeros(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
