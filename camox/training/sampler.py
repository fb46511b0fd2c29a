"""Which samples make up which batch: a pure function of seed, epoch and attempt, with nothing to restore."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from camox.errors import ExperimentError
from camox.tracking.console import counted


class EpochBatches:
    """Batch sampler over one epoch's random order, for one rank.

    The order of an epoch is `permutation(seed, epoch, attempt)`, shared by all ranks; global batch i is the
    i-th slice of it and each rank takes its part. What is left over at the end, less than one batch for
    every rank, waits for the next epoch's order: every step then has its full batch on every rank. Yields
    lists of `(epoch, index)`, or `(epoch, index, size)` where there are `sizes`: the keys of `TrainSet`.

    Args:
        weights: of each sample, how often it comes in an epoch, on average. Of samples of one weight all come equally
            often: with 2.5 each comes twice, and half of them, another half in the next epoch, once more. At least one
            comes in every epoch, or all would stay away.
        left_out: indices of samples that are in no batch.
        sizes: in pixels, of which every batch draws one by its place in the epoch, the same on all ranks.

    Raises:
        ExperimentError: fewer samples than one batch over all ranks.
    """

    def __init__(
        self,
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        left_out: Collection[int] = (),
        sizes: Sequence[int] = (),
    ):
        self._parts = _parts_of_equal_weight(weights, left_out)
        self._samples = sum(count for _, count in self._parts)
        require_a_batch(self._samples, batch_size, ranks)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.sizes = sizes
        self.epoch = 0
        self.attempt = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0, attempt: int = 0) -> None:
        """The next iteration gives `epoch` from its batch `start` on; another `attempt` is another order."""
        self.epoch, self.start, self.attempt = epoch, start, attempt

    def consumed(self, batches: int) -> None:
        """Nothing to note: what a batch holds follows from its number."""

    def __len__(self) -> int:
        """Batches in a whole epoch, on each rank."""
        return self._samples // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        drawn = np.concatenate([self._drawn(*part) for part in self._parts])
        order = np.random.default_rng([self.seed, self.epoch, self.attempt]).permutation(drawn)
        sizes = sizes_of_batches(self.sizes, len(self), self.seed, self.epoch, self.attempt)
        for batch in range(self.start, len(self)):
            first = (batch * self.ranks + self.rank) * self.batch_size
            yield [(self.epoch, int(index), *sizes[batch]) for index in order[first : first + self.batch_size]]

    def _drawn(self, members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """`count` of the members in this epoch: all of them as often as that is whole, then the next in turn."""
        whole, rest = divmod(count, len(members))
        turn = np.random.default_rng([self.seed, len(members)]).permutation(members) if rest else members
        return np.concatenate([*[members] * whole, np.take(turn, np.arange(rest) + self.epoch * rest, mode="wrap")])


def sizes_of_batches(
    sizes: Sequence[int], batches: int, seed: int, epoch: int, attempt: int
) -> list[tuple[int]] | list[tuple[()]]:
    """What every batch of a whole epoch has for its size, drawn of `sizes`: nothing where there are none."""
    if not sizes:
        return [()] * batches
    generator = np.random.default_rng([seed, epoch, attempt, 1])
    return [(int(size),) for size in generator.choice(sizes, batches)]


def require_a_batch(samples: int, batch_size: int, ranks: int) -> None:
    """Raise `ExperimentError` where so many samples are fewer than one batch over all ranks."""
    if samples < batch_size * ranks:
        raise ExperimentError(
            f"{counted(samples, 'training sample')} cannot fill one batch of {batch_size} on "
            f"{counted(ranks, 'process')}: "
            "lower data.batch_size (or the phase's), or give more data"
        )


def _parts_of_equal_weight(weights: Sequence[float], left_out: Collection[int]) -> list[tuple[NDArray[np.int64], int]]:
    """Samples of one weight, and how many of them an epoch takes, at least one, for every weight."""
    kept = np.setdiff1d(np.arange(len(weights)), list(left_out))
    of_kept = np.asarray(weights, np.float64)[kept]
    parts = [(kept[of_kept == weight], weight) for weight in np.unique(of_kept)]
    return [(members, max(1, round(weight * len(members)))) for members, weight in parts]
