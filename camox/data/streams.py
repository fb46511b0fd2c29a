"""Sets that are read as they come instead of being downloaded: which rank reads what, in which order, from where on.

The order of a rank's rows depends on the seed, the rank and the number of ranks alone, and every place in it can be
noted down and gone back to.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from camox.data.decoding import ImageFile, read_header
from camox.data.hub_access import HubAddress, load_stream
from camox.data.hub_columns import Columns, choose_columns
from camox.data.huggingface import ADDRESS_KEYS, COLUMN_KEYS, file_at
from camox.data.pairing import Pair, applies_orientation, is_non_camouflaged, stem_of
from camox.data.sources import PairedFiles, source_label
from camox.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

SHUFFLE_BUFFER = 256
"""Rows that are shuffled among each other: of 0.3 MB each two such blocks take 150 MB."""

State = dict[str, Any]
"""A place in an order, ready for JSON."""


@dataclass(frozen=True)
class StoredBytes:
    """An image file's content; `place` is what messages call it."""

    content: bytes
    place: str

    def __str__(self) -> str:
        return self.place

    def open(self, mode: str) -> IO[bytes]:
        """The content as a file."""
        return io.BytesIO(self.content)

    def stamp(self) -> str:
        """The hash of the content."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class StreamedRow:
    """An image and its mask as they came, not decoded; None where the row has none."""

    name: str
    image: ImageFile | None
    mask: ImageFile | None
    place: str
    number: int = 0
    """In its epoch, counted over all ranks; it gives the sample's augmentation."""

    def opened(self) -> PairedFiles:
        """A source of this one sample. Raises `DataError` where it cannot be one."""
        if self.image is None or self.mask is None:
            raise DataError(f"{self.place}: has no {'image' if self.image is None else 'mask'}")
        image, mask = read_header(self.image), read_header(self.mask)
        applies = applies_orientation(image, mask)
        if applies is None:
            sizes = [f"{width}x{height}" for width, height in (mask.upright, image.upright)]
            raise DataError(
                f"{self.mask}: the mask is {sizes[0]} but its image is {sizes[1]}: make it again at that size"
            )
        return PairedFiles([Pair(self.name, self.image, self.mask, "", applies)])


class Stream:
    """A streamed set: nothing is known of a sample before it comes. An epoch has `count` samples."""

    def __init__(
        self,
        dataset: "IterableDataset",
        columns: Columns,
        address: HubAddress,
        label: str,
        count: int,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        non_camouflaged: bool = False,
        notices: tuple[str, ...] = (),
    ):
        self.label = label
        self.notices = notices
        self.remarks = (
            f"of {address} {columns}; its {dataset.num_shards} files are streamed in random order, rows shuffled in "
            f"blocks of {shuffle_buffer}; an epoch is {count} samples"
            + ("" if non_camouflaged else "; COD10K-NonCAM-* are passed over (non_camouflaged = true keeps them)"),
        )
        self.columns = columns
        self.address = address
        self.count = count
        self.shuffle_buffer = shuffle_buffer
        self.non_camouflaged = non_camouflaged
        self._dataset = dataset

    @property
    def shards(self) -> int:
        """Files that can be read each for itself."""
        return int(self._dataset.num_shards)

    def shard(self, number: int) -> "IterableDataset":
        """The raw rows of one of them."""
        return self._dataset.shard(self.shards, number)

    def row(self, raw: Mapping[str, Any], shard: int, position: int) -> StreamedRow:
        """A row of `shard` as it is trained on; `position` is its number in there."""
        columns = self.columns
        place = f"{self.address}, row {position} of file {shard + 1}"
        image, mask = raw[columns.image], raw[columns.mask]
        given = raw[columns.name] if columns.name else image.get("path") if isinstance(image, dict) else None
        name = stem_of(str(given)).rpartition("/")[2] if given else f"{shard:05d}/{position:06d}"
        where = f"{place} ({name}), column"
        return StreamedRow(
            name, _file(image, f"{where} {columns.image}"), _file(mask, f"{where} {columns.mask}"), place
        )


def open_stream(specification: Mapping[str, Any], split: str = "train") -> Stream:
    """Open a set of the hub to be streamed; its first file is looked at, no image decoded.

    The specification is that of `sources.open_source` for sets of the hub, with `count`, the samples of an epoch, where
    the set does not tell how many it has, and `shuffle_buffer?`. Raises `DataError` as `huggingface.hub_pairs` does.
    """
    given = {key: value for key, value in specification.items() if value is not None}
    address = HubAddress(**{"split": split, **{key: given[key] for key in ADDRESS_KEYS if key in given}})
    dataset, known, notices = load_stream(address)
    count = given.get("count", known)
    if count is None:
        raise DataError(f"{address} does not tell how many rows it has: set count to the samples of an epoch")
    named = {key: given[key] for key in COLUMN_KEYS if key in given}
    columns = choose_columns(dataset.features or {}, str(address), **named)
    wanted = [column for column in (columns.image, columns.mask, columns.name) if column is not None]
    return Stream(
        _undecoded(dataset.select_columns(wanted), columns),
        columns,
        address,
        source_label(specification),
        count,
        given.get("shuffle_buffer", SHUFFLE_BUFFER),
        given.get("non_camouflaged", False),
        notices,
    )


def _undecoded(dataset: "IterableDataset", columns: Columns) -> "IterableDataset":
    from datasets import Image

    for column in (columns.image, columns.mask):
        if isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def _file(cell: Any, place: str) -> ImageFile | None:
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is not None:
        return StoredBytes(content, place)
    return file_at(path) if path else None


