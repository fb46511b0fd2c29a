"""Times of several works against each other, in interleaved rounds: no machine is equally fast all the time."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

UNIT = "matrix_product"
"""Name of the unit of work: one fp32 matrix product of 2048³ multiply-adds."""

ROUTINGS = 3
"""Seeds that the rounds take in turn."""

LEAST_ROUNDS = 3
"""Of fewer nobody knows the noise."""

Work = Callable[[], object]


class Sample(NamedTuple):
    """Seconds that one call took."""

    process: float
    """Of all cores together, in this process: what a neighbour on the machine does hardly changes it."""

    wall: float

    device: float | None
    """Between two CUDA events around the call; None on a CPU."""

    @property
    def cost(self) -> float:
        """What ratios are made of: the GPU's own time, or process time where there is none."""
        return self.process if self.device is None else self.device

    def divided(self, calls: int) -> "Sample":
        """What one of so many calls takes."""
        return Sample(self.process / calls, self.wall / calls, None if self.device is None else self.device / calls)


def added_up(samples: Sequence[Sample]) -> Sample:
    """What calls one after another take together."""
    of_device = [sample.device for sample in samples if sample.device is not None]
    return Sample(
        sum(sample.process for sample in samples),
        sum(sample.wall for sample in samples),
        sum(of_device) if of_device else None,
    )


def significant(value: float) -> float:
    """`value` to five significant digits."""
    return float(f"{value:.5g}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range, to five significant digits."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: significant(value) for name, value in found.items()}


def interleaved(works: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[Sample]]:
    """Times each of `works` once per round, A B C, B C A, …, after some rounds that are not counted.

    torch's generators are seeded alike before each work of a round: what draws the same random numbers, draws the
    same routing. There are `ROUTINGS` seeds in turn, each met before it counts: the libraries make and keep a kernel
    for every size of a sub-batch, which a run of many thousand steps pays for once.
    """
    names = list(works)
    for number in range(ROUTINGS):
        for name in names:
            torch.manual_seed(number)
            works[name]()
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            torch.manual_seed(number % ROUTINGS)
            with timed(samples[name], device):
                works[name]()
    return samples


def figures(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Each kind of seconds over the rounds."""
    found = {
        "process_seconds": spread([sample.process for sample in samples]),
        "wall_seconds": spread([sample.wall for sample in samples]),
    }
    of_device = [sample.device for sample in samples if sample.device is not None]
    return {**found, "device_seconds": spread(of_device)} if of_device else found


def cost(samples: Sequence[Sample]) -> float:
    """Median of what ratios are made of."""
    return statistics.median(sample.cost for sample in samples)


def ratio(samples: Sequence[Sample], others: Sequence[Sample], factor: float = 1.0) -> dict[str, float]:
    """Cost of one ÷ cost of the other times `factor`, round by round."""
    return spread([factor * one.cost / other.cost for one, other in zip(samples, others, strict=True)])


def wall_ratio(samples: Sequence[Sample], others: Sequence[Sample], factor: float = 1.0) -> dict[str, float]:
    """The same of wall time: what is not parallel costs more of it."""
    return spread([factor * one.wall / other.wall for one, other in zip(samples, others, strict=True)])


def matrix_product(device: torch.device) -> Work:
    """The unit of work on that device."""
    left, right = torch.randn(2, 2048, 2048, device=device).unbind()
    return lambda: left @ right


@contextmanager
def timed(samples: list[Sample], device: torch.device) -> Iterator[None]:
    """Adds to `samples` what the block takes."""
    if device.type != "cuda":
        process, wall = time.process_time(), time.perf_counter()
        yield
        samples.append(Sample(time.process_time() - process, time.perf_counter() - wall, None))
        return
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    process, wall = time.process_time(), time.perf_counter()
    start.record()
    yield
    end.record()
    end.synchronize()
    taken = time.process_time() - process, time.perf_counter() - wall
    samples.append(Sample(*taken, start.elapsed_time(end) / 1000))
