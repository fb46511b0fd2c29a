"""A folder of resized samples: made once, shared by processes and runs, bounded in size, made anew when data change."""

import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
from torch.utils.data import DataLoader, Dataset

from camox.data import cache_file
from camox.data.cache_file import SUFFIX, CacheFile, file_bytes
from camox.data.resized import Resized, read_resized
from camox.data.samples import Sample, Samples, Source, content_of, read_reduced
from camox.data.sources import Subset
from camox.data.workers import prepare_worker
from camox.errors import DataError

DECODING = 1
"""Raised by whoever changes what decoding, resizing or a generator makes of the same data: caches are made anew."""
GIB = 2**30
Tell = Callable[[str], None]
Counting = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Given what is counted and up to which number, shows it while a block runs, which calls what it gets after each."""


class CachedSource:
    """A source whose samples are there at some sizes already; in all else it is the source."""

    def __init__(self, source: Source, files: Sequence[CacheFile]):
        self.source = source
        self.label, self.notices, self.remarks = source.label, source.notices, source.remarks
        self.weights, self.names, self.groups = source.weights, source.names, source.groups
        self._files = {file.size: file for file in files}
        self._rows = source.indices if isinstance(source, Subset) else range(len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    def reduced(self, index: int, at_least: int) -> Sample:
        return read_reduced(self.source, index, at_least)

    def kept(self, index: int, size: int) -> Resized | None:
        file = self._files.get(size)
        return None if file is None else file[self._rows[index]]


def _uncounted(what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


def cached(
    source: Source,
    sizes: Sequence[int],
    folder: Path,
    gib: float,
    workers: int,
    tell: Tell,
    counting: Counting = _uncounted,
) -> CachedSource:
    """The source with its samples at each of `sizes`, in pixels, from files in `folder`.

    What is missing there, damaged, or of data that have changed since, is made first, by so many workers. Of a part of
    a source all of the source is kept, so that runs with other parts find it. A sample that cannot be read is not kept:
    it is asked for again each time, and told of as without a cache. Processes that want the same wait for one another.

    Args:
        gib: the most that all caches in the folder may take. Those that were not used for longest are removed for new
            ones, unless they are in use.
        tell: is called with what a person should know while it takes time.
        counting: shows how many samples are done.

    Raises:
        DataError: it is too large for the limit or the disk, the folder cannot be written, or the source has nothing to
            tell changed data by.
    """
    whole = source.source if isinstance(source, Subset) else source
    require_within(len(whole), sizes, gib)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, tell):
            for remains in folder.glob("*.partial"):
                remains.unlink()
            files = [_opened(whole, size, folder, gib, workers, tell, counting) for size in sorted(set(sizes))]
    except OSError as error:
        raise DataError(
            f"{folder}: the cache cannot be written ({error.strerror or error}): free some of the disk, or give "
            'data.cache another folder, or "" for none'
        ) from error
    return CachedSource(source, files)


def cache_bytes(samples: int, sizes: Sequence[int]) -> int:
    """What the caches of so many samples take at these sizes together."""
    return sum(file_bytes(size, samples) for size in set(sizes))


def require_within(samples: int, sizes: Sequence[int], gib: float) -> int:
    """Bytes that so many samples take at these sizes. Raises `DataError` where that is more than the limit."""
    needed = cache_bytes(samples, sizes)
    if needed > gib * GIB:
        listed = ", ".join(f"{size}²" for size in sorted(set(sizes)))
        raise DataError(
            f"the cache of {samples} samples at {listed} pixels takes {needed / GIB:.3g} GiB, more than "
            f"data.cache_gib = {gib:g}: raise it, or leave data.cache out"
        )
    return needed


@contextmanager
def _alone(folder: Path, tell: Tell) -> Iterator[None]:
    """Only one process of all is in the block for this folder."""
    with (folder / ".lock").open("w") as lock:
        try:
            # Of the process alone: data workers that outlive a kill by seconds do not hold it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two depends on the system
            tell(f"another process is at work on the cache in {folder}: waiting for it")
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _opened(
    whole: Samples, size: int, folder: Path, gib: float, workers: int, tell: Tell, counting: Counting
) -> CacheFile:
    key = _key(whole, size)
    path = folder / f"{size}px_{key[:24]}{SUFFIX}"
    count = len(whole)
    if path.exists() and not cache_file.is_whole(path, key, size, count):
        tell(f"{path} is damaged: it is made anew")
        path.unlink()
    if not path.exists():
        needed = file_bytes(size, count)
        tell(f"{count} samples are resized to {size}² once and kept in {folder} ({needed / GIB:.2f} GiB)")
        _make_room(folder, needed, gib)
        with counting(f"caching at {size}²", count) as done:
            cache_file.write(path, key, size, count, _told(_all_resized(whole, size, workers), done))
    os.utime(path)  # a file system need not note when it was read
    return CacheFile(path, size, count)


# ---- what tells data apart


def _key(whole: Samples, size: int) -> str:
    """SHA-256, in hexadecimal, of all that the pixels in a cache depend on."""
    versions = [cache_file.FORMAT, DECODING, cv2.__version__, PIL.__version__, torch.__version__, np.__version__]
    digest = hashlib.sha256(json.dumps([*map(str, versions), size]).encode())
    for index in range(len(whole)):
        digest.update(content_of(whole, index).encode() + b"\0")
    return digest.hexdigest()


# ---- room


def _make_room(folder: Path, needed: int, gib: float) -> None:
    """Removes what was not used for longest until `needed` bytes more stay within the limit."""
    others = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    used = sum(path.stat().st_size for path in others)
    for path in others:
        if used + needed <= gib * GIB:
            break
        size = path.stat().st_size
        used -= size if _removed(path) else 0
    if used + needed > gib * GIB:
        raise DataError(
            f"{folder}: {used / GIB:.2f} GiB of caches are in use there and {needed / GIB:.2f} more are needed, "
            f"together more than data.cache_gib = {gib:g}: raise it, or give data.cache another folder"
        )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the cache takes {needed / GIB:.2f} GiB, and the disk has {free / GIB:.2f} free: free some, "
            'give data.cache another folder, or "" for none'
        )


def _removed(path: Path) -> bool:
    """Removes a cache, unless a process reads it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


# ---- making


class _ResizedSet(Dataset[Resized | None]):
    """What is kept of each sample, None where there is nothing to keep."""

    def __init__(self, samples: Samples, size: int):
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Resized | None:
        try:
            return read_resized(self.samples, index, self.size)
        except DataError:  # told when it is trained on
            return None


def _all_resized(samples: Samples, size: int, workers: int) -> Iterator[Resized | None]:
    dataset = _ResizedSet(samples, size)
    # As of the loaders of training: more workers than cores is the user's choice.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    yield from DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=prepare_worker,
        generator=torch.Generator().manual_seed(0),  # the global one must not know whether there is a cache
    )


def _told(samples: Iterator[Resized | None], done: Callable[[], None]) -> Iterator[Resized | None]:
    for sample in samples:
        yield sample
        done()


def _as_it_is(sample: Any) -> Any:
    return sample
