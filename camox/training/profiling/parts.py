"""From the events of a trace to the time of each part of a step.

A trace is what torch's profiler writes for Chrome and Perfetto: events with a name, a thread, a beginning and a length
in microseconds. Each moment of the thread that trains belongs to the innermost label around it. In the backward pass,
which calls no module, torch numbers each function like the operator of the forward pass that it is the derivative of:
so its time belongs to that operator's part. A kernel of a GPU belongs to the part that launched it; one that carries
gradients between GPUs takes only the time in which no other kernel runs, since what travels meanwhile costs nothing.

On a GPU the host runs ahead, and its time says little: what a part takes is the time of its kernels, and the time that
the GPU stood idle while the host was at that part. Either way the parts add up to the step.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from camox.training.profiling.labels import BACKWARD, BETWEEN, LOGGING, PREFIX, REDUCTION, part_of

_STEP = "ProfilerStep#"
_DERIVATIVE = "autograd::engine::evaluate_function: "
_ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
_RUNTIME = {"cuda_runtime", "cuda_driver"}
_WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}


class Span(NamedTuple):
    """A stretch of time, in microseconds, with what it belongs to."""

    start: float
    end: float
    label: str
    backward: bool = False


@dataclass
class Cost:
    """What one part, label or operator takes in a step, in milliseconds."""

    host: float = 0.0
    """Of the thread that trains, without what other parts inside of it take."""
    backward: float = 0.0
    """What of `total` belongs to the backward pass."""
    device: float = 0.0
    """Of its kernels on the GPU; where several run at once, the first has it, and gradient reduction the least."""
    idle: float = 0.0
    """That the GPU had nothing to do while the host was here."""
    calls: float = 0.0
    """How often it was begun."""
    kernels: float = 0.0
    waits: float = 0.0
    """How often the host waited for the GPU."""
    on_gpu: bool = False

    @property
    def total(self) -> float:
        """What it adds to the step."""
        return self.device + self.idle if self.on_gpu else self.host


@dataclass
class Breakdown:
    """What a step takes, in all and by parts; in milliseconds, the mean of the recorded steps."""

    labels: dict[str, Cost] = field(default_factory=dict)
    operators: dict[str, Cost] = field(default_factory=dict)
    """Operators by name, each without those that it calls."""
    on_gpu: bool = False

    @property
    def parts(self) -> dict[str, Cost]:
        """Part → its labels together."""
        together: dict[str, Cost] = {}
        for label, cost in self.labels.items():
            whole = together.setdefault(part_of(label), Cost(on_gpu=self.on_gpu))
            for name in ("host", "backward", "device", "idle", "calls", "kernels", "waits"):
                setattr(whole, name, getattr(whole, name) + getattr(cost, name))
        return together

    @property
    def step(self) -> float:
        """The whole step: the sum of its parts."""
        return sum(cost.total for cost in self.labels.values())

    def share(self, *parts: str) -> float:
        """Of the step, in [0, 1]."""
        found = self.parts
        return sum(found[part].total for part in parts if part in found) / self.step if self.step else 0.0


def break_down(events: Sequence[Mapping[str, Any]], logged_share: float = 1.0) -> Breakdown:
    """The parts of the steps in a trace.

    Args:
        events: `traceEvents` of the trace.
        logged_share: how much of the recorded `LOGGING` a step in the long run has: a few steps are recorded, and one
            of them is logged, where only every tenth may be.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    steps = [event for event in timed if event["name"].startswith(_STEP) and event.get("cat") == "user_annotation"]
    start, end = min(event["ts"] for event in steps), max(_end(event) for event in steps)
    thread = steps[0]["tid"]
    inside = [event for event in timed if event["ts"] < end and _end(event) > start]
    by_thread = _labels_by_thread(inside, thread)
    timelines = {tid: _Timeline(segments(_within(start, end, spans))) for tid, spans in by_thread.items()}
    host = timelines[thread]
    breakdown = Breakdown(on_gpu=any(event.get("cat") in _ON_GPU for event in inside))
    costs: dict[str, Cost] = defaultdict(lambda: Cost(on_gpu=breakdown.on_gpu))
    for span in host.spans:
        costs[span.label].host += span.end - span.start
        if span.backward and not breakdown.on_gpu:
            costs[span.label].backward += span.end - span.start
    for event in inside:
        if event["name"].startswith(PREFIX) and event.get("cat") == "user_annotation":
            costs[event["name"].removeprefix(PREFIX)].calls += 1
    if breakdown.on_gpu:
        _add_device(costs, inside, timelines, host, start, end)
    for label, cost in costs.items():
        factor = logged_share if part_of(label) == LOGGING else 1.0
        breakdown.labels[label] = _scaled(cost, factor / len(steps))
    operators = _operators(inside)
    breakdown.operators = {name: _scaled(cost, 1 / len(steps)) for name, cost in operators.items()}
    return breakdown


