"""Which streamed samples make up which batch, and up to which of them a run has trained."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from camox.data.loading import TrainKey
from camox.data.streams import Reading, State
from camox.training.sampler import EpochBatches, require_a_batch, sizes_of_batches


class StreamBatches:
    """Batch sampler over one epoch of a streamed set, for one rank; what `EpochBatches` is for the others.

    An epoch is the stream's next `len(reading)` samples, without the rest that fills no batch on every rank. Yields
    lists of `(epoch, row)`, or `(epoch, row, size)` where there are `sizes`: the keys of `TrainSet`. Rows are numbered
    in the epoch over all ranks. They come as bytes and workers decode them, so that the order is the same for any
    number of workers.

    Args:
        reading: this rank's way over the stream. Its place moves by `consumed` alone, because a loader asks for batches
            long before they are trained on.
        sizes: as of `EpochBatches`.

    Raises:
        ExperimentError: an epoch has fewer samples than one batch over all ranks.
    """

    def __init__(self, reading: Reading, batch_size: int, sizes: Sequence[int] = ()):
        require_a_batch(len(reading), batch_size, reading.ranks)
        self.reading = reading
        self.batch_size = batch_size
        self.sizes = sizes
        self.epoch = 0
        self.attempt = 0
        self.start = 0
        self._ahead: deque[State] = deque()

    def set_position(self, epoch: int, start: int = 0, attempt: int = 0) -> None:
        """The next iteration gives `epoch` from its batch `start` on, the one at the reading's place."""
        self.epoch, self.start, self.attempt = epoch, start, attempt

    def consumed(self, batches: int) -> None:
        """Notes that so many more batches have been trained on."""
        for _ in range(batches):
            self.reading.place = self._ahead.popleft()

    def __len__(self) -> int:
        """Batches in a whole epoch, on each rank."""
        return len(self.reading) // (self.batch_size * self.reading.ranks)

    def __iter__(self) -> Iterator[list[TrainKey]]:
        self._ahead.clear()
        rows = self.reading.rows(self.attempt)
        sizes = sizes_of_batches(self.sizes, len(self), self.reading.seed, self.epoch, self.attempt)
        for batch in range(self.start, len(self)):
            chosen = list(islice(rows, self.batch_size))
            self._ahead.append(chosen[-1][1])
            first = (batch * self.reading.ranks + self.reading.rank) * self.batch_size
            numbered = [replace(row, number=first + position) for position, (row, _) in enumerate(chosen)]
            yield [(self.epoch, row, *sizes[batch]) for row in numbered]


Batches = EpochBatches | StreamBatches
"""The order of an epoch, of samples with an index or of streamed ones."""
