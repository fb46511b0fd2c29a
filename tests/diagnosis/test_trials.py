"""Checks that train a copy of the network: the overfit of one batch and the range test."""

import numpy as np
import pytest
import torch

from camox.diagnosis.lr_plot import draw_range_test
from camox.diagnosis.lr_range import check_range, judge, run_range_test
from camox.diagnosis.overfit import check_overfit
from camox.losses import composite
from camox.training.step import TrainingStep


def test_one_batch_is_learned_and_every_group_moves(subject):
    sound = subject()
    before = {name: tensor.clone() for name, tensor in sound.network.state_dict().items()}
    finding = check_overfit(sound)
    assert finding.status == "pass", finding.problems
    assert set(finding.values["largest_change"]) == {"backbone", "router", "experts", "head"}
    assert all(torch.equal(before[name], tensor) for name, tensor in sound.network.state_dict().items())


def test_a_low_rate_is_not_held_against_the_network(subject):
    assert check_overfit(subject("optimizer.lr=1e-5", "schedule.min_lr=0")).status == "pass"


def test_a_rate_a_thousand_times_too_high_is_found(subject, messages):
    finding = check_overfit(subject("optimizer.lr=1.0"))
    assert finding.status == "fail"
    assert "the loss of one repeated batch rises" in messages(finding)


def test_gradients_of_the_wrong_sign_are_found(subject, monkeypatch):
    losses = TrainingStep.losses

    def negated(self, *rest):
        return {name: -value for name, value in losses(self, *rest).items()}

    monkeypatch.setattr(TrainingStep, "losses", negated)
    assert check_overfit(subject()).status == "fail"


def test_an_optimizer_that_does_nothing_is_found(subject, monkeypatch, messages):
    monkeypatch.setattr(TrainingStep, "_step_or_skip", lambda self, taken: self.optimizer.zero_grad())
    finding = check_overfit(subject())
    assert "hardly falls" in messages(finding)
    assert "have not changed" in messages(finding)
    assert set(finding.values["largest_change"].values()) == {0.0}


def test_a_loss_that_is_nan_is_found(subject, monkeypatch):
    sound = subject()
    monkeypatch.setitem(composite.FINAL_TERMS, "structure", lambda logits, mask: logits.mean(dim=(1, 2, 3)) / 0 * 0)
    assert check_overfit(sound).status == "fail"
    assert check_range(sound, run_range_test(sound), None).status == "fail"


# ---- range test

RATES = np.geomspace(1e-7, 1, 100)


def valley(rates):
    """Flat, falling fastest at 1e-3, lowest at 1e-2, then rising."""
    x = np.log10(rates)
    return 2 - 1 / (1 + np.exp(-4 * (x + 3))) + 2 * np.clip(x + 1.5, 0, None) ** 2


def test_the_judge_finds_the_steepest_descent_and_the_wall():
    test = judge(RATES, valley(RATES), exploded=False)
    assert test.steepest == pytest.approx(1e-3, rel=0.5)
    assert 3e-2 < test.diverges < 0.3
    assert test.suggested <= test.diverges / 3


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_batches_moves_it_little(seed):
    noise = 0.03 * np.random.default_rng(seed).standard_normal(100)
    test = judge(RATES, valley(RATES) + noise, exploded=False)
    assert 2e-4 < test.steepest < 5e-3
    assert 3e-2 < test.diverges < 0.3


def test_an_explosion_is_a_divergence_and_its_absence_none():
    falling = valley(RATES[:60])
    assert judge(RATES[:60], falling, exploded=True).diverges == RATES[59]
    assert judge(RATES[:60], falling, exploded=False).diverges is None


@pytest.mark.slow
def test_the_range_test_of_the_tiny_experiment(subject, tmp_path):
    sound = subject()
    before = {name: tensor.clone() for name, tensor in sound.network.state_dict().items()}
    test = run_range_test(sound)
    assert all(torch.equal(before[name], tensor) for name, tensor in sound.network.state_dict().items())
    assert 1e-4 < test.steepest < test.diverges < 1
    assert check_range(sound, test, None).status == "pass"
    draw_range_test(test, {"frozen": 1e-3, "full": 1e-3}, "tiny", tmp_path / "range.png")
    assert (tmp_path / "range.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_behind_the_wall_is_found(subject, messages):
    test = judge(RATES, valley(RATES), exploded=False)
    finding = check_range(subject("phases.full.lr=0.5"), test, None)
    assert finding.status == "warn"
    assert "phase full: lr 0.5 is no less than" in messages(finding)
    assert "phase frozen" not in messages(finding)


@pytest.mark.parametrize(("share", "status"), [(0.3, "pass"), (0.4, "warn")])
def test_a_rate_close_to_the_wall_is_found_too(subject, messages, share, status):
    """What is suggested is at most a third of the wall, so more than that has to be said."""
    test = judge(RATES, valley(RATES), exploded=False)
    finding = check_range(subject(f"phases.full.lr={share * test.diverges:.4g}"), test, None)
    assert finding.status == status
    assert ("is more than a third of" in messages(finding)) == (status == "warn")
