"""Schedules are pure functions of the position, and those that torch has too are torch's."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from camox.training import schedule
from camox.training.schedule import Plateau

SCHEDULES = ["cosine", "one_cycle", "multistep", "plateau", "constant"]


def torch_rates(make, epochs, peak=1.0, steps=1):
    """What torch's scheduler sets for each step; `make` builds it from an optimizer."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@given(st.floats(0, 20), st.sampled_from(SCHEDULES), st.integers(0, 5), st.sampled_from([0.0, 1e-5]))
def test_the_rate_stays_between_zero_and_its_peak(position, name, reductions, floor):
    rate = schedule.learning_rate(position, 20, 1e-3, name, warmup=3, floor=floor, factor=0.1**reductions)
    assert 0 <= rate <= 1e-3
    if position >= 3:
        assert rate >= floor


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_has_its_peak_after_the_warm_up_without_a_jump(name):
    def rate(position: float) -> float:
        return schedule.learning_rate(position, 20, 1e-3, name, warmup=4, floor=1e-5)

    assert rate(4) == 1e-3
    assert rate(4 - 1e-9) == pytest.approx(rate(4), rel=1e-6)
    rises = [rate(4 * share / 50) for share in range(51)]
    assert rises == sorted(rises)
    if name != "one_cycle":
        assert rate(1) == pytest.approx(2.5e-4)


def test_cosine_falls_all_the_way_and_is_half_way_in_the_middle():
    def rate(position: float) -> float:
        return schedule.learning_rate(position, 12, 1e-3, "cosine", warmup=2, floor=1e-5)

    rates = [rate(2 + i / 10) for i in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-3
    assert rates[50] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[-1] == pytest.approx(1e-5)


def test_constant_stays_after_the_warm_up():
    assert {schedule.learning_rate(p, 10, 0.1, "constant", warmup=1, factor=0.5) for p in (1, 5, 10)} == {0.1}


def test_cosine_is_that_of_torch():
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.01), epochs=21)
    ours = [schedule.learning_rate(step, 20, 1.0, "cosine", floor=0.01) for step in range(21)]
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(3.0, 10), (6.0, 1), (0.5, 20)])
def test_one_cycle_is_that_of_torch(warmup, steps):
    """Over n steps from the first to the last, of which torch's definition has n + 1."""
    epochs, peak, floor = 20, 1e-2, 1e-5
    count = epochs * steps
    share = (warmup * steps + 1) / (count + 1)
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, peak, total_steps=count + 1, pct_start=share, div_factor=25, final_div_factor=peak / 25 / floor
        ),
        epochs,
        steps=steps,
    )
    ours = [schedule.learning_rate(n / steps, epochs, peak, "one_cycle", warmup, floor) for n in range(count)]
    assert ours == pytest.approx(expected, rel=1e-6)
    assert schedule.learning_rate(epochs, epochs, peak, "one_cycle", warmup, floor) == pytest.approx(floor)


@given(
    st.lists(st.integers(1, 30), max_size=4, unique=True).map(sorted), st.sampled_from([0.1, 0.5]), st.integers(1, 5)
)
def test_multistep_is_that_of_torch(milestones, gamma, steps):
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, milestones, gamma), epochs=30)
    for epoch in range(30):
        for number in range(steps):
            position = epoch + (number + 1) / steps
            factor = gamma ** schedule.milestones_passed(position, milestones)
            rate = schedule.learning_rate(position, 30, 1.0, "multistep", factor=factor)
            assert rate == pytest.approx(expected[epoch], rel=1e-9), (epoch, number)


@pytest.mark.parametrize("name", ["multistep", "plateau"])
def test_a_lowered_rate_stops_at_the_lowest_and_shapes_the_warm_up_too(name):
    def rate(position: float, factor: float) -> float:
        return schedule.learning_rate(position, 20, 1e-2, name, warmup=2, floor=1e-4, factor=factor)

    assert rate(5, 0.1) == pytest.approx(1e-3)
    assert rate(5, 1e-3) == 1e-4
    assert rate(1, 0.1) == pytest.approx(5e-4)


SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), min_size=1, max_size=40)


@given(SCORES, st.integers(1, 6), st.sampled_from(["iou", "mae"]))
def test_plateau_is_that_of_torch(scores, patience, measure):
    """torch counts the validations it tolerates, so that one more lowers the rate; and it has a threshold."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    mode = "min" if measure == "mae" else "max"
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, patience - 1, threshold=0, min_lr=0.01, eps=0)
    ours = Plateau(measure, patience)
    for score in scores:
        theirs.step(score)
        ours.observe(score)
        rate = schedule.learning_rate(5, 9, 1.0, "plateau", floor=0.01, factor=0.5**ours.reductions)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_lowers_the_rate_after_its_patience_and_then_anew():
    plateau = Plateau("iou", patience=2)
    lowered = [plateau.observe(score) for score in (0.5, 0.4, 0.6, 0.6, 0.1, None, math.nan, 0.7, 0.2)]
    assert lowered == [False, False, False, False, True, False, True, False, False]
    assert plateau.reductions == 2


@given(SCORES, SCORES, st.integers(1, 4))
def test_a_plateau_that_was_saved_goes_on_as_if_it_had_not_been(before, after, patience):
    whole, part, resumed = (Plateau("iou", patience) for _ in range(3))
    for score in before:
        whole.observe(score)
        part.observe(score)
    resumed.load_state_dict(json.loads(json.dumps(part.state_dict(), allow_nan=False)))
    assert [whole.observe(score) for score in after] == [resumed.observe(score) for score in after]
    assert whole.state_dict() == resumed.state_dict()


def test_the_balance_coefficient_warms_up_then_takes_its_later_value():
    def coefficient(position: float, after: float | None) -> float:
        return schedule.balance_coefficient(position, warmup=10, coefficient=1e-3, after=after)

    assert coefficient(5, None) == pytest.approx(5e-4)
    assert coefficient(10, None) == coefficient(99, None) == 1e-3
    assert coefficient(5, 2e-3) == pytest.approx(5e-4)
    assert coefficient(10, 2e-3) == 2e-3
    assert schedule.balance_coefficient(0, 0, 1e-3, None) == 1e-3


def test_routing_noise_is_gone_after_its_share_of_the_run():
    assert schedule.noise_share(0, 100, 0.15) == 1
    assert schedule.noise_share(7.5, 100, 0.15) == pytest.approx(0.5)
    assert schedule.noise_share(15, 100, 0.15) == schedule.noise_share(80, 100, 0.15) == 0
    assert schedule.noise_share(0, 100, 0.0) == 0
