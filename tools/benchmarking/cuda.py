"""What only a GPU shows: memory at its peak, whether the host waits for the device, how many kernels it launches."""

import csv
import gc
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from camox.errors import CamoxError

STEPS = 3
"""Steps that are watched for waits, after as many that are not: the first ones allocate and choose kernels."""
WAIT = "synchronizing CUDA operation"
"""What torch says of an operation that makes the host wait."""

OUT_OF_MEMORY = "out of memory"
Result = TypeVar("Result")

_WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cuCtxSynchronize"}


class ApiCalls(NamedTuple):
    """How often a step calls the CUDA runtime or driver, as the profiler saw it."""

    launches: float
    """Kernels; copies and fills by the copy engine are none."""

    waits: float
    """Calls that return only when the device has got somewhere: waiting for an event, too."""


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
    with counted_waits() as count:
        for _ in range(STEPS):
            step()
    return count() / STEPS


def first_wait(step: Callable[[], object]) -> str | None:
    """The error of the first operation that makes the host wait for the device; None if `step` runs without one."""
    for _ in range(STEPS):
        step()
    with sync_debug_mode("error"):
        try:
            for _ in range(STEPS):
                step()
        except RuntimeError as error:
            if WAIT not in str(error):
                raise
            return str(error)
    return None


@contextmanager
def counted_waits() -> Iterator[Callable[[], int]]:
    """Gives a function that tells how often the host has waited since the block began."""
    with warnings.catch_warnings(record=True) as caught, sync_debug_mode("warn"):
        warnings.simplefilter("always")
        yield lambda: sum(WAIT in str(warning.message) for warning in caught)


@contextmanager
def sync_debug_mode(mode: Literal["warn", "error"]) -> Iterator[None]:
    """What makes the host wait inside the block is warned of, or raises; both say `WAIT`."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def api_calls(step: Callable[[], object]) -> ApiCalls | None:
    """Counts over `STEPS` steps; None where the profiler may not look, which it says by seeing no launch at all."""
    for _ in range(STEPS):
        step()
    # Beginning and ending a profile waits for the device as well.
    of_profiler = _profiled(lambda: None)
    found = _profiled(lambda: [step() for _ in range(STEPS)])
    launches, waits = (sum(counts) for counts in zip(*map(_kind, found), strict=True)) if found else (0, 0)
    if not launches:
        return None
    return ApiCalls(launches / STEPS, (waits - sum(_kind(name)[1] for name in of_profiler)) / STEPS)


def _kind(name: str) -> tuple[bool, bool]:
    """Whether a call of this name launches a kernel (cudaLaunchKernel, cuLaunchKernelEx, …), whether it waits."""
    return "LaunchKernel" in name or "LaunchCooperativeKernel" in name, name in _WAITS


def _profiled(work: Callable[[], object]) -> list[str]:
    """Names of all calls of the CUDA API that `work` makes, from all threads: backward passes have one of their own."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        work()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() or [] if event.name.startswith("cu")]


def attempt(work: Callable[[], Result]) -> Result | str:
    """What `work` gives, or in words why it cannot; what is wrong in the call itself, a CamoxError, is raised.

    Time on a GPU is rare: neither what does not fit the card nor a bug may take all other figures with it. Of anything
    but a lack of memory the traceback goes to standard error.
    """
    try:
        return work()
    except CamoxError:
        raise
    except Exception as error:  # noqa: BLE001  told in the place of the figures
        why = OUT_OF_MEMORY
        if not is_out_of_memory(error):
            why = f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            traceback.print_exc()
    # Only here are the frames gone that the error held, and with them their tensors.
    release_memory()
    return why


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says so: the allocator's own error, or that of a library which asks the driver itself."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "ALLOC_FAILED")
    )


def has_bf16() -> bool:
    """Whether the card computes in bf16, rather than torch imitating it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def card(device: torch.device) -> dict[str, Any]:
    """What times on a GPU depend on: which one it is, and the most power it may take, where the driver's tool tells."""
    properties = torch.cuda.get_device_properties(device)
    found = {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }
    told = _driver(properties, ("power.limit",))
    return found | ({"power_limit_watts": told["power.limit"]} if told else {})


def versions() -> dict[str, str]:
    """Versions of CUDA and cuDNN that torch was built with, and of the driver."""
    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    told = _driver(torch.cuda.get_device_properties(torch.cuda.current_device()), ("driver_version",))
    return found | ({"driver": told["driver_version"]} if told else {})


def _driver(properties: Any, asked: Iterable[str]) -> dict[str, str]:
    """What nvidia-smi says of the card; nothing where it is missing or does not know the card by its name."""
    asked = list(asked)
    command = [
        "nvidia-smi",
        f"--id=GPU-{properties.uuid}",
        f"--query-gpu={','.join(asked)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = next(csv.reader(answer.stdout.splitlines(), skipinitialspace=True), [])
    return dict(zip(asked, values, strict=True)) if answer.returncode == 0 and len(values) == len(asked) else {}
