"""The guard of skipped steps fires when it must and is silent on what is routine."""

import pytest
import torch

from camox.stability.guards import SkippedSteps

TAKEN, SKIPPED = torch.tensor(True), torch.tensor(False)


def guard_after(*steps: bool, most: int = 3) -> SkippedSteps:
    guard = SkippedSteps(most, 1.0, torch.device("cpu"))
    for taken in steps:
        guard.update(torch.tensor(taken))
    return guard


def test_it_counts_the_longest_run_and_the_total():
    guard = guard_after(False, True, False, False, True, False)
    assert guard.read() == (2, 4)


def test_a_run_goes_on_over_a_read():
    guard = guard_after(True, False, False)
    assert guard.read() == (2, 2)
    guard.update(SKIPPED)
    assert guard.read() == (3, 3)
    guard.update(TAKEN)
    assert guard.read() == (0, 3)


@pytest.mark.parametrize(("in_a_row", "scale", "fires"), [
    (3, None, False), (4, None, True), (0, 1.0, False), (0, 0.5, True), (1, 65536.0, False),
])  # fmt: skip
def test_the_verdict(in_a_row, scale, fires):
    verdict = guard_after(most=3).verdict(in_a_row, scale)
    assert (verdict is not None) == fires
    if fires:
        assert "optimizer.lr" in verdict


def test_its_state_goes_on_after_a_resume():
    guard = guard_after(False, True, False, False)
    twin = guard_after()
    twin.load_state_dict(guard.state_dict())
    for one in (guard, twin):
        one.update(SKIPPED)
    assert guard.read() == twin.read() == (3, 4)
