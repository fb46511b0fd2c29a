"""The router: what it may and may not let decide, and in which precision."""

from typing import Any

import pytest
import torch

from camox.models.router import Router


@pytest.fixture
def features():
    return torch.randn(16, 12, 5, 7, generator=torch.Generator().manual_seed(3))


def make(top_k=2, gate_scale=1.0, **arguments):
    torch.manual_seed(0)
    router = Router(12, 6, top_k, **arguments)
    with torch.no_grad():
        router.gate.weight.mul_(gate_scale)
    return router


ZERO = torch.zeros(6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stays_in_fp32_under_autocast(features, dtype):
    router = make()
    expected = router.eval()(features, ZERO)
    with torch.autocast("cpu", dtype=dtype):
        routing = router(features, ZERO)
    for name, value in routing._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name
    assert {routing.raw_logits.dtype, routing.probabilities.dtype, routing.weights.dtype} == {torch.float32}


def test_half_precision_features_of_large_magnitude_are_summed_in_fp32(features):
    routing = make().eval()((features * 300 + 3e4).half(), ZERO)
    assert routing.weights.isfinite().all()
    assert routing.weights.dtype == torch.float32


def test_weights_and_probabilities_sum_to_one(features):
    routing = make(gate_scale=100)(features, ZERO)
    assert torch.allclose(routing.weights.sum(dim=1), torch.ones(16), atol=1e-6)
    assert torch.allclose(routing.probabilities.sum(dim=1), torch.ones(16), atol=1e-6)


def test_chosen_experts_differ_and_are_best_first(features):
    routing = make(top_k=3).eval()(features, ZERO)
    expected = routing.probabilities.topk(3, dim=1).indices
    assert torch.equal(routing.selected, expected)
    assert all(len(set(row)) == 3 for row in routing.selected.tolist())


@pytest.mark.parametrize("limit", [1.0, 10.0])
def test_no_logit_passes_the_limit(features, limit):
    routing = make(gate_scale=1e4, logit_limit=limit)(features, ZERO)
    assert routing.raw_logits.abs().max() > 100  # the raw ones do
    # Of two logits at opposite limits the odds are exp(2·limit).
    log_odds = routing.probabilities.log()
    assert (log_odds.amax(dim=1) - log_odds.amin(dim=1)).max() <= 2 * limit + 1e-3


def test_the_cap_is_smooth_so_large_logits_keep_a_gradient(features):
    router = make(gate_scale=500)
    routing = router(features, ZERO)
    routing.raw_logits.retain_grad()
    routing.weights[:, 0].sum().backward()
    assert routing.raw_logits.grad.abs().sum() > 0


def test_temperature_flattens(features):
    sharp, flat = (make(gate_scale=20, temperature=t)(features, ZERO).probabilities for t in (1.0, 4.0))
    assert torch.special.entr(flat).sum() > torch.special.entr(sharp).sum()


def test_bias_decides_the_choice_and_never_the_weights(features):
    router = make(gate_scale=20).eval()
    plain = router(features, ZERO)
    bias = torch.tensor([50.0, 40.0, 0, 0, 0, 0])
    forced = router(features, bias)
    assert (forced.selected == torch.tensor([0, 1])).all()
    assert torch.equal(forced.probabilities, plain.probabilities)
    expected = forced.probabilities[:, :2] / forced.probabilities[:, :2].sum(dim=1, keepdim=True)
    assert torch.allclose(forced.weights, expected, atol=1e-6)


def test_noise_decides_the_choice_and_never_the_weights(features):
    router = make(gate_scale=5, noise=5.0).train()
    plain = router.eval()(features, ZERO)
    noisy = router.train()(features, ZERO)
    assert not torch.equal(noisy.selected, plain.selected)
    assert torch.equal(noisy.probabilities, plain.probabilities)
    chosen = noisy.probabilities.gather(1, noisy.selected)
    assert torch.allclose(noisy.weights, chosen / chosen.sum(dim=1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize(("mode", "share"), [(False, 1.0), (True, 0.0)])
def test_no_noise_in_eval_mode_or_once_annealed(features, mode, share):
    router = make(noise=5.0).train(mode)
    router.noise_share = share
    before = torch.get_rng_state()
    first, second = router(features, ZERO), router(features, ZERO)
    assert torch.equal(first.selected, second.selected)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_experts_chosen_equals_softmax_over_all(features):
    routing = make(top_k=6, gate_scale=20)(features, ZERO)
    spread = torch.zeros(16, 6).scatter(1, routing.selected, routing.weights)
    assert torch.allclose(spread, routing.probabilities, atol=1e-6)


def test_weights_have_the_gradient_of_the_chosen_logits(features):
    router = make(gate_scale=20).eval()
    routing = router(features, ZERO)
    chosen = routing.raw_logits.gather(1, routing.selected)
    expected = torch.softmax(10 * torch.tanh(chosen / 10), dim=1)
    target = torch.randn(16, 2)
    (got,) = torch.autograd.grad((routing.weights * target).sum(), router.gate.weight, retain_graph=True)
    (want,) = torch.autograd.grad((expected * target).sum(), router.gate.weight)
    assert torch.allclose(got, want, atol=1e-5)
    assert got.abs().sum() > 0


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_map_gives_finite_gradients(value):
    """The deviation of a constant has no derivative: at stride 32 a small image is one pixel."""
    features: Any = torch.full((2, 12, 1, 1), value, requires_grad=True)
    make()(features, ZERO).weights[:, 0].sum().backward()
    assert features.grad.isfinite().all()


def test_reads_deviation_as_well_as_mean():
    router = make(gate_scale=20).eval()
    base = torch.randn(1, 12, 8, 8)
    centred = base - base.mean(dim=(2, 3), keepdim=True)
    calm, wild = router(centred, ZERO), router(centred * torch.linspace(1, 9, 12).view(1, 12, 1, 1), ZERO)
    assert not torch.allclose(calm.probabilities, wild.probabilities, atol=1e-3)
