"""Tensors where they lie, in a safetensors file or a pickle of torch, read in pieces; only pickles need torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from camox.checkpoints.header import TensorEntry, read_header
from camox.checkpoints.survey import is_safetensors
from camox.errors import CheckpointError

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 1 << 16
"""Small enough that what is computed of a piece, in double precision too, stays in the second-level cache and below the
size from which malloc gives memory back at once: pages that are new each time cost more than all arithmetic. All dtypes
have a size that divides this."""


class StoredTensor(Protocol):
    """One tensor of an open file, `dtype` as safetensors names it."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def size(self) -> int:
        """Bytes."""

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """Its raw bytes, at most `PIECE_BYTES` at a time, each valid until the next one.

        Two tensors of the same dtype and shape come in pieces of the same lengths, unless one of them is sparse.

        Raises:
            CheckpointError: they cannot be read, or the file became shorter.
        """


@contextmanager
def open_tensors(path: Path) -> Iterator[Sequence[StoredTensor]]:
    """The tensors of a file, to be read inside the block, in the order in which they lie in it.

    Raises:
        CheckpointError: the file is missing, damaged, or a pickle that would run code.
    """
    if not is_safetensors(path):
        yield _legacy_tensors(path)
        return
    entries = read_header(path)
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        buffer = np.empty(PIECE_BYTES, dtype=np.uint8)
        yield [_InSafetensors(path, entry, file, buffer) for entry in entries]


@dataclass(frozen=True)
class _InSafetensors:
    """A tensor of a safetensors file; all of a file share its `buffer`, so one of them is read at a time."""

    path: Path
    entry: TensorEntry
    file: Any
    buffer: NDArray[np.uint8]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def size(self) -> int:
        return self.entry.size

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        self.file.seek(self.entry.start)
        for start in range(0, self.entry.size, len(self.buffer)):
            piece = self.buffer[: min(self.entry.size - start, len(self.buffer))]
            self._fill(piece)
            yield piece

    def _fill(self, piece: NDArray[np.uint8]) -> None:
        # Plain reads, no memory map: as fast, and a file cut short meanwhile is an error, not a bus fault.
        view, filled = piece.data, 0
        while filled < len(view):
            try:
                received = self.file.readinto(view[filled:])
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
            if not received:
                raise CheckpointError(f"{self.path}: became shorter while it was read. Is it being written? Try again.")
            filled += received


@dataclass(frozen=True)
class _InPickle:
    """A tensor of a file of `torch.save`."""

    path: Path
    name: str
    tensor: "torch.Tensor"

    @property
    def dtype(self) -> str:
        name = str(self.tensor.dtype).removeprefix("torch.")
        return _TORCH_NAMES.get(name, name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def size(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        from camox.checkpoints.legacy import bytes_of

        try:
            raw = bytes_of(self.tensor)
        except (RuntimeError, TypeError, ValueError) as error:  # a kind of tensor without numbers, or too large
            raise CheckpointError(f"{self.path}: tensor {self.name!r} cannot be read: {error}") from error
        for start in range(0, raw.size, PIECE_BYTES):
            yield raw[start : start + PIECE_BYTES]


def _legacy_tensors(path: Path) -> list[_InPickle]:
    from camox.checkpoints.legacy import read_legacy  # torch takes 2 s to import

    tensors = [_InPickle(path, name, tensor) for name, tensor in read_legacy(path).items()]
    for tensor in tensors:
        if tensor.tensor.is_nested:
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} is a nested one, which no weights are: save it as plain ones"
            )
    return tensors


_TORCH_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip
