"""Whole training steps of several networks at one size and precision, against the best that the card does.

Each case is counted while it alone is at work on the device; then all are timed in interleaved rounds with one another,
with a large matrix product in the same precision and with a copy from device memory to device memory. Networks are
built, and compiled, once for both: what those counted before still hold, weights and moments, is left out of a peak.

What a step achieves is told as shares of these two rates. Its multiply-adds are counted over forward and backward pass
(`torch.utils.flop_counter`). Its traffic is all bytes that its operators read and write, one operator after another:
what a cache saves of it makes the share larger than the memory's own. A share near 1 of one of the two says what the
step is limited by; small shares of both say that it is limited by launches or waits. Where a compiler merges operators
nothing of this can be counted, so compiled steps are compared with the ones that are not.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarking import cuda
from benchmarking.counters import StepWork, step_work
from benchmarking.report import Report, Rows
from benchmarking.settings import Settings
from benchmarking.step import prepare
from benchmarking.timing import Sample, Work, figures, interleaved, ratio, significant, spread

NETWORKS = ("sparse", "dense", "static")
PRODUCT, COPY = "matrix product", "device copy"
TURN = 2
"""Steps that are timed in one go, so that the host runs ahead of the device as it does in training."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Machinery(NamedTuple):
    """Sizes of what the card's own rates are measured with, and how long is timed."""

    product_side: int = 8192
    copied_bytes: int = 2**28
    seconds: float = 8.0
    """That the rounds of one size and precision are to take, warming up included."""


class Counted(NamedTuple):
    """A case by itself."""

    row: dict[str, Any]
    work: StepWork | None
    """None where a compiler was at work."""
    seconds: float
    """Of one step."""


def measure_cases(settings: Settings, machinery: Machinery, networks: Sequence[str], compiled: bool) -> Report:
    """Networks as they are, or `compiled` beside as they are."""
    label = f"{settings.image_size}² {settings.precision}"
    if settings.on_gpu and settings.precision == "bf16" and not cuda.has_bf16():
        return Report({"steps": {label: {"remark": "no bf16 on this card"}}}, {}, [], judged=False)
    names = [f"{name}_compiled" for name in networks] if compiled else list(networks)
    built: dict[str, Work] = {}
    counts = {name: cuda.attempt(partial(_count, name, settings, built)) for name in names}
    counted = {name: found for name, found in counts.items() if not isinstance(found, str)}
    rows: Rows = {f"{label} {name}": {"remark": why} for name, why in counts.items() if isinstance(why, str)}
    timed = list(counted)
    if compiled:
        timed = [each for name in counted for each in (name.removesuffix("_compiled"), name)]
    samples = _time(timed, built, counted, settings, machinery)
    for name, found in counted.items():
        rows[f"{label} {name}"] = _row(found, samples.get(name), settings)
    rows = {name: rows[name] for name in (f"{label} {name}" for name in names)}
    units: Rows = {f"{label} {name}": figures(samples[name]) for name in (PRODUCT, COPY) if name in samples}
    ratios = _step_ratios(label, names, samples) | _shares(label, counted, samples, machinery)
    return Report({"compiled steps" if compiled else "steps": rows, "units": units}, ratios, [], judged=False)


def _count(name: str, settings: Settings, built: dict[str, Work]) -> Counted:
    """What is counted of a case, whose step goes to `built`. Runs its first steps, which allocate and compile."""
    cuda.release_memory()
    others = torch.cuda.memory_allocated() if settings.on_gpu else 0
    step = prepare(name, settings).step
    for _ in range(cuda.STEPS):
        step()
    row: dict[str, Any] = {"batch": settings.batch}
    if settings.on_gpu:
        calls = cuda.api_calls(step)
        row |= {
            "peak_bytes": cuda.peak_bytes(step) - others,
            "host waits": cuda.waits(step),
            "waiting calls": "unknown" if calls is None else calls.waits,
            "launches": "unknown" if calls is None else calls.launches,
        }
    work = None if name.endswith("_compiled") else step_work(step)
    if work is not None:
        row |= {
            "GMAC / image": significant(work.multiply_adds / settings.batch / 1e9),
            "traffic_bytes": work.traffic_bytes,
        }
    (sample,) = interleaved({name: step}, 1, settings.torch_device)[name]
    built[name] = step
    return Counted(row, work, sample.wall)


def _time(
    names: list[str],
    built: dict[str, Work],
    counted: Mapping[str, Counted],
    settings: Settings,
    machinery: Machinery,
) -> dict[str, list[Sample]]:
    """Samples of one step or unit; of as many cases as fit into memory together, those that need least first."""
    while names:
        found = cuda.attempt(partial(_interleaved, names, built, counted, settings, machinery))
        if not isinstance(found, str):
            return found
        if found != cuda.OUT_OF_MEMORY:
            return {}
        *names, largest = sorted(names, key=lambda name: _peak(counted, name))
        built.pop(largest, None)
    return {}


def _peak(counted: Mapping[str, Counted], name: str) -> int:
    found = counted.get(name) or counted.get(f"{name}_compiled")
    return 0 if found is None else int(found.row.get("peak_bytes", 0))


def _interleaved(
    names: list[str],
    built: Mapping[str, Work],
    counted: Mapping[str, Counted],
    settings: Settings,
    machinery: Machinery,
) -> dict[str, list[Sample]]:
    works: dict[str, Work] = {name: _turn(built.get(name) or prepare(name, settings).step) for name in names}
    works |= _units(settings, machinery)
    of_round = sum(TURN * (counted.get(name) or counted[f"{name}_compiled"]).seconds for name in names)
    rounds = max(3, min(settings.rounds, round(machinery.seconds / max(of_round, 1e-9)) - 3))
    samples = interleaved(works, rounds, settings.torch_device)
    return {name: [sample.divided(TURN) for sample in found] for name, found in samples.items()}


def _turn(work: Work) -> Work:
    def turn() -> None:
        for _ in range(TURN):
            work()

    return turn


def _units(settings: Settings, machinery: Machinery) -> dict[str, Work]:
    device, dtype = settings.torch_device, DTYPES[settings.precision]
    left, right = torch.randn(2, machinery.product_side, machinery.product_side, device=device, dtype=dtype).unbind()
    source = torch.zeros(machinery.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return {PRODUCT: _turn(lambda: left @ right), COPY: _turn(lambda: target.copy_(source))}


def _row(found: Counted, samples: list[Sample] | None, settings: Settings) -> dict[str, Any]:
    if samples is None:
        return {**found.row, "remark": "not timed: see the error, or too large beside the others"}
    timed = {
        "ms / step": spread([1000 * sample.cost for sample in samples]),
        "images/s": spread([settings.batch / sample.wall for sample in samples]),
    }
    return timed | found.row


def _step_ratios(label: str, names: list[str], samples: Mapping[str, list[Sample]]) -> Rows:
    first, *others = names
    pairs = [(first, other) for other in others]
    pairs += [(name, name.removesuffix("_compiled")) for name in names if name.endswith("_compiled")]
    found = {
        f"{one} / {other}": ratio(samples[one], samples[other])
        for one, other in pairs
        if one in samples and other in samples
    }
    return {f"step time, {label}": found} if found else {}


def _shares(
    label: str, counted: Mapping[str, Counted], samples: Mapping[str, list[Sample]], machinery: Machinery
) -> Rows:
    """Rates of each step in shares of the product's and of the copy's, which reads and writes every byte."""
    of_unit: dict[str, Callable[[StepWork], float]] = {
        PRODUCT: lambda work: work.multiply_adds / machinery.product_side**3,
        COPY: lambda work: work.traffic_bytes / (2 * machinery.copied_bytes),
    }
    shares: Rows = {}
    for unit, in_units in of_unit.items():
        found = {
            name: ratio(samples[unit], samples[name], in_units(case.work))
            for name, case in counted.items()
            if case.work is not None and name in samples
        }
        if found:
            shares[f"share of the {unit}'s rate, {label}"] = found
    return shares
