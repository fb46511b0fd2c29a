"""Writes a checkpoint so that it exists whole or not at all, and reads it back.

A checkpoint is a folder: one safetensors file per group of tensors (`model`, `ema`, `optimizer`, `rng_0`, …),
`state.json`, `config.json`, and `manifest.json` last. All is written into a hidden folder beside the final
place, flushed to the disk, and renamed. No pickle is written or read.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from camox.checkpoints.folders import (
    CHECKPOINTS,
    POINTERS,
    TEMPORARY_PREFIX,
    clean_leftovers,
    is_better,
    list_checkpoints,
    list_unreadable,
    rank_checkpoints,
    read_pointer,
    resolve,
    retain,
    set_pointer,
    sync_folder,
)
from camox.checkpoints.manifest import (
    MANIFEST,
    REPLACED_PREFIX,
    FileRecord,
    Manifest,
    find_defects,
    is_checkpoint,
    is_plain_name,
    read_manifest,
    read_text,
    record_file,
    refuse_constant,
    remedy,
    require_regular,
)
from camox.checkpoints.manifest import verify as verify_files
from camox.checkpoints.scan import last_clean, scan_file
from camox.errors import CheckpointError, NotFinite

__all__ = [
    "Checkpoint",
    "NotFinite",
    "clean_leftovers",
    "find_trouble",
    "is_better",
    "list_checkpoints",
    "list_unreadable",
    "rank_checkpoints",
    "read_checkpoint",
    "read_pointer",
    "resolve",
    "retain",
    "set_pointer",
    "write_checkpoint",
    "write_folder",
]

TensorGroups = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; tensors and tables are read when asked for."""

    path: Path
    manifest: Manifest

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the groups of tensors it holds (`model`, `optimizer`, …)."""
        suffix = ".safetensors"
        return tuple(name.removesuffix(suffix) for name in self.manifest.files if name.endswith(suffix))

    @cached_property
    def state(self) -> dict[str, Any]:
        """`state.json`: the position of the run and all of its state that is not a tensor."""
        return self._read_table("state.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`: the arguments that build the model."""
        return self._read_table("config.json")

    def tensors(self, stem: str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one group by name, on `device`; CheckpointError where there is no such group."""
        if stem not in self.stems:
            raise CheckpointError(f"{self.path}: holds no {stem}.safetensors, only {', '.join(self.stems)}")
        path = self.path / f"{stem}.safetensors"
        try:
            require_regular(path)
            return load_file(path, device=str(device))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}. {remedy(self.path)}") from error

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Turn what fails inside the block, because the state is not of the form camox writes, into a CheckpointError.

        Hashes tell damage, not who wrote the files: state may lack a key, or hold a text where a number belongs.
        """
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: its state is not of the form that this camox writes ({error!r}). {remedy(self.path)}"
            ) from error

    def _read_table(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            table = json.loads(read_text(path), parse_constant=refuse_constant)
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}. {remedy(self.path)}") from error
        if not isinstance(table, dict):
            raise CheckpointError(f"{path}: is not a table with keys. {remedy(self.path)}")
        return table


def read_checkpoint(path: str | Path, verify: bool = True) -> Checkpoint:
    """Open a checkpoint folder (see `resolve` for a run's folder).

    With `verify`, sizes and sha256 are compared with the manifest and every tensor is checked to be
    finite, about 0.7 s per GB; then CheckpointError, or NotFinite, names what is wrong and what to take
    instead.
    """
    path = Path(path)
    if not verify:
        return Checkpoint(path, read_manifest(path))
    checkpoint = Checkpoint(path, verify_files(path))
    if names := _stored_not_finite(checkpoint):
        clean = last_clean(path.parent) if path.parent.name == CHECKPOINTS else None
        advice = f"The last clean checkpoint is {clean}." if clean else "No other checkpoint beside it is clean."
        raise NotFinite(f"{path}: NaN or Inf in {_some(names)}. {advice}", names)
    return checkpoint