def segments(spans: Iterable[Span]) -> list[Span]:
    """Cuts nested spans of one thread into stretches that follow each other: each moment belongs to the span that was
    begun last of all that hold it. What reaches out of the span around it is cut off there."""
    found: list[Span] = []
    open_spans: list[Span] = []
    now = float("-inf")

    def advance(until: float) -> None:
        nonlocal now
        while open_spans:
            inner = open_spans[-1]
            stop = min(inner.end, until)
            if stop > now:
                found.append(Span(now, stop, inner.label, inner.backward))
                now = stop
            if inner.end > until:
                break
            open_spans.pop()
        now = max(now, until)

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        advance(span.start)
        reaches_out = bool(open_spans) and span.end > open_spans[-1].end
        open_spans.append(span._replace(end=open_spans[-1].end) if reaches_out else span)
    advance(float("inf"))
    return found


class _Timeline:
    """Stretches of one thread, to be asked what was going on at a time."""

    def __init__(self, spans: list[Span]):
        self.spans = spans
        self._starts = [span.start for span in spans]

    def at(self, time: float) -> Span | None:
        index = bisect_right(self._starts, time) - 1
        return self.spans[index] if index >= 0 and time < self.spans[index].end else None

    def between(self, start: float, end: float) -> Iterable[Span]:
        for index in range(max(0, bisect_right(self._starts, start) - 1), len(self.spans)):
            span = self.spans[index]
            if span.start >= end:
                return
            if span.end > start:
                yield span._replace(start=max(span.start, start), end=min(span.end, end))


def _within(start: float, end: float, spans: Iterable[Span]) -> list[Span]:
    """Spans cut off at both ends, and one that holds them all."""
    cut = (Span(max(span.start, start), min(span.end, end), span.label, span.backward) for span in spans)
    return [Span(start, end, BETWEEN), *(span for span in cut if span.start < span.end)]


def _labels_by_thread(events: Sequence[Mapping[str, Any]], thread: Any) -> dict[Any, list[Span]]:
    """Labels of each thread, derivatives under the label of what they are the derivative of."""
    spans: dict[Any, list[Span]] = defaultdict(list)
    for event in events:
        if event["name"].startswith(PREFIX) and event.get("cat") == "user_annotation":
            # On a GPU the backward pass has a thread of its own: what has a label there is computed again.
            name, elsewhere = event["name"].removeprefix(PREFIX), event["tid"] != thread
            spans[event["tid"]].append(Span(event["ts"], _end(event), name, backward=elsewhere))
    passes = [span for span in spans[thread] if span.label == BACKWARD]
    computed_again = [
        span._replace(backward=True)
        if any(outer.start <= span.start and span.end <= outer.end for outer in passes)
        else span
        for span in spans[thread]
    ]
    spans[thread] = computed_again
    forward = _Timeline(segments(span for span in computed_again if not span.backward))
    origins = _origins(events, thread, forward)
    for tid, derivatives in _outermost(event for event in events if event["name"].startswith(_DERIVATIVE)).items():
        for event in derivatives:
            label = origins.get(_sequence(event), BACKWARD)
            spans[tid].append(Span(event["ts"], _end(event), label, backward=True))
        if tid == thread:
            spans[tid] += _after_the_last(passes, derivatives)
    return spans


def _origins(events: Sequence[Mapping[str, Any]], thread: Any, forward: _Timeline) -> dict[int, str]:
    """Number of an operator → the label it was called under; of those with one number the last has the derivative."""
    origins: dict[int, str] = {}
    calls = [event for event in events if event.get("cat") == "cpu_op" and event["tid"] == thread]
    for event in sorted(calls, key=lambda event: event["ts"]):
        number = _sequence(event)
        if number >= 0 and not event["name"].startswith(_DERIVATIVE) and (span := forward.at(event["ts"])) is not None:
            origins[number] = span.label
    return origins


