"""Bytes of tensors, counted rather than read from an allocator: the same on a CPU as on a GPU."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def saved_bytes(forward: Callable[[], object], own: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of what `forward` returns.

    Each storage counts whole and once, however many views of it are kept. The storages of `own`, the model's
    parameters and buffers, do not count: they are there anyway.
    """
    there_anyway = {_address(tensor) for tensor in own}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in there_anyway:
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # a result kept as it is would hold its own graph, and itself, for ever

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()  # held to the end: the address of a freed storage may be given to the next
    del graph
    return sum(kept.values())


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made inside the block and that are still alive: now, and at most.

    What a kernel allocates and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        there_before = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _address(leaf) not in there_before | self._known:
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        self._known.add(address)
        self.now += size
        weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
