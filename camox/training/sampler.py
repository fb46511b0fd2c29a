"""Which samples make up which batch: a pure function of seed, epoch and attempt, with nothing to restore."""

from collections.abc import Collection, Iterator

import numpy as np

from camox.errors import ExperimentError
from camox.tracking.console import counted


class EpochBatches:
    """Batch sampler over one epoch's random order, for one rank.

    The order of an epoch is `permutation(seed, epoch, attempt)`, shared by all ranks; global batch i is the
    i-th slice of it and each rank takes its part. What is left over at the end, less than one batch for
    every rank, waits for the next epoch's order: every step then has its full batch on every rank. Yields
    lists of `(epoch, index)`, the keys of `TrainSet`.

    Args:
        left_out: indices of samples that are in no batch.

    Raises:
        ExperimentError: fewer samples than one batch over all ranks.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        left_out: Collection[int] = (),
    ):
        self._kept = np.setdiff1d(np.arange(samples), list(left_out))
        if len(self._kept) < batch_size * ranks:
            raise ExperimentError(
                f"{counted(len(self._kept), 'training sample')} cannot fill one batch of {batch_size} on "
                f"{counted(ranks, 'process')}: "
                "lower data.batch_size (or the phase's), or give more data"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0
        self.attempt = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0, attempt: int = 0) -> None:
        """The next iteration gives `epoch` from its batch `start` on; another `attempt` is another order."""
        self.epoch, self.start, self.attempt = epoch, start, attempt

    def __len__(self) -> int:
        """Batches in a whole epoch, on each rank."""
        return len(self._kept) // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch, self.attempt]).permutation(self._kept)
        for batch in range(self.start, len(self)):
            first = (batch * self.ranks + self.rank) * self.batch_size
            yield [(self.epoch, int(index)) for index in order[first : first + self.batch_size]]
