"""The mixture: sorted dispatch equals running every expert and masking, idle experts stay in step."""

import pytest
import torch
from torch import nn

from camox.models import moe
from camox.models.camoxpert import DEFAULT_EXPERTS
from camox.models.moe import MixtureOfExperts, plan_dispatch
from camox.models.regions import split_regions
from camox.models.router import Routing, count_choices


def route(choices, experts=6, seed=0):
    """Routing with those choices `[B, k]` and random logits that carry a gradient."""
    selected = torch.tensor(choices)
    raw = torch.randn(len(choices), experts, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return Routing(raw, raw.softmax(dim=1), selected, raw.gather(1, selected).softmax(dim=1))


def make(**arguments):
    torch.manual_seed(0)
    mixture = MixtureOfExperts(16, DEFAULT_EXPERTS, **arguments)
    nn.init.normal_(mixture.scale)
    return mixture


def outcome(mixture, routing, x, is_sorted):
    """Output and the gradients of input, router and every parameter of one pass."""
    mixture.zero_grad()
    x = x.clone().requires_grad_()
    plan = plan_dispatch([routing], 6)[0] if is_sorted else None
    y = mixture(x, routing, plan)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    grads = torch.autograd.grad((y * weight).sum(), [x, routing.raw_logits, *mixture.parameters()], retain_graph=True)
    return [y, *grads]


CHOICES = {
    "mixed": [[0, 3], [5, 0], [2, 4], [0, 1]],
    "one image": [[4, 1]],
    "one pair takes all": [[2, 3], [3, 2], [2, 3]],
    "top 1": [[5], [0], [5]],
    "all experts": [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]],
}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sorted_equals_masked_in_output_and_gradients(choices, checkpointing):
    mixture, routing = make(gradient_checkpointing=checkpointing), route(choices)
    x = torch.randn(len(choices), 16, 6, 9)
    for got, expected in zip(outcome(mixture, routing, x, True), outcome(mixture, routing, x, False), strict=True):
        assert torch.allclose(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gathering_and_weighting_have_the_gradients_of_their_formulas(choices, layout):
    routing = route(choices)
    plan = plan_dispatch([routing], 6)[0]
    back = plan.order.argsort().view_as(routing.selected)
    x = torch.randn(len(choices), 3, 2, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weights = routing.weights.detach().double().requires_grad_()
    spread = moe._Spread.apply(x, plan.order, back)
    assert torch.equal(spread, x[plan.order // back.shape[1]])
    total = moe._WeightedSum.apply(spread, weights, plan.order, back)
    assert torch.allclose(total, (weights.sum(dim=1)[:, None, None, None] * x), atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: moe._Spread.apply(x, plan.order, back), x)
    responses = torch.randn_like(spread).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda responses, weights: moe._WeightedSum.apply(responses, weights, plan.order, back), (responses, weights)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_precision_rounds_and_no_more(dtype, checkpointing):
    mixture, routing, x = make(gradient_checkpointing=checkpointing), route(CHOICES["mixed"]), torch.randn(4, 16, 8, 8)
    exact = outcome(mixture, routing, x, True)
    with torch.autocast("cpu", dtype=dtype):
        rounded = outcome(mixture, routing, x, True)
    assert rounded[1].dtype == rounded[2].dtype == torch.float32  # gradients of the input and of the router
    for got, expected in zip(rounded, exact, strict=True):
        assert (got - expected).norm() <= 0.03 * expected.norm()


def test_gradient_checkpointing_changes_no_bit():
    routing, x = route(CHOICES["mixed"]), torch.randn(4, 16, 6, 9)
    plain = outcome(make(), routing, x, True)
    recomputed = outcome(make(gradient_checkpointing=True), routing, x, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_gradient_checkpointing_computes_each_expert_again():
    mixture, routing = make(gradient_checkpointing=True), route(CHOICES["all experts"])
    runs = []
    for name, expert in mixture.experts.items():
        expert.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    outcome(mixture, routing, torch.randn(2, 16, 6, 9), True)
    assert sorted(runs) == sorted(2 * list(DEFAULT_EXPERTS))


def test_masked_equals_the_formula_image_by_image():
    mixture, routing = make().eval(), route(CHOICES["mixed"])
    x = torch.randn(4, 16, 6, 9)
    with torch.no_grad():
        for image in range(4):
            normalised = mixture.norm(x[image][None])
            expected = x[image][None] + mixture.scale * sum(
                weight * mixture.experts[list(DEFAULT_EXPERTS)[expert]](normalised)
                for expert, weight in zip(routing.selected[image].tolist(), routing.weights[image], strict=True)
            )
            assert torch.allclose(mixture(x, routing, None)[image], expected[0], atol=1e-5)


def test_each_expert_runs_once_and_only_on_its_images():
    mixture, routing = make().eval(), route(CHOICES["mixed"])
    seen: dict[str, list[int]] = {}
    for name, expert in mixture.experts.items():
        expert.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(len(inputs[0])))
    mixture(torch.randn(4, 16, 6, 9), routing, plan_dispatch([routing], 6)[0])
    assert seen == {"texture": [3], "edge": [1], "contrast": [1], "frequency": [1], "attention": [1], "semantic": [1]}


def test_idle_experts_have_a_gradient_of_zero_in_training():
    mixture, routing = make().train(), route(CHOICES["one image"])
    mixture(torch.randn(1, 16, 6, 9), routing, plan_dispatch([routing], 6)[0]).sum().backward()
    for name in ("texture", "contrast", "frequency", "semantic"):
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in mixture.experts[name].parameters()), name
    for name in ("edge", "attention"):
        assert any(p.grad.abs().sum() > 0 for p in mixture.experts[name].parameters()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_does_not_depend_on_whether_an_expert_is_idle(dtype, monkeypatch):
    """Batch-mates decide which experts are idle: an image's prediction may not."""

    class NormAsOnCuda(nn.GroupNorm):  # there autocast gives fp32 norms, on the CPU it leaves them
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())

    summed = torch.Tensor.sum

    def sum_as_on_cuda(x, *args, **options):  # there autocast sums in fp32 unless a type is named
        is_left_alone = "dtype" in options or not x.is_floating_point()
        return summed(x if is_left_alone else x.float(), *args, **options)

    monkeypatch.setattr(torch.Tensor, "sum", sum_as_on_cuda)
    mixture = make().eval()
    mixture.norm = NormAsOnCuda(8, 16)
    x = torch.randn(3, 16, 6, 9)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        alone = route([[0, 1]])
        alone_y = mixture(x[:1].to(dtype), alone, plan_dispatch([alone], 6)[0])
        full = route([[0, 1], [2, 3], [4, 5]])
        full_y = mixture(x.to(dtype), full, plan_dispatch([full], 6)[0])
        masked_y = mixture(x.to(dtype), full, None)
    assert alone_y.dtype == full_y.dtype == masked_y.dtype == dtype


@pytest.mark.parametrize("is_sorted", [True, False])
def test_channels_last_reaches_the_experts_and_their_gradients(is_sorted):
    mixture, routing = make().to(memory_format=torch.channels_last), route(CHOICES["mixed"])
    layouts = []

    def look(_, inputs):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for expert in mixture.experts.values():
        expert.register_forward_pre_hook(look)
    x = torch.randn(4, 16, 6, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = mixture(x, routing, plan_dispatch([routing], 6)[0] if is_sorted else None)
    assert layouts == [True] * 6
    y.square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_dispatch_plan_orders_pairs_by_expert_and_counts_them():
    routing = route(CHOICES["mixed"])
    plan = plan_dispatch([routing], 6)[0]
    experts = routing.selected.flatten()[plan.order].tolist()
    assert experts == sorted(experts)
    assert sorted(plan.order.tolist()) == list(range(8))
    assert plan.counts == [experts.count(e) for e in range(6)]


def test_one_host_copy_plans_every_scale(host_copies):
    routings = [route(CHOICES["mixed"], seed=seed) for seed in range(4)]
    host_copies.clear()
    assert len(moe.plan_dispatch(routings, 6)) == 4
    assert host_copies == ["tolist"]


def test_choices_are_counted_as_bincount_does():
    selected = torch.randint(0, 6, (16, 2))
    assert torch.equal(count_choices(selected, 6), selected.flatten().bincount(minlength=6))


@pytest.mark.parametrize("is_sorted", [True, False])
def test_router_gets_the_gradient_of_what_the_experts_said(is_sorted):
    _, _, router_gradient, *_ = outcome(make(), route(CHOICES["mixed"]), torch.randn(4, 16, 6, 9), is_sorted)
    assert (router_gradient.abs().sum(dim=1) > 0).all()


def test_a_shared_expert_sees_every_image_whatever_the_router_says():
    mixture, x = make(shared=True).eval(), torch.randn(3, 16, 6, 9)
    seen = []
    mixture.shared.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        mixture.scale.zero_()  # the routed experts say nothing
        one, other = (mixture(x, route(c), plan_dispatch([route(c)], 6)[0]) for c in ([[0, 1]] * 3, [[4, 5]] * 3))
    assert seen == [3, 3]
    assert torch.equal(one, other)
    assert not torch.equal(one, x)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_each_region_of_a_grid_passes_through_its_own_experts(is_sorted):
    mixture, x = make(grid=2).eval(), torch.randn(2, 16, 6, 8)
    routing = route([[0, 1], [2, 3], [4, 5], [1, 0], [5, 2], [3, 0], [0, 4], [1, 5]])
    plan = plan_dispatch([routing], 6)[0] if is_sorted else None
    with torch.no_grad():
        got = mixture(x, routing, plan) - x
        regions = split_regions(mixture.norm(x), 2)
        for number, region in enumerate(split_regions(got, 2)):
            expected = mixture.scale[0] * sum(
                weight * list(mixture.experts.values())[expert](regions[number][None])[0]
                for expert, weight in zip(routing.selected[number], routing.weights[number], strict=True)
            )
            assert torch.allclose(region, expected, atol=1e-5)
