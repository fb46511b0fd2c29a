"""Which streamed samples make up which batch, and up to which of them a run has trained."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

from camox.data.streams import Reading, State, StreamedRow
from camox.training.sampler import EpochBatches, require_a_batch


class StreamBatches:
    """Batch sampler over one epoch of a streamed set, for one rank; what `EpochBatches` is for the others.

    An epoch is the stream's next `len(reading)` samples, without the rest that fills no batch on every rank. Yields
    lists of `(epoch, number, row)`, the keys of `TrainSet`; numbers count an epoch's samples over all ranks. The rows
    come as bytes and workers decode them, so that the order is the same for any number of workers.

    Args:
        reading: this rank's way over the stream. Its place moves by `consumed` alone, because a loader asks for batches
            long before they are trained on.

    Raises:
        ExperimentError: an epoch has fewer samples than one batch over all ranks.
    """

    def __init__(self, reading: Reading, batch_size: int):
        require_a_batch(len(reading), batch_size, reading.ranks)
        self.reading = reading
        self.batch_size = batch_size
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

    def __iter__(self) -> Iterator[list[tuple[int, int, StreamedRow]]]:
        self._ahead.clear()
        rows = self.reading.rows(self.attempt)
        for batch in range(self.start, len(self)):
            chosen = list(islice(rows, self.batch_size))
            self._ahead.append(chosen[-1][1])
            first = (batch * self.reading.ranks + self.reading.rank) * self.batch_size
            yield [(self.epoch, first + position, row) for position, (row, _) in enumerate(chosen)]


Batches = EpochBatches | StreamBatches
"""The order of an epoch, of samples with an index or of streamed ones."""