def _outermost(events: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """By thread, in order, without those inside of another one: what is computed again has derivatives of its own."""
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        before = found[event["tid"]]
        if not before or event["ts"] >= _end(before[-1]):
            before.append(event)
    return found


def _after_the_last(passes: Sequence[Span], derivatives: Sequence[Mapping[str, Any]]) -> list[Span]:
    """The end of each backward pass, after its last derivative: there it waits for the gradients of other ranks."""
    waits = []
    for whole in passes:
        ends = [_end(event) for event in derivatives if whole.start <= event["ts"] and _end(event) <= whole.end]
        if ends:
            waits.append(Span(max(ends), whole.end, REDUCTION, backward=True))
    return waits


def _add_device(
    costs: dict[str, Cost],
    events: Sequence[Mapping[str, Any]],
    timelines: Mapping[Any, _Timeline],
    host: _Timeline,
    start: float,
    end: float,
) -> None:
    """Adds the time of kernels to the parts that launched them, and idle time to where the host was meanwhile."""
    launches = _launches(events)

    def where(event: Mapping[str, Any] | None) -> Span | None:
        if event is None:
            return None
        timeline = timelines.get(event["tid"])
        # The backward pass has a thread of its own, whose work is the training thread's meanwhile.
        found = None if timeline is None else timeline.at(event["ts"])
        return host.at(event["ts"]) if found is None or found.label == BETWEEN else found

    computing: list[Span] = []
    travelling: list[Span] = []
    for event in events:
        if event.get("cat") in _ON_GPU:
            place = where(launches.get(_correlation(event)))
            label, backward = (place.label, place.backward) if place is not None else (BETWEEN, False)
            travels = "nccl" in event["name"].lower()
            label = REDUCTION if travels else label
            costs[label].kernels += 1
            span = Span(max(event["ts"], start), min(_end(event), end), label, backward)
            (travelling if travels else computing).append(span)
        elif event.get("cat") in _RUNTIME and event["name"] in _WAITS and (place := where(event)) is not None:
            costs[place.label].waits += 1
    computing, carrier = _first_has_it(computing), _Timeline(_first_has_it(travelling))
    waited = [span for gap in _gaps(computing, start, end) for span in carrier.between(*gap)]
    busy = sorted([*computing, *waited])
    for span in busy:
        costs[span.label].device += span.end - span.start
        costs[span.label].backward += (span.end - span.start) * (span.backward or span.label == BACKWARD)
    for gap in _gaps(busy, start, end):
        for span in host.between(*gap):
            costs[span.label].idle += span.end - span.start


def _first_has_it(spans: Iterable[Span]) -> list[Span]:
    """Stretches that follow each other: each moment belongs to the span that had begun before the others."""
    found: list[Span] = []
    for span in sorted(spans):
        free = found[-1].end if found else span.start
        if span.end > free:
            found.append(span._replace(start=max(span.start, free)))
    return found


def _gaps(spans: Iterable[Span], start: float, end: float) -> Iterator[tuple[float, float]]:
    """Beginning and end of what stretches that follow each other leave out between `start` and `end`."""
    for span in spans:
        if span.start > start:
            yield start, span.start
        start = span.end
    if end > start:
        yield start, end


def _launches(events: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """What the host called to start a kernel, by the number that both events have."""
    return {_correlation(event): event for event in events if event.get("cat") in _RUNTIME}


def _operators(events: Sequence[Mapping[str, Any]]) -> dict[str, Cost]:
    """Own time of each operator in all threads that call any, and of the kernels that it launches itself."""
    costs: dict[str, Cost] = defaultdict(Cost)
    by_thread: dict[Any, list[Span]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "cpu_op" and not event["name"].startswith(_DERIVATIVE):
            by_thread[event["tid"]].append(Span(event["ts"], _end(event), event["name"]))
            costs[event["name"]].calls += 1
    timelines = {tid: _Timeline(segments(spans)) for tid, spans in by_thread.items()}
    for timeline in timelines.values():
        for span in timeline.spans:
            costs[span.label].host += span.end - span.start
    launches = _launches(events)
    for event in events:
        if event.get("cat") not in _ON_GPU or (launch := launches.get(_correlation(event))) is None:
            continue
        if launch["tid"] in timelines and (place := timelines[launch["tid"]].at(launch["ts"])) is not None:
            costs[place.label].device += event["dur"]
            costs[place.label].kernels += 1
    return costs


def _scaled(cost: Cost, factor: float) -> Cost:
    """Microseconds of all steps as milliseconds of one."""
    times = {name: getattr(cost, name) * factor / 1000 for name in ("host", "backward", "device", "idle")}
    counts = {name: getattr(cost, name) * factor for name in ("calls", "kernels", "waits")}
    return Cost(**times, **counts, on_gpu=cost.on_gpu)


def _end(event: Mapping[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def _correlation(event: Mapping[str, Any]) -> int:
    return int(event.get("args", {}).get("correlation", -1))


def _sequence(event: Mapping[str, Any]) -> int:
    return int(event.get("args", {}).get("Sequence number", -1))
