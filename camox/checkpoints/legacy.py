"""Reads checkpoints of other programs (.pth, .pt, .bin) without running what they carry.

A pickle can run any code when it is loaded. torch's restricted unpickler builds tensors and plain containers
only and refuses the rest; nothing here ever turns it off. camox itself writes safetensors.
"""

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camox.errors import CheckpointError

_DEEPEST, _MOST_VISITS, _MOST_ENTRIES = 100, 100, 20_000_000
"""Levels of lists and tables in each other, places that one of them stands in, and entries in all: far more than any
checkpoint has."""
_USUAL_TABLES = ("state_dict", "model_state_dict", "model", "network", "net")
"""Names under which programs keep a network's weights beside other things."""
_SPARE_BYTES = 1 << 30
"""What tensors may take beyond eight times their file before they are held for an attack on memory."""

# Best scores are often pickled as NumPy scalars. Rebuilding one runs no code of the file's.
_NUMPY_DTYPES = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]


def read_legacy(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors in a file of `torch.save`, on the host, by dotted name (`model.stem.weight`, …).

    Zip files (torch >= 1.6) are mapped, so that only tensors looked at are read. Raises CheckpointError if
    the file is no such file, holds no tensors, or would run code: the message names what was refused.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # what matters about the file ends up in the error below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # A damaged pickle makes the unpickler raise nearly any exception there is.
    except Exception as error:
        raise _refusal(path, error) from error
    if not isinstance(content, torch.Tensor | Mapping | list | tuple):
        raise CheckpointError(f"{path}: holds no tensors: not a checkpoint")
    try:
        tensors = dict(_flatten(content))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a readable torch checkpoint: {error}. Fetch the file again.") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors: not a checkpoint")
    _refuse_bomb(path, tensors)
    return tensors


def weights_of(tensors: Mapping[str, torch.Tensor], table: str | None, path: str | Path) -> dict[str, torch.Tensor]:
    """A network's weights among all tensors of a file, named as the network itself names them.

    What wrappers put before every name goes: "module." of DataParallel, "_orig_mod." of compiled models.

    Args:
        tensors: by dotted name, as `read_legacy` gives them.
        table: the dotted name of the table to take; None for the first of the usual ones, or else the whole file.
        path: of the file, for messages.

    Raises:
        CheckpointError: there is no such table, or it holds NaN or Inf.
    """
    tables = sorted({name.split(".")[0] for name in tensors})
    if table is None:
        table = next((usual for usual in _USUAL_TABLES if usual in tables), "")
    prefix = f"{table}." if table else ""
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not chosen:
        raise CheckpointError(f"{path}: holds no table {table}: give one of {', '.join(tables[:8])} as --table")
    for wrapper in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(wrapper) for name in chosen):
            chosen = {name.removeprefix(wrapper): tensor for name, tensor in chosen.items()}
    bad = [name for name, tensor in chosen.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or Inf in {len(bad)} of {len(chosen)} tensors, such as {bad[0]}: take an earlier checkpoint; "
            "camox inspect lists them all"
        )
    return chosen


def _refuse_bomb(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that share the little a file holds so often that to look at them takes all memory or days."""
    size = sum(_stored(tensor).numel() * tensor.element_size() for tensor in tensors.values())
    held = path.stat().st_size
    if size > 8 * held + _SPARE_BYTES:
        raise CheckpointError(
            f"{path}: refused: its {held} bytes stand for {len(tensors)} tensors of {size} bytes. "
            "Fetch the file again or take another checkpoint."
        )


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The raw bytes of a tensor's numbers (of a sparse one: its stored values), not copied where possible."""
    return _stored(tensor).contiguous().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy()


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers that a tensor keeps: of a sparse one its values, before any that fall on one place are added up."""
    if tensor.layout == torch.strided:
        return tensor
    return tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()


def _numpy_scalars() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    # Pickles of NumPy 1 know the function under its old module's name.
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *_NUMPY_DTYPES,
    ]


def _refusal(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)|(?:class|function) ([\w.]+\.[\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return CheckpointError(
            f"{path}: refused: loading this pickle would run {refused[1] or refused[2]}, which is no part of "
            "a tensor. Nothing was run. If you trust the file, save its weights as safetensors with the "
            "program that wrote it."
        )
    # torch wraps the reason into advice on how to switch its protection off; only the reason is passed on.
    reason = text.split("WeightsUnpickler error:")[-1].strip().split("\n")[0].split(". ")[0][:200]
    return CheckpointError(
        f"{path}: not a readable torch checkpoint: {reason or type(error).__name__}. "
        "Fetch the file again or take another checkpoint."
    )


def _flatten(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested tables and lists with its dotted name, depth first.

    Raises ValueError where that would not end: lists that hold themselves, or each other many times over, cost a file
    nothing.
    """
    pending: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    visits: Counter[int] = Counter()
    seen = 0
    while pending:
        path, value = pending.pop()
        if isinstance(value, torch.Tensor):
            yield ".".join(map(str, path)) or "tensor", value.detach()
            continue
        entries = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        inside = [(key, item) for key, item in entries if isinstance(item, torch.Tensor | Mapping | list | tuple)]
        visits[id(value)] += bool(inside)  # that hundreds share one tuple of plain numbers is usual
        seen += len(entries)
        if len(path) >= _DEEPEST or visits[id(value)] > _MOST_VISITS or seen > _MOST_ENTRIES:
            raise ValueError("its lists and tables hold each other without end")
        pending += [((*path, key), item) for key, item in reversed(inside)]
