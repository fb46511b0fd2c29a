"""Parameter groups, clipping by group, and the optimizer's state by name."""

import pytest
import torch

from camox.errors import CheckpointError
from camox.models.camoxpert import CamoXpert
from camox.training.optimization import (
    GROUPS,
    build_optimizer,
    clip_gradients,
    group_of,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


@pytest.fixture
def network() -> CamoXpert:
    torch.manual_seed(0)
    return CamoXpert("resnet10t", width=8)


def optimizer_of(network: CamoXpert) -> torch.optim.AdamW:
    return build_optimizer(network, {"backbone": 0.1, "router": 2.0}, 0.05, (0.9, 0.999), fused=True)


def with_gradients(network: CamoXpert) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_every_parameter_is_in_exactly_one_group(network):
    optimizer = optimizer_of(network)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in network.parameters()}
    assert {group["name"] for group in optimizer.param_groups} == set(GROUPS)


def test_norms_biases_scales_and_routers_do_not_decay(network):
    decaying = {id(p) for g in optimizer_of(network).param_groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in network.named_parameters():
        flat = sum(size > 1 for size in parameter.shape) <= 1
        if "router" in name or flat:
            assert id(parameter) not in decaying, name
    assert id(network.laterals[0].weight) in decaying


def test_names_decide_the_group():
    assert group_of("backbone.network.conv1.0.weight") == "backbone"
    assert group_of("routers.stride_4.gate.weight") == "router"
    assert group_of("mixtures.stride_4.experts.edge.mix.0.weight") == "experts"
    assert group_of("mixtures.stride_4.scale") == "head"


def test_multipliers_scale_the_rate_of_their_group(network):
    optimizer = optimizer_of(network)
    set_learning_rate(optimizer, 1e-2)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"backbone": 1e-3, "router": 2e-2, "experts": 1e-2, "head": 1e-2})


def test_router_and_rest_are_clipped_apart_and_norms_are_those_before(network):
    with_gradients(network)
    before = {name: p.grad.clone() for name, p in network.named_parameters()}

    def norm(chosen) -> torch.Tensor:
        return torch.cat([g.flatten().double() for n, g in chosen]).norm()

    router = norm((n, g) for n, g in before.items() if "router" in n)
    rest = norm((n, g) for n, g in before.items() if "router" not in n)
    norms = clip_gradients(network.named_parameters(), router_limit=0.1, rest_limit=1e6)
    assert norms.groups["router"].item() == pytest.approx(router.item(), rel=2e-4)
    assert norms.total.item() == pytest.approx(torch.hypot(router, rest).item(), rel=2e-4)
    assert (norms.router_clipped.item(), norms.rest_clipped.item()) == (1, 0)
    for name, parameter in network.named_parameters():
        expected = before[name] * (0.1 / (router.float() + 1e-6)) if "router" in name else before[name]
        torch.testing.assert_close(parameter.grad, expected)


def test_parameters_without_gradient_are_left_out(network):
    network.freeze_backbone(4)
    with_gradients(network)
    for parameter in network.backbone.parameters():
        parameter.grad = None
    norms = clip_gradients(network.named_parameters(), 1.0, 1.0)
    assert norms.groups["backbone"] == 0
    assert torch.isfinite(norms.total)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_gradient_makes_the_total_not_finite(network, value):
    with_gradients(network)
    network.laterals[0].weight.grad[0, 0] = value
    assert not torch.isfinite(clip_gradients(network.named_parameters(), 1.0, 1.0).total)


def test_state_by_name_continues_bit_for_bit(network):
    optimizer = optimizer_of(network)
    set_learning_rate(optimizer, 1e-2)
    for parameter in network.backbone.parameters():
        parameter.requires_grad_(False)
    with_gradients(network)
    for parameter in network.backbone.parameters():
        parameter.grad = None  # frozen until now: no state yet
    optimizer.step()
    saved = {name: value.clone() for name, value in optimizer_tensors(network.named_parameters(), optimizer).items()}
    assert not any(name.startswith("backbone") for name in saved)

    twin = CamoXpert("resnet10t", width=8)
    twin.load_state_dict(network.state_dict())
    other = optimizer_of(twin)
    set_learning_rate(other, 1e-2)
    load_optimizer_tensors(twin, other, saved)
    for model, using in ((network, optimizer), (twin, other)):
        with_gradients(model)
        using.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_state_of_another_model_is_refused(network):
    optimizer = optimizer_of(network)
    with pytest.raises(CheckpointError, match="nothing"):
        load_optimizer_tensors(network, optimizer, {"nothing.weight/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", torch.zeros(2)), ("exp_avg", torch.zeros(1)), ("other", torch.zeros(8)), ("exp_avg", None)],
)
def test_state_that_does_not_fit_its_parameter_is_refused(network, key, value):
    name, parameter = next(iter(network.named_parameters()))
    optimizer = optimizer_of(network)
    tensors = {
        f"{name}/step": torch.tensor(1.0),
        f"{name}/exp_avg": torch.zeros_like(parameter),
        f"{name}/exp_avg_sq": torch.zeros_like(parameter),
    }
    if value is None:
        del tensors[f"{name}/{key}"]
    else:
        tensors[f"{name}/{key}"] = value
    with pytest.raises(CheckpointError, match="the optimizer's state"):
        load_optimizer_tensors(network, optimizer, tensors)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_come_back_in_their_parameters_order_in_memory(network, layout):
    """A fused kernel goes through weight and moments side by side: in another order each gets another's moments."""
    network = network.to(memory_format=layout)
    optimizer = build_optimizer(network, {}, 0.0, (0.9, 0.999), fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    saved = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in optimizer_tensors(network.named_parameters(), optimizer).items()
    }
    load_optimizer_tensors(network, optimizer, saved)
    for parameter in network.parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
    for name, value in optimizer_tensors(network.named_parameters(), optimizer).items():
        assert torch.equal(value, saved[name]), name
