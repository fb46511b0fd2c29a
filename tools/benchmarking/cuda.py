"""What only a GPU shows: memory at its peak, and whether the host waits for the device."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

STEPS = 3
"""Steps that are watched for waits, after as many that are not: the first ones allocate and choose kernels."""


def peak_bytes(step: Callable[[], object]) -> int:
    """Most GPU memory that was in use at once during a step, all that was there before included."""
    for _ in range(STEPS):
        step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def release_memory() -> None:
    """Gives back what is no longer used, so that the next one's peak is its own."""
    gc.collect()
    torch.cuda.empty_cache()


def waits(step: Callable[[], object]) -> float:
    """How often per step the host waits for the device, as CUDA's own sync debug mode sees it: it overlooks events."""
    for _ in range(STEPS):
        step()
    with warnings.catch_warnings(record=True) as caught, _sync_debug_mode("warn"):
        warnings.simplefilter("always")
        for _ in range(STEPS):
            step()
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught) / STEPS


def first_wait(step: Callable[[], object]) -> str | None:
    """The error of the first operation that makes the host wait for the device; None if `step` runs without one."""
    for _ in range(STEPS):
        step()
    with _sync_debug_mode("error"):
        try:
            for _ in range(STEPS):
                step()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            return str(error)
    return None


@contextmanager
def _sync_debug_mode(mode: Literal["warn", "error"]) -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
