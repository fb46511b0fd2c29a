"""Balance: properties of the load, the bias and the two losses."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camox.models.balance import LoadBalance, RoutingObjective, z_loss
from camox.models.router import Routing, count_choices

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


def test_an_expert_far_behind_is_chosen_again_within_some_windows():
    """Logits that differ by eight, always the same two chosen: the bias brings in a third, however little it weighs."""
    logits = torch.tensor([[0.0, 0.0, -8.0, -8.0, -8.0, -8.0]])
    balance = LoadBalance(6, 2, window_images=512)
    seen: set[int] = set()
    for _ in range(16 * 512 // 16):
        selected = (logits + balance.bias).topk(2).indices.repeat(16, 1)
        seen |= set(selected.flatten().tolist())
        balance.update(count_choices(selected, 6).float(), torch.tensor(True))
    assert seen == set(range(6))


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


def routing_of(probabilities, selected=None):
    """Routing of N images with those probabilities; logits are their logarithms."""
    chosen = probabilities.topk(2, dim=1).indices if selected is None else selected
    return Routing(probabilities.clamp(min=1e-9).log(), probabilities, chosen, torch.full(chosen.shape, 0.5))


def balance_loss(kind, probabilities, load=None, selected=None):
    load = torch.full((6,), 1 / 6) if load is None else load
    total, _ = RoutingObjective(kind, 0)({4: routing_of(probabilities, selected)}, {4: load}, 1.0)
    return total


EQUAL = torch.full((8, 6), 1 / 6)
ONE_PAIR = torch.tensor([0.5, 0.5, 0, 0, 0, 0])
UNEVEN = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])


def test_band_loss_is_zero_when_balanced_and_two_when_two_of_six_do_everything():
    assert balance_loss("band", EQUAL).item() == pytest.approx(0, abs=1e-6)
    assert balance_loss("band", ONE_PAIR.expand(8, 6), ONE_PAIR).item() == pytest.approx(2, abs=1e-6)


def test_switch_loss_reads_the_choices_of_the_batch_and_no_running_load():
    spread = torch.tensor([[0, 1], [2, 3], [4, 5]] * 4)
    one_pair = torch.tensor([[0, 1]] * 12)
    probabilities = ONE_PAIR.expand(12, 6)
    assert balance_loss("switch", probabilities, ONE_PAIR, spread).item() == pytest.approx(0, abs=1e-6)
    assert balance_loss("switch", probabilities, EQUAL[0], one_pair).item() == pytest.approx(2, abs=1e-6)


def test_importance_loss_is_the_squared_distance_from_equal_shares():
    assert balance_loss("importance", UNEVEN.expand(8, 6)).item() == pytest.approx(((UNEVEN - 1 / 6) ** 2).sum().item())
    decided = torch.eye(6)  # each image decided, all experts used alike: nothing to complain of
    assert balance_loss("importance", decided).item() == pytest.approx(0, abs=1e-7)


def test_no_balance_is_zero():
    assert balance_loss("none", ONE_PAIR.expand(8, 6), ONE_PAIR).item() == 0


@pytest.mark.parametrize("kind", ["band", "switch", "importance"])
def test_gradient_of_the_loss_pushes_down_what_is_overloaded(kind):
    logits: Any = UNEVEN.log().repeat(8, 1).requires_grad_()
    balance_loss(kind, logits.softmax(dim=1), UNEVEN).backward()
    gradient = logits.grad[0]
    assert gradient[:2].max() > 0  # a descent step lowers what is overloaded
    assert (gradient[2:] < 0).all()
    assert gradient.argmax() == 0


def test_gradient_of_the_band_loss_is_that_of_the_whole_batch_when_ranks_are_averaged():
    logits = torch.randn(8, 6, requires_grad=True)
    (whole,) = torch.autograd.grad(balance_loss("band", logits.softmax(dim=1), UNEVEN), logits)
    halves = torch.stack([balance_loss("band", half.softmax(dim=1), UNEVEN) for half in logits.split(4)]).mean()
    (averaged,) = torch.autograd.grad(halves, logits)
    assert torch.allclose(whole, averaged, atol=1e-7)


def information_terms(probabilities):
    objective = RoutingObjective("none", 0, entropy=1.0, mutual_information=1.0)
    _, terms = objective({4: routing_of(probabilities)}, {4: EQUAL[0]}, 0.0)
    return terms["entropy"].item(), terms["mutual_information"].item()


def test_entropy_asks_for_all_experts_and_mutual_information_for_decided_images_too():
    log_six = torch.tensor(6.0).log().item()
    assert information_terms(EQUAL) == pytest.approx((0, 0), abs=1e-6)  # balanced, learned nothing
    assert information_terms(torch.eye(6)) == pytest.approx((0, -log_six), abs=1e-6)  # balanced, each image decided
    one_expert = torch.eye(6)[:1].expand(6, 6)
    assert information_terms(one_expert) == pytest.approx((log_six, 0), abs=1e-6)


@few
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 0.1), st.floats(0, 0.1))
def test_the_objective_is_the_weighted_sum_of_its_terms_averaged_over_scales(seed, coefficient, entropy, information):
    generator = torch.Generator().manual_seed(seed)
    routings = {stride: routing_of(torch.rand(5, 6, generator=generator).softmax(dim=1)) for stride in (4, 16)}
    loads = {stride: torch.rand(6, generator=generator).softmax(dim=0) for stride in (4, 16)}
    objective = RoutingObjective("band", 0.1, entropy, information)
    total, terms = objective(routings, loads, coefficient)
    weights = {"balance": coefficient, "z_loss": 0.1, "entropy": entropy, "mutual_information": information}
    assert set(terms) == {name for name, weight in weights.items() if weight > 0 or name == "balance"}
    assert total.item() == pytest.approx(sum(weights[name] * value.item() for name, value in terms.items()), abs=1e-6)
    alone = [objective({s: routings[s]}, {s: loads[s]}, coefficient)[0].item() for s in (4, 16)]
    assert total.item() == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_z_loss_is_the_mean_squared_log_partition_and_shrinks_large_logits():
    raw: Any = torch.tensor([[20.0, 0, 0], [0, -3.0, 1.0]], requires_grad=True)
    value = z_loss(raw)
    assert value.item() == pytest.approx(raw.detach().exp().sum(dim=1).log().square().mean().item(), rel=1e-5)
    value.backward()
    assert raw.grad[0, 0] > 0
