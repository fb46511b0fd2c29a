"""Schedules are pure functions of the position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.training import schedule


@given(st.floats(0, 20), st.sampled_from(["cosine", "constant"]))
def test_the_rate_stays_between_zero_and_its_peak(position, name):
    rate = schedule.learning_rate(position, total=20, peak=1e-3, name=name, warmup=3, floor=1e-5)
    assert 0 <= rate <= 1e-3


def test_warm_up_rises_linearly_and_joins_without_a_jump():
    def rate(position: float) -> float:
        return schedule.learning_rate(position, 20, 1e-3, "cosine", warmup=4, floor=1e-5)

    assert rate(1) == pytest.approx(2.5e-4)
    assert rate(4 - 1e-9) == pytest.approx(rate(4), rel=1e-6)


def test_cosine_falls_all_the_way_and_is_half_way_in_the_middle():
    def rate(position: float) -> float:
        return schedule.learning_rate(position, 12, 1e-3, "cosine", warmup=2, floor=1e-5)

    rates = [rate(2 + i / 10) for i in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-3
    assert rates[50] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[-1] == pytest.approx(1e-5)


def test_constant_stays_after_the_warm_up():
    assert {schedule.learning_rate(p, 10, 0.1, "constant", warmup=1) for p in (1, 5, 10)} == {0.1}


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