class _Pass:
    """A rank's rows of one pass over a stream, from a place on; an iterator.

    The files are in an order of the pass's own. Where there are at least as many as ranks, each rank takes its part of
    them; else all ranks read all files, and each takes its part of the rows of each.
    """

    def __init__(self, stream: Stream, seed: int, rank: int, ranks: int, start: State):
        self.number = start["pass"]
        self.stream = stream
        order = [int(shard) for shard in np.random.default_rng([seed, self.number]).permutation(stream.shards)]
        self._by_files = stream.shards >= ranks
        self._shards = order[rank::ranks] if self._by_files else order
        self._rank, self._ranks = rank, ranks
        self._file, self._row = start["file"], start["row"]
        self._dataset: Any = None
        self._raw: Iterator[Any] = iter(())
        if start["rows"] is not None:
            self._open(start["rows"])

    @staticmethod
    def beginning(number: int) -> State:
        """Where pass `number`, counted from 0, begins."""
        return {"pass": number, "file": 0, "row": 0, "rows": None}

    def state_dict(self) -> State:
        """The place before the next row."""
        rows = None if self._dataset is None else self._dataset.state_dict()
        return {"pass": self.number, "file": self._file, "row": self._row, "rows": rows}

    def __iter__(self) -> "_Pass":
        return self

    def __next__(self) -> StreamedRow:
        while self._file < len(self._shards):
            if self._dataset is None:
                self._open(None)
            shard = self._shards[self._file]
            while (raw := self._next_raw()) is not None:
                self._row += 1
                mine = self._by_files or (self._row - 1) % self._ranks == self._rank
                row = self.stream.row(raw, shard, self._row - 1) if mine else None
                if row is not None and (self.stream.non_camouflaged or not is_non_camouflaged(row.name)):
                    return row
            self._file, self._row, self._dataset = self._file + 1, 0, None
        raise StopIteration

    def _open(self, rows: State | None) -> None:
        self._dataset = self.stream.shard(self._shards[self._file])
        if rows is not None:
            self._dataset.load_state_dict(rows)
        self._raw = iter(self._dataset)

    def _next_raw(self) -> Any:
        try:
            return next(self._raw, None)
        except Exception as error:  # the library lets through whatever its readers and clients raise
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self.stream.address}: file {self._shards[self._file] + 1} cannot be read from row {self._row} on "
                f"({type(error).__name__}: {reason}): once it can, go on with --resume auto"
            ) from error


class Reading:
    """A rank's endless way over a stream, pass after pass, shuffled in blocks that do not reach from one pass into the
    next.

    Its state is the place after the last row that was trained on, not after the last that was read. Its length is that
    of an epoch, over all ranks; `label`, `notices` and `remarks` are a source's.
    """

    def __init__(self, stream: Stream, seed: int, rank: int = 0, ranks: int = 1):
        self.stream = stream
        self.label, self.notices, self.remarks = stream.label, stream.notices, stream.remarks
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.begin(0)

    def __len__(self) -> int:
        return self.stream.count

    def begin(self, number: int) -> None:
        """Goes to the beginning of pass `number`."""
        self.place: State = {"block": 0, "offset": 0, "start": _Pass.beginning(number)}
        self._ahead: tuple[State, int, Iterator[tuple[StreamedRow, State]]] | None = None

    def state_dict(self) -> State:
        """The place."""
        return self.place

    def load_state_dict(self, state: State) -> None:
        """Goes to a place."""
        self.place = state

    def rows(self, attempt: int) -> Iterator[tuple[StreamedRow, State]]:
        """The rows from the place on, each with the place after it; another attempt shuffles them another way.

        What was read ahead is used where the last row that was handed out is also the last that was trained on.
        """
        if self._ahead is None or self._ahead[:2] != (self.place, attempt):
            self._ahead = (self.place, attempt, self._from(self.place, attempt))
        *_, upcoming = self._ahead
        for row, after in upcoming:
            self._ahead = (after, attempt, upcoming)
            yield row, after

    def _from(self, place: State, attempt: int) -> Iterator[tuple[StreamedRow, State]]:
        number, offset, start = place["block"], place["offset"], place["start"]
        source = _Pass(self.stream, self.seed, self.rank, self.ranks, start)
        block = self._block(source, [])
        while True:
            if not block:
                if start == _Pass.beginning(source.number):
                    raise DataError(f"{self.stream.address} has no row for process {self.rank}: use fewer processes")
                source = _Pass(self.stream, self.seed, self.rank, self.ranks, _Pass.beginning(source.number + 1))
                start = source.state_dict()
                block = self._block(source, [])
                continue
            order = np.random.default_rng([self.seed, attempt, self.rank, number]).permutation(len(block))
            following: list[StreamedRow] = []
            start_of_following = source.state_dict()
            for done, index in enumerate(order, start=1):
                # One is read for each that is handed out: a whole block at once would keep the device waiting.
                following += islice(source, 1)
                if done <= offset:
                    continue
                after = {"block": number, "offset": done, "start": start}
                if done == len(block):
                    after = {"block": number + 1, "offset": 0, "start": start_of_following}
                yield block[index], after
            block, start, number, offset = self._block(source, following), start_of_following, number + 1, 0

    def _block(self, source: _Pass, rows: list[StreamedRow]) -> list[StreamedRow]:
        """The rows, filled up to a block as far as the pass goes."""
        return [*rows, *islice(source, self.stream.shuffle_buffer - len(rows))]
