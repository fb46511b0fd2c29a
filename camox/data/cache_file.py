"""One file of resized samples, memory-mapped: all processes that read it share its pages.

4096 bytes   JSON: format, key, size, count
count rows   image [size, size, 3] and mask [size, size], uint8
count × 8    a checksum of each row, 0 where a sample is not kept
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from camox.errors import DataError

FORMAT = 1
SUFFIX = ".camox-cache"
_HEADER = 4096
_CHECKSUM = np.dtype("<u8")


def row_bytes(size: int) -> int:
    """Bytes of one sample at `size`² pixels: image and mask."""
    return 4 * size * size


def file_bytes(size: int, count: int) -> int:
    """Bytes of a file of so many samples."""
    return _HEADER + count * (row_bytes(size) + _CHECKSUM.itemsize)


class CacheFile:
    """The samples of one file, read-only. Other processes see that it is in use.

    Raises:
        DataError: it is not there.
    """

    def __init__(self, path: Path, size: int, count: int):
        self.path, self.size, self.count = path, size, count
        try:
            # Held as long as this object or a worker that inherits it lives: what is in use is not removed.
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: the cache cannot be opened ({error.strerror}): start again") from error
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self._rows = np.asarray(np.memmap(self._file, np.uint8, "r", _HEADER, (count, row_bytes(size))))
        # A page of its own or not, read once: of some thousand numbers nobody has to share a copy.
        self._kept = _read_checksums(self._file, size, count) != 0

    def __reduce__(self) -> tuple[Any, ...]:
        return CacheFile, (self.path, self.size, self.count)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Image uint8 [size, size, 3] and mask uint8 [size, size] to own, None where the sample is not kept."""
        if not self._kept[row]:
            return None
        pixels = self._rows[row].copy()
        end = 3 * self.size * self.size
        return pixels[:end].reshape(self.size, self.size, 3), pixels[end:].reshape(self.size, self.size)


def is_whole(path: Path, key: str, size: int, count: int) -> bool:
    """Whether the file holds what belongs to the key, every byte of it: reads all of it once."""
    try:
        if path.stat().st_size != file_bytes(size, count):
            return False
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER))
            expected = _read_checksums(file, size, count)
    except (OSError, ValueError):
        return False
    if header != _header(key, size, count):
        return False
    rows = np.memmap(path, np.uint8, "r", _HEADER, (count, row_bytes(size)))
    return all(expected[row] in (0, _checksum(rows[row])) for row in range(count))


def write(path: Path, key: str, size: int, count: int, samples: Iterable[tuple[np.ndarray, np.ndarray] | None]) -> None:
    """Writes `count` samples in order, None for one that is not kept; a kill leaves nothing under the file's name.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_suffix(".partial")
    checksums = np.zeros(count, _CHECKSUM)
    try:
        with partial.open("wb") as file:
            file.write(json.dumps(_header(key, size, count)).encode().ljust(_HEADER))
            for row, sample in enumerate(samples):
                pixels = np.zeros(row_bytes(size), np.uint8)
                if sample is not None:
                    pixels = np.concatenate([part.reshape(-1) for part in sample])
                    checksums[row] = _checksum(pixels)
                # Not through a map: there a full disk is a signal that ends the process.
                file.write(pixels.data)
            file.write(checksums.data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _header(key: str, size: int, count: int) -> dict[str, Any]:
    return {"format": FORMAT, "key": key, "size": size, "count": count}


def _read_checksums(file: Any, size: int, count: int) -> np.ndarray:
    file.seek(_HEADER + count * row_bytes(size))
    return np.frombuffer(file.read(count * _CHECKSUM.itemsize), _CHECKSUM)


def _checksum(pixels: np.ndarray) -> np.uint64:
    """Sum of a row's 32-bit words, with a bit on top that makes it no zero; as fast as memory."""
    return np.uint64(pixels.view(np.uint32).sum(dtype=np.uint64)) | np.uint64(1 << 63)
