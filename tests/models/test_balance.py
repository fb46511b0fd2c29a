"""Balance: properties of the load, the bias and the two losses."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camox.models.balance import LoadBalance, z_loss

TAKEN, SKIPPED = torch.tensor(True), torch.tensor(False)
histories = st.lists(st.lists(st.integers(0, 400), min_size=6, max_size=6), min_size=1, max_size=30)
few = settings(max_examples=40, deadline=None)


def counts(*values):
    return torch.tensor(values, dtype=torch.float32)


@few
@given(histories, st.floats(0, 1))
def test_load_stays_a_distribution_and_bias_centred_and_bounded(history, rate):
    balance = LoadBalance(6, 2, window_images=64, bias_rate=rate)
    for step in history:
        balance.update(counts(*step), TAKEN)
    assert balance.load.min() >= 0
    assert balance.load.sum().item() == pytest.approx(1, abs=1e-5)
    assert abs(balance.bias.mean().item()) < 1e-5
    assert balance.bias.abs().max() <= balance.bias_limit + 1e-5


def test_bias_stays_centred_at_its_limit():
    balance = LoadBalance(6, 2, window_images=8, bias_rate=1.0)
    for _ in range(200):
        balance.update(counts(48, 0, 0, 0, 0, 0), TAKEN)
    assert balance.bias.abs().max().item() == pytest.approx(balance.bias_limit, abs=1e-4)
    assert abs(balance.bias.mean().item()) < 1e-5


@few
@given(st.integers(0, 5))
def test_bias_of_a_starving_expert_rises_over_the_others(starving):
    balance = LoadBalance(6, 2, window_images=64)
    step = counts(*[0 if expert == starving else 10 for expert in range(6)])
    last = 0.0
    for number in range(60):
        balance.update(step, TAKEN)
        lead = (balance.bias[starving] - balance.bias.mean()).item()
        assert lead >= last
        last = lead if number < 40 else last
    assert last > 0
    assert balance.bias.argmax() == starving


def test_bias_of_a_greedy_expert_falls_below_the_others():
    balance = LoadBalance(6, 2, window_images=64)
    for _ in range(60):
        balance.update(counts(24, 5, 5, 5, 5, 4), TAKEN)
    assert balance.bias.argmin() == 0
    assert balance.bias[0] < 0


@few
@given(st.lists(st.integers(30, 60), min_size=6, max_size=6))
def test_inside_the_band_nothing_moves_but_the_decay(step):
    balance = LoadBalance(6, 2, window_images=64)
    start = torch.tensor([0.6, -0.6, 0.3, -0.3, 0.1, -0.1])
    balance.bias.copy_(start)
    relative = 6 * counts(*step) / sum(step)
    assert ((relative >= 0.5) & (relative <= 2)).all()
    balance.update(counts(*step), TAKEN)
    assert torch.allclose(balance.bias, (1 - balance.bias_decay) * start, atol=1e-7)


def test_the_push_is_the_distance_from_the_band_in_proportion_to_images():
    """One update from a window that forgets at once: the formula by hand."""
    balance = LoadBalance(4, 1, window_images=1e-3, bias_rate=1e-2)
    balance.update(counts(36, 8, 4, 0), TAKEN)  # 48 images: relative load 3, 2/3, 1/3, 0
    push = 1e-2 * 48 / 24 * torch.tensor([-1.0, 0.0, 1 / 6, 0.5])
    assert torch.allclose(balance.bias, push - push.mean(), atol=1e-6)


@few
@given(histories)
def test_a_skipped_step_changes_nothing_bit_for_bit(history):
    balance = LoadBalance(6, 2)
    for step in history:
        balance.update(counts(*step), TAKEN)
    before = {name: value.clone() for name, value in balance.state_dict().items()}
    balance.update(counts(99, 0, 0, 0, 0, 1), SKIPPED)
    balance.update(torch.full((6,), torch.nan), SKIPPED)
    assert all(torch.equal(balance.state_dict()[name], value) for name, value in before.items())


def test_a_step_without_images_changes_nothing():
    balance = LoadBalance(6, 2)
    balance.bias.copy_(torch.tensor([0.6, -0.6, 0.3, -0.3, 0.1, -0.1]))
    before = balance.bias.clone()
    balance.update(torch.zeros(6), TAKEN)
    assert torch.equal(balance.bias, before)


@few
@given(st.sampled_from([1, 2, 4, 16, 64]), st.sampled_from([128, 512]))
def test_half_of_the_old_load_remains_after_one_window_however_it_is_split(steps, window):
    balance = LoadBalance(6, 2, window_images=window)
    old = balance.load.clone()
    images = window / steps
    new = counts(1, 1, 0, 0, 0, 0) / 2
    for _ in range(steps):
        balance.update(new * 2 * images, TAKEN)
    assert torch.allclose(balance.load, (old + new) / 2, atol=1e-5)


def test_the_state_is_saved_and_is_fp32():
    balance = LoadBalance(6, 2)
    assert {name: value.dtype for name, value in balance.state_dict().items()} == {
        "load": torch.float32,
        "bias": torch.float32,
    }


def test_loss_is_zero_when_balanced_and_two_when_two_of_six_do_everything():
    balance = LoadBalance(6, 2)
    assert balance.loss(torch.full((8, 6), 1 / 6)).item() == pytest.approx(0, abs=1e-6)
    balance.load.copy_(torch.tensor([0.5, 0.5, 0, 0, 0, 0]))
    assert balance.loss(balance.load.expand(8, 6)).item() == pytest.approx(2, abs=1e-6)


def test_gradient_of_the_loss_pushes_down_what_is_overloaded():
    balance = LoadBalance(6, 2)
    balance.load.copy_(torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05]))
    logits: Any = torch.zeros(8, 6, requires_grad=True)
    balance.loss(logits.softmax(dim=1)).backward()
    gradient = logits.grad[0]
    assert (gradient[:2] > 0).all()  # a descent step lowers them
    assert (gradient[2:] < 0).all()
    assert gradient.argmax() == 0


def test_gradient_of_the_loss_is_that_of_the_whole_batch_when_ranks_are_averaged():
    balance = LoadBalance(6, 2)
    balance.load.copy_(torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05]))
    logits = torch.randn(8, 6, requires_grad=True)
    (whole,) = torch.autograd.grad(balance.loss(logits.softmax(dim=1)), logits)
    halves = torch.stack([balance.loss(half.softmax(dim=1)) for half in logits.split(4)]).mean()
    (averaged,) = torch.autograd.grad(halves, logits)
    assert torch.allclose(whole, averaged, atol=1e-7)


def test_z_loss_is_the_mean_squared_log_partition_and_shrinks_large_logits():
    raw: Any = torch.tensor([[20.0, 0, 0], [0, -3.0, 1.0]], requires_grad=True)
    value = z_loss(raw)
    assert value.item() == pytest.approx(raw.detach().exp().sum(dim=1).log().square().mean().item(), rel=1e-5)
    value.backward()
    assert raw.grad[0, 0] > 0
