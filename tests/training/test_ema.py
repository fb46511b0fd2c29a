"""The average follows its definition, warms up, and does nothing on a skipped step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camox.models.camoxpert import CamoXpert
from camox.training.ema import WeightAverage, average_in_lists, average_one_by_one

TAKEN, SKIPPED = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def network() -> CamoXpert:
    torch.manual_seed(0)
    return CamoXpert("resnet10t", width=8)


def move(network: CamoXpert, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("warmup", [True, False])
def test_it_equals_the_written_out_recursion(network, warmup):
    name = "heads.0.weight"
    expected = network.state_dict()[name].clone().double()
    average = WeightAverage(network, decay=0.9, warmup=warmup)
    for n in range(12):
        move(network, seed=n)
        average.update(TAKEN)
        decay = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * network.state_dict()[name].double()
    torch.testing.assert_close(average.model.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_keeps_every_bit_and_the_count(network):
    average = WeightAverage(network, 0.999, warmup=True)
    average.update(TAKEN)
    before = {name: value.clone() for name, value in average.state_tensors().items()}
    move(network, seed=1)
    average.update(SKIPPED)
    after = average.state_tensors()
    for name, value in before.items():
        if not name.startswith("balances."):
            assert torch.equal(value, after[name]), name
    assert average.updates == 1


def test_running_statistics_are_averaged_and_balance_is_copied(network):
    average = WeightAverage(network, decay=0.5, warmup=False)
    statistic = next(name for name in network.state_dict() if name.endswith("running_mean"))
    start = network.state_dict()[statistic].clone()
    move(network, seed=5)
    average.update(TAKEN)
    ours, theirs = average.model.state_dict(), network.state_dict()
    torch.testing.assert_close(ours[statistic], (start + theirs[statistic]) / 2)
    for name in theirs:
        if name.startswith("balances."):
            assert torch.equal(ours[name], theirs[name])


def test_in_a_short_run_it_is_near_the_weights_not_the_start(network):
    """The origin's false collapse: decay 0.9999 over 100 updates is 99 % random start without warm-up."""
    start = network.heads[0].weight.detach().clone()
    averages = {warmup: WeightAverage(network, 0.9999, warmup) for warmup in (True, False)}
    for _ in range(100):
        with torch.no_grad():
            network.heads[0].weight.copy_(start + 1)
        for average in averages.values():
            average.update(TAKEN)
    moved = {w: (a.model.heads[0].weight - start).mean().item() for w, a in averages.items()}
    assert moved[True] > 0.99
    assert moved[False] < 0.02


def test_it_takes_no_gradient_and_stays_in_eval_mode(network):
    average = WeightAverage(network, 0.9, True)
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not any(module.training for module in average.model.modules())


@given(share=st.floats(0, 1, width=32), seed=st.integers(0, 99))
def test_both_ways_to_average_agree_and_a_share_of_zero_changes_nothing(share, seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = [(torch.randn(5, generator=generator), torch.randn(5, generator=generator)) for _ in range(3)]
    others = [(weight, average.clone()) for weight, average in pairs]
    before = [average.clone() for _, average in pairs]
    average_one_by_one(pairs, torch.tensor(share))
    average_in_lists(others, torch.tensor(share))
    for (weight, ours), (_, theirs), was in zip(pairs, others, before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ours, was + share * (weight - was), atol=1e-6, rtol=1e-6)
        if share == 0:
            assert torch.equal(ours, was)
            assert torch.equal(theirs, was)
