"""The parts of a step in a trace: each moment in one of them, whoever computed it."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.training.profiling.labels import BACKWARD, BETWEEN, LOGGING, PREFIX, REDUCTION, WAITING
from camox.training.profiling.parts import Span, break_down, segments

HOST, ENGINE = 1, 2


def event(name: str, start: float, end: float, cat: str = "user_annotation", tid: int = HOST, **args: Any):
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": end - start, "tid": tid, "args": args}


def step(start: float, end: float, number: int = 0):
    return event(f"ProfilerStep#{number}", start, end)


def label(name: str, start: float, end: float, tid: int = HOST):
    return event(PREFIX + name, start, end, tid=tid)


def operator(name: str, start: float, end: float, sequence: int = -1, tid: int = HOST):
    args = {"Sequence number": sequence} if sequence >= 0 else {}
    return event(name, start, end, "cpu_op", tid, **args)


def derivative(start: float, end: float, sequence: int, tid: int = HOST):
    return operator("autograd::engine::evaluate_function: X", start, end, sequence, tid)


def kernel(start: float, end: float, launched: float, tid: int = HOST, name: str = "gemm"):
    number = int(launched * 1000) + tid
    return [
        event("cudaLaunchKernel", launched, launched + 1, "cuda_runtime", tid, correlation=number),
        event(name, start, end, "kernel", 7, correlation=number),
    ]


def totals(events: list[Any], **arguments: Any) -> dict[str, float]:
    """Microseconds of each label; breakdowns have milliseconds."""
    costs = break_down(events, **arguments).labels
    return {name: round(cost.total * 1000, 6) for name, cost in costs.items() if cost.total}


def test_what_has_no_label_is_in_between():
    assert totals([step(0, 100), label("losses", 10, 30)]) == {"losses": 20, BETWEEN: 80}


def test_a_moment_belongs_to_the_innermost_label():
    events = [step(0, 100), label("dispatch", 0, 60), label("experts: edge, stride 4", 20, 50)]
    assert totals(events) == {"dispatch": 30, "experts: edge, stride 4": 30, BETWEEN: 40}


def test_times_are_those_of_one_step():
    events = [step(0, 100, 1), step(100, 300, 2), label("losses", 10, 30), label("losses", 110, 150)]
    assert totals(events) == {"losses": 30, BETWEEN: 120}
    assert break_down(events).labels["losses"].calls == 1


def test_what_lies_outside_the_recorded_steps_does_not_count():
    assert totals([step(100, 200), label("losses", 50, 120), label("losses", 300, 400)]) == {"losses": 20, BETWEEN: 80}


def test_logging_counts_as_often_as_it_happens_in_a_run():
    events = [step(0, 100), label(LOGGING, 0, 40)]
    assert totals(events, logged_share=0.25) == {LOGGING: 10, BETWEEN: 60}


def test_a_derivative_belongs_to_the_part_of_its_operator():
    events = [
        *(step(0, 200), label("backbone", 0, 20), operator("aten::conv", 5, 15, sequence=3)),
        *(label("losses", 20, 40), operator("aten::mul", 25, 30, sequence=4)),
        *(label(BACKWARD, 50, 150), derivative(60, 70, 4), derivative(70, 140, 3), derivative(140, 150, 99)),
    ]
    costs = break_down(events).parts
    assert totals(events) == {"backbone": 90, "losses": 30, BACKWARD: 20, BETWEEN: 60}
    assert costs["backbone"].backward == pytest.approx(0.07)
    assert costs["losses"].backward == pytest.approx(0.01)
    assert costs["backbone"].calls == 1


def test_of_operators_with_one_number_the_last_has_the_derivative():
    # An operator that needs no derivative has the number of the next one that does.
    events = [
        *(step(0, 100), label("meters", 0, 10), operator("aten::detach", 1, 2, sequence=5)),
        *(label("losses", 10, 20), operator("aten::mul", 11, 12, sequence=5)),
        *(label(BACKWARD, 20, 90), derivative(20, 90, 5)),
    ]
    assert totals(events) == {"meters": 10, "losses": 80, BETWEEN: 10}


def test_what_is_computed_again_counts_as_backward_of_its_part():
    events = [
        *(step(0, 100), label("experts: edge, stride 4", 0, 10), operator("aten::mul", 1, 2, sequence=1)),
        *(label(BACKWARD, 10, 100), derivative(10, 100, 1), label("experts: edge, stride 4", 20, 60)),
    ]
    cost = break_down(events).parts["experts"]
    assert (cost.total, cost.backward) == (pytest.approx(0.1), pytest.approx(0.09))


def test_what_a_gpu_computes_again_is_launched_by_the_thread_of_the_backward_pass():
    events = [
        *(step(0, 200), label("backbone", 0, 20), operator("aten::conv", 5, 15, sequence=3), *kernel(10, 40, 10)),
        *(label(BACKWARD, 50, 150), derivative(60, 140, 3, tid=ENGINE), label("backbone", 70, 100, tid=ENGINE)),
        *(*kernel(80, 120, 75, tid=ENGINE), *kernel(120, 180, 110, tid=ENGINE)),
    ]
    cost = break_down(events).parts["backbone"]
    assert (cost.device, cost.backward) == (pytest.approx(0.13), pytest.approx(0.1))


def test_the_end_of_a_backward_pass_waits_for_other_ranks():
    events = [
        *(step(0, 100), label("losses", 0, 10), operator("aten::mul", 1, 2, sequence=1)),
        *(label(BACKWARD, 10, 100), derivative(10, 60, 1)),
    ]
    assert totals(events) == {"losses": 60, REDUCTION: 40}


def test_a_kernel_belongs_to_the_part_that_launched_it_and_idle_time_to_where_the_host_was():
    events = [
        *(step(0, 100), label(WAITING, 0, 30), label("backbone", 30, 50)),
        *kernel(40, 90, launched=35),
    ]
    parts = break_down(events).parts
    assert totals(events) == {WAITING: 30, "backbone": 60, BETWEEN: 10}
    assert parts["backbone"].device == pytest.approx(0.05)
    assert parts["backbone"].idle == pytest.approx(0.01)
    assert parts["backbone"].kernels == 1


def test_a_kernel_of_the_backward_pass_is_launched_by_a_thread_of_its_own():
    events = [
        *(step(0, 200), label("backbone", 0, 20), operator("aten::conv", 5, 15, sequence=3)),
        *(label(BACKWARD, 50, 100), derivative(60, 90, 3, tid=ENGINE), *kernel(70, 170, 65, tid=ENGINE)),
        *kernel(0, 70, launched=0),
    ]
    cost = break_down(events).parts["backbone"]
    assert (cost.device, cost.backward) == (pytest.approx(0.17), pytest.approx(0.1))


def test_kernels_at_the_same_time_count_once():
    events = [
        *(step(0, 100), label("backbone", 0, 5), label("decoder", 5, 100)),
        *(*kernel(0, 60, launched=0), *kernel(20, 100, launched=10)),
    ]
    assert totals(events) == {"backbone": 60, "decoder": 40}


@pytest.mark.parametrize(
    ("began", "ended", "waited"),
    [(0, 100, 40), (0, 55, 15), (10, 50, 0), (30, 65, 10), (30, 90, 20), (50, 60, 10), (60, 100, 20), (95, 130, 5)],
)
def test_gradients_that_travel_while_others_compute_cost_nothing(began, ended, waited):
    """Kernels compute from 10 to 50 and from 60 to 80; what alone runs besides is waited for."""
    events = [step(0, 100), label(BACKWARD, 0, 100)]
    events += kernel(began, ended, launched=0, name="ncclDevKernel_AllReduce_Sum_f32_RING_LL")
    events += [*kernel(10, 50, launched=5), *kernel(60, 80, launched=6)]
    parts = break_down(events).parts
    assert parts[REDUCTION].total == pytest.approx(waited / 1000)
    assert parts[BACKWARD].device == pytest.approx(0.06)
    assert parts[REDUCTION].kernels == 1
    assert break_down(events).step == pytest.approx(0.1)


def test_a_kernel_that_no_derivative_launched_belongs_to_where_the_host_was():
    events = [
        *(step(0, 100), label("backbone", 0, 10), operator("aten::conv", 5, 8, sequence=3)),
        *(label(BACKWARD, 10, 100), derivative(20, 40, 3, tid=ENGINE), *kernel(60, 100, 50, tid=ENGINE)),
    ]
    assert break_down(events).parts[BACKWARD].device == pytest.approx(0.04)


def test_waits_for_the_gpu_are_counted_where_they_happen():
    events = [
        *(step(0, 100), label("dispatch", 10, 30), *kernel(0, 10, launched=0)),
        event("cudaStreamSynchronize", 12, 20, "cuda_runtime", correlation=5),
        event("cudaLaunchKernel", 22, 23, "cuda_runtime", correlation=6),
    ]
    assert break_down(events).parts["dispatch"].waits == 1


def test_an_operator_has_the_time_without_those_it_calls():
    events = [step(0, 100), operator("aten::conv2d", 0, 50), operator("aten::convolution", 5, 45)]
    operators = break_down(events).operators
    assert {name: cost.host * 1000 for name, cost in operators.items()} == pytest.approx(
        {"aten::conv2d": 10, "aten::convolution": 40}
    )


def test_what_reaches_out_of_the_span_around_it_is_cut_off():
    assert segments([Span(0, 10, "a"), Span(5, 20, "b")]) == [Span(0, 5, "a"), Span(5, 10, "b")]


spans = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 60), st.sampled_from(["backbone", "losses", BACKWARD, LOGGING])),
    max_size=12,
)


some_kernels = st.tuples(st.integers(0, 120), st.integers(1, 60), st.sampled_from(["gemm", "ncclDevKernel_AllReduce"]))


@given(found=spans, kernels=st.lists(some_kernels, max_size=6))
def test_the_parts_add_up_to_the_step(found, kernels):
    """On a CPU and on a GPU, however labels lie, also where they overlap or reach out of the step."""
    events = [step(0, 100), *(label(name, start, start + length) for start, length, name in found)]
    for start, length, name in kernels:
        events += kernel(start, start + length, launched=start, name=name)
    assert break_down(events).step == pytest.approx(0.1)


@given(found=spans)
def test_segments_follow_each_other_and_leave_nothing_out(found):
    cut = segments(Span(start, start + length, name) for start, length, name in found)
    assert all(before.end <= after.start for before, after in itertools.pairwise(cut))
    covered = {moment for start, length, _ in found for moment in range(start, start + length)}
    assert sum(span.end - span.start for span in cut) <= len(covered)
    whole = segments([Span(-1, 200, "all"), *(Span(start, start + length, name) for start, length, name in found)])
    assert sum(span.end - span.start for span in whole) == 201