def find_trouble(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, None where it is whole and finite. Costs what `read_checkpoint` does."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return f"{MANIFEST} is missing or damaged"
    if defects := find_defects(folder, manifest):
        return "; ".join(defects)
    try:
        names = _stored_not_finite(Checkpoint(folder, manifest))
    except CheckpointError as error:
        return str(error)
    return f"NaN or Inf in {_some(names)}" if names else None


def write_checkpoint(
    run_folder: str | Path,
    name: str,
    tensors: TensorGroups,
    *,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    measures: Mapping[str, float],
    experiment_fingerprint: str,
    step: int,
    epoch: int,
) -> Path:
    """Save ``run_folder/checkpoints/name`` and give its path; an existing one is replaced.

    `tensors` maps the stem of each safetensors file to its named tensors, on any device; of several processes
    one writes, with the generators of all (`rng_0`, `rng_1`, …) gathered by the caller. Tensors may be
    scalars, views, not contiguous or share memory: each is stored whole. `state` and `config` must be JSON
    with string keys and finite numbers. `measures` may be NaN (stored as null).

    Raises NotFinite, before anything is written, if a tensor or a number of `state` or `config` is NaN or
    infinite; CheckpointError if the disk refuses. In both cases whatever was saved before is untouched and
    nothing is left over. Pointers do not move: see `set_pointer`.
    """
    assert is_plain_name(name), name
    assert name not in POINTERS, name
    manifest = Manifest(experiment_fingerprint, step, epoch, {}, measures)
    return write_folder(Path(run_folder) / CHECKPOINTS / name, tensors, state, config, manifest)


def write_folder(
    final: Path, tensors: TensorGroups, state: Mapping[str, Any], config: Mapping[str, Any], manifest: Manifest
) -> Path:
    """Save a checkpoint as the folder `final`, in a run or not; else as `write_checkpoint`.

    `manifest` tells everything but the files, which are those written here.
    """
    assert all(is_plain_name(stem) for stem in tensors), list(tensors)
    tables = {"state.json": state, "config.json": config}
    _refuse_not_finite(final.name, tensors, tables)

    staging = final.with_name(f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        files = {path.name: _seal(path) for path in _write_files(staging, tensors, tables)}
        (staging / MANIFEST).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
        _seal(staging / MANIFEST)
        sync_folder(staging)
        _put_in_place(staging, final)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final}: could not be saved: {error}. Checkpoints saved before are intact. "
            "Free space on that disk or choose another place (for a run: experiment.output)."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # renamed away if all went well
    return final


def _write_files(folder: Path, tensors: TensorGroups, tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """Write one file after the other, so that only one group at a time is copied to the host."""
    for stem, group in tensors.items():
        path = folder / f"{stem}.safetensors"
        save_file(_storable(group), path)
        yield path
    for name, table in tables.items():
        path = folder / name
        path.write_text(json.dumps(table, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        yield path


def _storable(group: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Dense contiguous host tensors, of which no two share memory (safetensors refuses those)."""
    storable = {}
    seen = set()
    for name, tensor in group.items():
        host = tensor.detach().to("cpu").contiguous().resolve_conj().resolve_neg()
        address = host.untyped_storage().data_ptr()
        storable[name] = host.clone() if address in seen else host
        seen.add(address)
    return storable


def _seal(path: Path) -> FileRecord:
    """Force a file to the disk; gives its size and sha256, read back."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return record_file(path)


def _put_in_place(staging: Path, final: Path) -> None:
    """Rename the finished folder to its place. A checkpoint there stands aside until then, still found."""
    aside = final.with_name(f"{REPLACED_PREFIX}{final.name}")
    if is_checkpoint(final):
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    elif final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _refuse_not_finite(name: str, tensors: TensorGroups, tables: Mapping[str, Mapping[str, Any]]) -> None:
    names = [f"{stem}/{tensor}" for stem, group in tensors.items() for tensor in _names_not_finite(group)]
    for table, content in tables.items():
        names += [f"{table}: {key}" for key in _keys_not_finite(content)]
    if names:
        raise NotFinite(f"checkpoint {name} is not saved: NaN or Inf in {_some(names)}", names)


def _stored_not_finite(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors in a checkpoint's files that hold NaN or Inf; CheckpointError for a file that is none."""
    reports = {stem: scan_file(checkpoint.path / f"{stem}.safetensors") for stem in checkpoint.stems}
    return [f"{stem}/{tensor.name}" for stem, report in reports.items() for tensor in report.bad]


def _names_not_finite(group: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or Inf; one wait for the device per group, not one per tensor."""
    verdicts: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in group.items():
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            verdicts.setdefault(tensor.device, []).append((name, _is_finite(tensor.detach())))
    names = []
    for found in verdicts.values():
        finite = torch.stack([verdict for _, verdict in found]).tolist()
        names += [name for (name, _), is_finite in zip(found, finite, strict=True) if not is_finite]
    return names


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:
        tensor = tensor.float()  # aminmax knows no float8
    # Minimum and maximum carry NaN and Inf at memory bandwidth; isfinite().all() takes ten times as long.
    smallest, largest = torch.aminmax(tensor)
    return torch.isfinite(smallest) & torch.isfinite(largest)


def _keys_not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of NaN and infinite numbers in a JSON value; TypeError for keys that are no strings."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"key {name!r} in {key or 'the table'}: JSON has string keys only")
            yield from _keys_not_finite(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _keys_not_finite(item, f"{key}[{index}]")


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
