"""Suite `gpu`: everything that matters on one card, in one command that is done within eight minutes.

In this order, what tells most first: whether the trainer makes the host wait; whole steps of sparse, dense and static
networks in half precision at three sizes; the trainer's loop against a bare one; inference; measures; the mixtures
alone; what steps of the recipes take of the card's memory; the same steps compiled, network by network. A part that
the time left is not expected to be enough for is left out, and told so in the table of parts, as is what does not fit
into memory, or fails. Compilers take longest and come last; what takes far longer than expected is broken off, so that
all is done in time whatever happens.

What only CUDA can tell is behind `benchmarking.cuda`; all else runs on a CPU too, for tests at toy size.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from benchmarking import cuda
from benchmarking.cases import NETWORKS, Machinery, measure_cases
from benchmarking.inference import measure_inference
from benchmarking.limits import OutOfTime, time_limit
from benchmarking.loop import BARE, TRAINER, loop_targets, measure_loops
from benchmarking.measures import measure_measures
from benchmarking.memory import measure_recipes
from benchmarking.moe import measure_mixtures
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import figures, ratio
from benchmarking.waits import trainer_waits

PARTS = "parts"
"""Title of the table of what was measured, and how long it took, and what was left out."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and in how much time."""

    seconds: float = 400.0
    """No part begins that is expected to end later."""

    limit: float = 450.0
    """What is still being measured then is broken off; half a minute is left for imports before and tables after."""

    batches: dict[int, int] = field(default_factory=lambda: {352: 16, 416: 12, 704: 4})
    """Image size → images in a step: two megapixels in each."""

    precisions: tuple[str, ...] = ("fp16", "bf16")
    machinery: Machinery = field(default_factory=Machinery)


class Part(NamedTuple):
    """Something that is measured whole or left out."""

    name: str
    kind: str
    """Parts of one kind take about equally long."""
    expected: float
    """Seconds, as long as none of its kind was measured."""
    measure: Callable[[], Report]


def measure_gpu(
    settings: Settings,
    plan: Plan = Plan(),
    clock: Callable[[], float] = time.monotonic,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measures one part after another for as long as there is time; `keep` gets all that is known after each."""
    begun = clock()
    results: dict[str, Rows] = {PARTS: {}}
    ratios: Rows = {}
    targets: list[Target] = []
    longest: dict[str, float] = {}
    for part in _parts(settings, plan):
        used = clock() - begun
        expected = longest.get(part.kind, part.expected)
        if used + expected > plan.seconds:
            why = f"left out: {plan.seconds - used:.0f} s were left, about {expected:.0f} s are needed"
            results[PARTS][part.name] = {"seconds": None, "remark": why}
            continue
        found = _bounded(part.measure, plan.limit - used)
        taken = clock() - begun - used
        longest[part.kind] = max(longest.get(part.kind, 0.0), taken)
        results[PARTS][part.name] = {"seconds": round(taken, 1), "remark": found if isinstance(found, str) else ""}
        if not isinstance(found, str):
            _add(results, found.results)
            _add(ratios, found.ratios)
            targets += found.targets
        keep(Report(results, ratios, targets, judged=settings.on_gpu))
    results[PARTS]["all"] = {"seconds": round(clock() - begun, 1), "remark": ""}
    return Report(results, ratios, targets, judged=settings.on_gpu)


def _bounded(measure: Callable[[], Report], seconds: float) -> Report | str:
    """What is measured within so much time, or in words why there is nothing."""
    try:
        with time_limit(seconds):
            return cuda.attempt(measure)
    except OutOfTime:
        pass
    cuda.release_memory()  # only now are the frames gone, and with them their tensors
    return f"broken off after {seconds:.0f} s: the time was over"


def _add(tables: dict[str, Rows] | Rows, more: dict[str, Rows] | Rows) -> None:
    for title, rows in more.items():
        tables.setdefault(title, {}).update(rows)


def _parts(settings: Settings, plan: Plan) -> Iterator[Part]:
    size, batch = next(iter(plan.batches.items()))
    first = replace(settings, image_size=size, batch=batch, precision=plan.precisions[0])
    if settings.on_gpu:
        yield Part("waits of the trainer", "waits", 20, partial(_waits, first))
    yield from _steps(settings, plan)
    yield Part("trainer and bare loop", "loop", 20, partial(_loops, first))
    # What compiling brings is seen in the steps.
    inference = partial(measure_inference, with_compiled=False)
    yield Part("inference", "inference", 25, partial(_titled, "inference", inference, replace(first, batch=4)))
    yield Part("measures", "measures", 30, partial(_titled, "measures", measure_measures, settings))
    yield Part("mixtures", "mixtures", 50, partial(_titled, "mixtures", measure_mixtures, replace(first, rounds=3)))
    if settings.on_gpu:
        yield Part("memory of the recipes", "memory", 30, measure_recipes)
    for network in NETWORKS:
        yield from _steps(settings, plan, compiled=network)


def _steps(settings: Settings, plan: Plan, compiled: str | None = None) -> Iterator[Part]:
    """All networks as they are at each size and precision, or one of them compiled."""
    kind, expected, networks = ("steps", 25, NETWORKS) if compiled is None else ("compiled steps", 60, (compiled,))
    name = kind if compiled is None else f"{kind}, {compiled}"
    for size, batch in plan.batches.items():
        for precision in plan.precisions:
            of_case = replace(settings, image_size=size, batch=batch, precision=precision)
            measure = partial(measure_cases, of_case, plan.machinery, networks, compiled is not None)
            yield Part(f"{name}, {size}² × {batch}, {precision}", kind, expected, measure)


def _waits(settings: Settings) -> Report:
    """How often a step of the trainer's loop waits between two logged ones."""
    rows: Rows = {dispatch: {"per_step": trainer_waits(settings, dispatch)} for dispatch in ("sorted", "masked")}
    targets = [
        Target("trainer between logged steps, waits per step, sorted: the routing copy", 1, rows["sorted"]["per_step"]),
        Target("trainer between logged steps, waits per step, masked", 0, rows["masked"]["per_step"]),
    ]
    return Report({"waits of the trainer for the device": rows}, {}, targets, judged=True)


def _loops(settings: Settings) -> Report:
    loops = measure_loops(settings)
    share: dict[str, Any] = ratio(loops[TRAINER], loops[BARE])
    pair = f"{TRAINER} / {BARE}"
    return Report(
        {"loops": {name: figures(samples) for name, samples in loops.items()}},
        {"loop time": {pair: share}},
        loop_targets(share, settings),
        judged=True,
    )


def _titled(name: str, measure: Callable[[Settings], Report], settings: Settings) -> Report:
    """The report of another suite under titles of its own. Its limits are stated for a CPU, but those of measures."""
    report = measure(settings)
    results = {title if title == name else f"{name}: {title}": rows for title, rows in report.results.items()}
    ratios = {f"{name}: {title}": pairs for title, pairs in report.ratios.items()}
    return Report(results, ratios, list(report.targets) if name == "measures" else [], judged=True)
