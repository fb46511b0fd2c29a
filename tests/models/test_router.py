"""The router: what it may and may not let decide, and in which precision."""

from typing import Any

import pytest
import torch

from camox.models.router import RandomRouting, Router, StaticRouting


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
    def gradient_of_large_logits(mode):
        routing = make(gate_scale=1500, logit_limit_mode=mode)(features, ZERO)
        routing.raw_logits.retain_grad()
        routing.probabilities[:, 0].sum().backward()
        return routing.raw_logits.grad[routing.raw_logits.abs() > 10]

    assert len(gradient_of_large_logits("tanh")) > 0
    assert gradient_of_large_logits("tanh").abs().max() > 0
    assert gradient_of_large_logits("clamp").abs().max() == 0


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


def test_a_clamp_cuts_off_and_has_no_gradient_beyond_the_limit(features):
    router = make(gate_scale=1e4, logit_limit=5.0, logit_limit_mode="clamp").eval()
    routing = router(features, ZERO)
    limited = routing.raw_logits.clamp(-5, 5)
    assert torch.equal(routing.probabilities, limited.softmax(dim=1))
    beyond = routing.raw_logits.abs() > 5
    (gradient,) = torch.autograd.grad(routing.probabilities[:, 0].sum(), routing.raw_logits)
    assert beyond.any()
    assert (gradient[beyond] == 0).all()


def test_a_linear_gate_is_linear_in_the_normalised_statistics(features):
    router = make(gate="linear").eval()
    mean, deviation = features.mean(dim=(2, 3)), features.std(dim=(2, 3), correction=0)
    summary = router.norm(torch.cat([mean, deviation], dim=1))
    expected = summary @ router.gate.weight.T + router.gate.bias
    assert torch.allclose(router(features, ZERO).raw_logits, expected, atol=1e-6)
    assert {name for name, _ in router.named_parameters()} == {"norm.weight", "norm.bias", "gate.weight", "gate.bias"}


def test_a_floor_lifts_small_probabilities_and_leaves_the_others(features):
    plain = make(gate_scale=300).eval()(features, ZERO)
    floored = make(gate_scale=300, prob_floor=0.05).eval()(features, ZERO)
    assert (plain.probabilities < 0.05).any()
    assert torch.equal(floored.probabilities, plain.probabilities.clamp(min=0.05))
    assert torch.equal(floored.weights, plain.weights.clamp(min=0.05))
    assert torch.equal(floored.selected, plain.selected)


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (600, 3, 8, 8), generator=torch.Generator().manual_seed(5)).float() / 255


def test_static_routing_treats_all_images_alike(pictures):
    routing = StaticRouting(2)(pictures)
    assert torch.equal(routing.selected, torch.tensor([[0, 1]]).expand(600, 2))
    assert (routing.weights == 0.5).all()
    assert routing.probabilities.shape == (600, 2)
    assert not list(StaticRouting(2).parameters())


def test_random_routing_is_drawn_anew_in_training(pictures):
    torch.manual_seed(0)
    routing = RandomRouting(6, 2, salt=4)
    assert not torch.equal(routing(pictures).selected, routing(pictures).selected)
    torch.manual_seed(0)
    again = routing(pictures).selected
    torch.manual_seed(0)
    assert torch.equal(routing(pictures).selected, again)


@pytest.mark.parametrize("training", [True, False])
def test_random_routing_uses_every_pair_alike(pictures, training):
    selected = RandomRouting(6, 2, salt=4).train(training)(pictures).selected.sort(dim=1).values
    assert (selected[:, 0] < selected[:, 1]).all()  # never one expert twice
    pairs = (6 * selected[:, 0] + selected[:, 1]).bincount(minlength=36)
    # 15 pairs expect 40 images each; 600 draws leave 15..75 with a probability below 1e-4.
    assert pairs[pairs > 0].min() >= 15
    assert pairs.max() <= 75
    assert (pairs > 0).sum() == 15


def test_random_routing_of_an_image_in_evaluation_depends_on_that_image_alone(pictures):
    routing = RandomRouting(6, 2, salt=4).eval()
    whole = routing(pictures).selected
    assert torch.equal(routing(pictures[17:18]).selected, whole[17:18])
    assert torch.equal(routing(pictures.flip(0)).selected, whole.flip(0))


def test_random_routing_tells_an_image_from_its_mirror_image(pictures):
    routing = RandomRouting(6, 2, salt=4).eval()
    equal = (routing(pictures).selected == routing(pictures.flip(3)).selected).all(dim=1).float().mean()
    assert equal < 0.08  # by chance 1 of 30 ordered pairs


def test_random_routing_of_two_scales_is_independent(pictures):
    one, other = (RandomRouting(6, 2, salt).eval()(pictures).selected.sort(dim=1).values for salt in (8, 32))
    equal = (one == other).all(dim=1).float().mean()
    assert equal < 0.12  # by chance 1 of 15 pairs
