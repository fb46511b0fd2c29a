"""Findings lead to acts on a ladder, within a budget."""

from typing import Any

import pytest

from camox.stability.guards import Finding
from camox.stability.recovery import Adjustments, Recovery


def recovery(**changes: Any) -> Recovery:
    ladder = ("lower_rate", "longer_warmup", "no_deep_supervision")
    return Recovery(**({"max_rollbacks": 4, "rate_factor": 0.7, "warmup_steps": 50, "ladder": ladder} | changes))


def finding(proposal: Any, kind: str = "spike", details: dict[str, Any] | None = None) -> Finding:
    return Finding(kind, "something is wrong", proposal, details=details or {})


def test_a_note_changes_nothing():
    one = recovery()
    assert one.decide(finding("note"), 5).kind == "note"
    assert one.adjustments == Adjustments()


def test_a_decline_lowers_the_rate_by_a_fifth():
    one = recovery()
    assert one.decide(finding("lower_rate"), 5).kind == "adjust"
    assert one.adjustments.rate_at(6) == 0.8


def test_a_rollback_lowers_the_rate_and_lets_it_rise_anew():
    one = recovery()
    assert one.decide(finding("roll_back"), 100).kind == "roll_back"
    one.roll_back(100, suspects=[], samples=50)
    rates = [one.adjustments.rate_at(step) for step in (101, 125, 150, 1000)]
    assert rates == [0.7 / 50, 0.35, 0.7, 0.7]


def test_the_rungs_follow_each_other_and_the_last_one_repeats():
    one = recovery()
    seen = []
    for number in range(4):
        one.roll_back(100 * number, [], 50)
        seen.append((one.adjustments.warmup_steps, one.adjustments.deep_supervision))
    assert seen == [(50, True), (200, True), (50, False), (50, False)]


def test_a_spent_budget_stops_the_run():
    one = recovery(max_rollbacks=1)
    one.roll_back(1, [], 50)
    act = one.decide(finding("roll_back"), 2)
    assert act.kind == "stop"
    assert "stability.policy" in act.message


def test_suspects_left_out_are_counted_in_words():
    assert "1 suspect sample left out" in recovery().roll_back(100, suspects=[3], samples=50)
    assert "2 suspect samples left out" in recovery().roll_back(100, suspects=[3, 4], samples=50)


def test_few_suspects_are_left_out_and_many_are_not_at_fault():
    one = recovery()
    one.roll_back(1, [3, 4], samples=50)
    assert one.left_out == {3, 4}
    one.roll_back(2, range(20), samples=50)
    assert one.left_out == {3, 4}


@pytest.mark.parametrize(("balance", "acts"), [
    ("switch", ["the routers choose with noise again for 500 steps", "the balance coefficient × 10"]),
    ("none", ["the routers choose with noise again for 500 steps"]),
])  # fmt: skip
def test_what_a_balance_does_not_have_is_not_turned(balance, acts):
    one, collapse = recovery(balance=balance), finding("calm_routers", "router_collapse")
    assert [act.message for act in (one.decide(collapse, step) for step in range(4)) if act.kind == "adjust"] == acts


def test_a_collapsed_router_is_helped_step_by_step():
    one, collapse = recovery(), finding("calm_routers", "router_collapse")
    one.decide(collapse, 10)
    assert one.adjustments == Adjustments(bias_rate=4.0)
    one.decide(collapse, 20)
    assert [one.adjustments.noise_at(step) for step in (20, 270, 520, 900)] == [1.0, 0.5, 0.0, 0.0]
    one.decide(collapse, 30)
    assert one.adjustments.balance_coefficient == 10
    assert one.decide(collapse, 40).kind == "note"  # the ladder has no more rungs


def test_a_router_that_prefers_nothing_learns_faster_and_is_balanced_less():
    """More balance, the help against few experts, would hold it where it is."""
    one, uniform = recovery(), finding("calm_routers", "router_collapse", {"uniform": True})
    expected = [Adjustments(router_rate=4.0), Adjustments(router_rate=4.0, balance_coefficient=0.1)]
    expected += [Adjustments(router_rate=16.0, balance_coefficient=0.1)] * 2
    for step, adjustments in enumerate(expected):
        one.decide(uniform, step)
        assert one.adjustments == adjustments
    one.decide(finding("calm_routers", "router_collapse", {"uniform": False}), 9)
    assert one.adjustments.bias_rate == 4.0
    twin = recovery()
    twin.load_state_dict(one.state_dict())
    assert twin.decide(uniform, 10).kind == "note"


def test_routers_whose_gradients_are_not_finite_are_calmed_step_by_step():
    one, gradients = recovery(), finding("calm_routers", "router_gradients")
    for _ in range(4):
        one.decide(gradients, 10)
    expected = Adjustments(balance_coefficient=0.1, balance_warmup=2.0, router_clip=0.5, router_rate=0.1)
    assert one.adjustments == expected


def test_the_books_go_on_after_a_resume():
    one, twin = recovery(), recovery()
    one.decide(finding("calm_routers", "router_collapse"), 10)
    one.roll_back(100, [7], 50)
    twin.load_state_dict(one.state_dict())
    assert twin.state_dict() == one.state_dict()
    assert twin.adjustments == one.adjustments


def test_after_a_kill_the_rate_rises_from_where_the_run_goes_on():
    """Not from the step of the rollback, which lies far ahead: up to there the rate would be 0."""
    one, later = recovery(), recovery()
    one.roll_back(1000, [7], 50)
    one.decide(finding("calm_routers", "router_collapse"), 1000)
    one.decide(finding("calm_routers", "router_collapse"), 1000)
    later.recall(one.state_dict(), 100)
    assert [later.adjustments.rate_at(step) for step in (125, 150, 1000)] == [0.35, 0.7, 0.7]
    assert later.adjustments.noise_at(350) == 0.5
    assert (later.rollbacks, later.left_out) == (1, {7})
