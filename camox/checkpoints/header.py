"""The header of a safetensors file, read and checked without trusting a byte of it.

Format: 8 bytes little-endian header length N, N bytes of JSON ``{name: {"dtype", "shape", "data_offsets"}}``,
then the tensors' bytes, which must cover the rest of the file without hole or overlap
(https://huggingface.co/docs/safetensors/index#format).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camox.checkpoints.manifest import require_regular
from camox.errors import CheckpointError

# Bits of one element. Sub-byte formats exist, so bytes would not do.
BITS_PER_ELEMENT = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

# The limit of the reference implementation; a larger length means random bytes or an attack on memory.
LARGEST_HEADER = 100_000_000
_LARGEST_SIZE = 2**63  # of a file in bytes, and so of any side of a tensor


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `start` and `size` in bytes, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors of a safetensors file in the order in which they lie in it.

    Raises CheckpointError, with the file and the defect, where any part of it is not as the format says.
    """
    try:
        require_regular(path)
        file_size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if file_size < 8 or not 2 <= header_size <= min(LARGEST_HEADER, file_size - 8):
                raise _damaged(path, f"header length {header_size} does not fit a file of {file_size} bytes")
            text = file.read(header_size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    entries = _parse(path, text, data_start=8 + header_size)
    _check_coverage(path, entries, data_start=8 + header_size, file_size=file_size)
    return entries


def _parse(path: Path, text: bytes, data_start: int) -> tuple[TensorEntry, ...]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = [_entry(path, name, fields, data_start) for name, fields in header.items()]
    return tuple(sorted(entries, key=lambda entry: (entry.start, entry.size)))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def _entry(path: Path, name: str, fields: Any, data_start: int) -> TensorEntry:
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise _damaged(path, f"the name of tensor {name!r} is no text")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"the header of tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_PER_ELEMENT:
        raise _damaged(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _is_naturals(shape) or not _is_naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name!r} has the impossible shape {shape!r} or offsets {offsets!r}")
    start, end = offsets
    bits = _bits(shape, dtype)
    if (end - start) * 8 != bits:
        raise _damaged(path, f"tensor {name!r} ({dtype} {shape}) needs {bits / 8:g} bytes and has {end - start}")
    return TensorEntry(name, dtype, tuple(shape), data_start + start, end - start)


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _LARGEST_SIZE for item in value)


def _bits(shape: list[int], dtype: str) -> int:
    """Size of a tensor; of one larger than any file no more than that, because the product itself takes for ever."""
    bits = 0 if 0 in shape else BITS_PER_ELEMENT[dtype]
    for side in shape:
        if bits > 8 * _LARGEST_SIZE:
            break
        bits *= side
    return bits


def _check_coverage(path: Path, entries: tuple[TensorEntry, ...], data_start: int, file_size: int) -> None:
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise _damaged(path, f"tensor {entry.name!r} leaves a hole or overlaps the one before it")
        position += entry.size
    if position > file_size:
        raise _damaged(path, f"it is cut short: {file_size} bytes of {position}")
    if position < file_size:
        raise _damaged(path, f"{file_size - position} bytes follow the last tensor")


def _damaged(path: Path, defect: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a readable safetensors file: {defect}. Take another checkpoint "
        "(`camox inspect RUN --last-clean` names the newest clean one) or fetch the file again."
    )
