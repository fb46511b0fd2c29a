"""The device's own look at losses and norms."""

import math

import pytest
import torch

from camox.stability.spikes import FEWEST, SpikeDetector


def fed(detector: SpikeDetector, losses: list[float], norms: list[float] | None = None) -> list[bool]:
    norms = norms or [1.0] * len(losses)
    pairs = zip(losses, norms, strict=True)
    return [bool(detector.update(torch.tensor(loss), torch.tensor(norm))) for loss, norm in pairs]


def detector(patience: int = 3) -> SpikeDetector:
    return SpikeDetector(threshold=8.0, patience=patience, device=torch.device("cpu"))


@pytest.mark.parametrize("seed", range(5))
def test_a_falling_loss_with_heavy_tailed_norms_is_no_spike(seed):
    """Norms of healthy runs are log-normal, with single ones far out."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 500, generator=generator)
    losses = [1.5 * math.exp(-step / 200) + 0.05 * value for step, value in enumerate(noise[0].tolist())]
    norms = [math.exp(0.5 * value) for value in noise[1].tolist()]
    assert not any(fed(detector(), losses, norms))


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_the_third_far_step_in_a_row_is_skipped_and_all_that_follow(which):
    quiet = [1.0 + 0.01 * (step % 3) for step in range(40)]
    far = [*quiet, 12.0, 12.0, 12.0, 12.0]
    flat = [1.0] * len(far)
    verdicts = fed(detector(), *((far, flat) if which == "loss" else (flat, far)))
    assert verdicts == [False] * 42 + [True] * 2


def test_norms_three_times_as_large_for_good_are_the_business_of_clipping():
    """As where more of the network is trained."""
    assert not any(fed(detector(), [1.0] * 80, [1.0] * 40 + [3.0] * 40))


def test_a_single_far_step_is_clipped_like_any_other():
    assert not any(fed(detector(), [1.0] * 40 + [9.0, 1.0] * 5))


def test_nothing_is_judged_by_the_first_few():
    assert not any(fed(detector(patience=1), [1.0] * (FEWEST - 1) + [50.0]))
    assert fed(detector(patience=1), [1.0] * FEWEST + [50.0])[-1]


def test_steps_that_are_not_finite_leave_no_trace():
    one, other = detector(), detector()
    fed(one, [1.0] * 20)
    fed(other, [1.0] * 10 + [math.nan] * 3 + [1.0] * 10)
    assert one.state_dict()["last"][0][:20] == other.state_dict()["last"][0][:20]
    assert one.state_dict()["count"] == other.state_dict()["count"] == 20


def test_an_overflow_neither_counts_as_far_nor_ends_a_row_of_far_steps():
    quiet, inf = [1.0 + 0.01 * (step % 3) for step in range(20)], float("inf")
    assert not any(fed(detector(), [*quiet, inf, inf, inf, 1.0, 9.0, 9.0]))
    assert fed(detector(), [*quiet, 9.0, 9.0, inf, 9.0])[-1]


def test_a_state_goes_on_after_a_resume_and_a_reset_forgets_all():
    one, twin = detector(), detector()
    fed(one, [1.0 + 0.1 * (step % 5) for step in range(90)] + [9.0])
    twin.load_state_dict(one.state_dict())
    assert fed(one, [9.0, 9.0]) == fed(twin, [9.0, 9.0]) == [False, True]
    one.reset()
    assert one.state_dict() == detector().state_dict()
