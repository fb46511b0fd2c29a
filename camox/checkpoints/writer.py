"""Saves while training goes on: a copy to host memory, which training waits for, then a thread that writes it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from camox.checkpoints.store import TensorGroups

__all__ = ["BackgroundWriter", "TensorGroups"]

Written = TypeVar("Written")


class BackgroundWriter(Generic[Written]):
    """Takes a copy of tensors and hands it to a function in a thread of its own; one copy at a time.

    A second save waits for the first one to be written. The host memory is kept and used again: new pages would cost
    as much as the copy.

    Args:
        in_background: whether to use a thread; if not, `save` returns when all is written.
    """

    def __init__(self, in_background: bool = True):
        # Ends with the process, which waits for it: an interrupted program still finishes its checkpoint.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if in_background else None
        self._host: dict[str, dict[str, Tensor]] = {}
        self._pending: Future[Written] | None = None

    def save(self, tensors: TensorGroups, write: Callable[[TensorGroups], Written]) -> None:
        """Copies `tensors`, on any device, and calls `write` with the copies. Call `wait` first: it has the result.

        Raises:
            Whatever `write` raises, where there is no thread; else `finished` and `wait` raise it.
        """
        assert self._pending is None, "the result of the last save was not asked for"
        if self._thread is None:
            self._pending = Future()
            self._pending.set_result(write(tensors))
            return
        self._pending = self._thread.submit(write, self.copy(tensors))

    def copy(self, tensors: TensorGroups) -> TensorGroups:
        """The tensors in host memory, each by itself; valid until the next copy. Waits for the device once."""
        groups: dict[str, Mapping[str, Tensor]] = {}
        with torch.no_grad():
            for stem, group in tensors.items():
                known = self._host.setdefault(stem, {})
                # Thousands of tensors, most of them small: what is done for each costs as much as copying it.
                for name, source in group.items():
                    target = known.get(name)
                    if target is None or target.shape != source.shape or target.dtype != source.dtype:
                        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
                        known[name] = target
                    target.copy_(source, non_blocking=True)
                groups[stem] = {name: known[name] for name in group}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return groups

    def finished(self) -> Written | None:
        """The result of the last save, once and as soon as it is written; None before. Raises what writing raised."""
        return self.wait() if self._pending is not None and self._pending.done() else None

    def wait(self) -> Written | None:
        """The result of the last save, waiting for it; None where it was given already. Raises what writing raised."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()
