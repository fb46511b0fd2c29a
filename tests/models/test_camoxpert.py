"""The whole network: gradients everywhere, any size, no batch-mates, round trips, and users' mistakes."""

import copy
import json
import re
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from camox.errors import CheckpointError, ExperimentError
from camox.losses.composite import SegmentationObjective
from camox.models import camoxpert, moe
from camox.models.camoxpert import CamoXpert

OBJECTIVE = SegmentationObjective(
    {"structure": 1.0, "boundary": 0.5, "uncertainty": 0.1, "search": 0.3, "deep": 0.5, "refinement": 0.5}
)


def task_loss(network, images):
    """The task's loss alone: neither balance nor z-loss."""
    mask = torch.zeros(len(images), 1, *images.shape[-2:])
    mask[..., 8:30, 10:40] = 1
    return OBJECTIVE(network(images), mask).total


# ---- gradients


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dispatch", ["sorted", "masked"])
def test_the_task_alone_trains_every_router_and_reaches_every_parameter(build, images, batch, dispatch):
    network = build(dispatch=dispatch).train()
    task_loss(network, images(batch)).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert not missing
    for stride, router in network.routers.items():
        for name, parameter in router.named_parameters():
            assert parameter.grad.abs().sum() > 0, f"{stride}.{name}"


SHAPES: list[dict[str, Any]] = [
    {"deep_supervision": False},
    {"refinement_steps": 0},
    {"scales": (8, 32)},
    {"scales": ()},
    {"mode": "dense"},
    {"mode": "static"},
    {"mode": "random"},
    {"shared": True},
    {"granularity": 2},
    {"gate": "linear"},
]


@pytest.mark.parametrize("arguments", SHAPES)
def test_every_parameter_has_a_gradient_in_every_shape_of_network(build, images, arguments):
    network = build(**arguments).train()
    task_loss(network, images()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_a_frozen_backbone_has_no_graph_no_gradient_and_keeps_its_statistics(build, images):
    network = build().train()
    network.freeze_backbone(4)
    before = {name: b.clone() for name, b in network.backbone.named_buffers()}
    caught = []
    network.backbone.register_forward_hook(lambda *call: caught.extend(call[2]))
    network.train()
    task_loss(network, images()).backward()
    assert len(caught) == 4
    assert not any(feature.requires_grad for feature in caught)
    assert not any(p.requires_grad for p in network.backbone.parameters())
    assert all(p.grad is None for p in network.backbone.parameters())
    assert all(torch.equal(b, before[name]) for name, b in network.backbone.named_buffers())
    assert all(p.grad is not None for n, p in network.named_parameters() if not n.startswith("backbone."))


def test_an_unfrozen_backbone_trains_again(build, images):
    network = build().train()
    network.freeze_backbone(4)
    network.freeze_backbone(0)
    before = network.backbone.network.bn1.running_mean.clone()
    task_loss(network, images()).backward()
    assert all(p.grad is not None for p in network.backbone.parameters())
    assert not torch.equal(network.backbone.network.bn1.running_mean, before)


# ---- ways of computing the same


def outcome(network, batch):
    torch.manual_seed(0)  # random routing draws from it
    network.train()
    network.zero_grad()
    loss = task_loss(network, batch)
    loss.backward()
    return [loss, *[p.grad for p in network.parameters()]]


@pytest.mark.parametrize("mode", ["sparse", "dense", "static", "random"])
def test_sorted_equals_masked_through_the_whole_network(build, images, mode):
    expected = outcome(build(dispatch="masked", mode=mode), images(3))
    got = outcome(build(dispatch="sorted", mode=mode), images(3))
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("mode", ["sparse", "dense", "static", "random"])
def test_gradient_checkpointing_changes_no_bit(build, images, mode):
    plain = outcome(build(mode=mode), images(3))
    recomputed = outcome(build(mode=mode, gradient_checkpointing=True), images(3))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_dense_weighs_all_experts_as_the_router_says(build, images):
    output = build(mode="dense").eval()(images())
    for routing in output.routing.values():
        spread = torch.zeros_like(routing.probabilities).scatter(1, routing.selected, routing.weights)
        assert torch.allclose(spread, routing.probabilities, atol=1e-6)


def test_sparse_with_all_experts_equals_dense(build, images):
    sparse, dense = build(top_k=6).eval(), build(mode="dense").eval()
    assert torch.allclose(sparse(images()).logits, dense(images()).logits, atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"granularity": 2}])
def test_given_routing_takes_the_place_of_the_routers(build, images, arguments):
    network, batch = build(**arguments).eval(), images(3)
    own = network(batch)
    assert torch.equal(network(batch, routing=own.routing).logits, own.logits)
    others = {stride: routing._replace(selected=(routing.selected + 1) % 6) for stride, routing in own.routing.items()}
    assert not torch.allclose(network(batch, routing=others).logits, own.logits)


@pytest.mark.parametrize("arguments", [{"mode": "static"}, {"mode": "random"}, {"scales": ()}])
def test_what_does_not_learn_to_route_has_no_router_parameters_and_no_balance(build, arguments):
    names = list(build(**arguments).state_dict())
    assert not [name for name in names if "router" in name or "balance" in name]


def test_static_holds_only_the_experts_it_uses(build, images):
    network = build(mode="static", experts=("frequency", "edge", "texture")).eval()
    assert network.expert_names == ("frequency", "edge")
    assert list(network.mixtures["stride_4"].experts) == ["frequency", "edge"]
    assert {tuple(r.probabilities.shape) for r in network(images()).routing.values()} == {(2, 2)}


def test_channels_last_says_the_same(build, images):
    plain, other = build().eval(), build(channels_last=True).eval()
    assert other.laterals[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain(images()).logits, other(images()).logits, atol=1e-5)


def test_two_runs_agree_bit_for_bit(build, images):
    first, second = outcome(build(), images(3)), outcome(build(), images(3))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- predictions


@pytest.mark.parametrize("arguments", [{}, {"mode": "random"}, {"granularity": 2, "shared": True}])
def test_a_prediction_does_not_depend_on_batch_mates(build, images, arguments):
    network = build(**arguments).eval()
    batch = images(4)
    mates = torch.cat([batch[:1], 5 * images(2, seed=8)])
    with torch.no_grad():
        together, with_mates = network(batch), network(mates)
        for position, image in enumerate(batch):
            alone = network(image[None])
            assert torch.allclose(alone.logits[0], together.logits[position], atol=1e-5)
            assert torch.allclose(alone.uncertainty[0], together.uncertainty[position], atol=1e-5)
    assert torch.allclose(with_mates.logits[0], together.logits[0], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (96, 160), (101, 77), (32, 31)])
@pytest.mark.parametrize("training", [True, False])
def test_any_input_size_gives_logits_of_that_size(build, images, size, training):
    network = build(width=8).train(training)
    output = network(images(2, *size))
    assert output.logits.shape == output.uncertainty.shape == (2, 1, *size)
    assert output.logits.isfinite().all()
    padded = [side + -side % 32 for side in size]
    assert [d.shape[-1] * s for d, s in zip(output.deep, (16, 8, 4), strict=True)] == [padded[1]] * 3
    assert output.search.shape[-2:] == (padded[0] // 32, padded[1] // 32)
    assert len(output.refinements) == 2


def test_padding_inside_equals_padding_outside(build, images):
    network = build().eval()
    small = images(1, 90, 81)
    explicit = torch.nn.functional.pad(small, (0, 15, 0, 6), mode="replicate")
    with torch.no_grad():
        inside, outside = network(small), network(explicit)
        assert all(torch.equal(a, b) for a, b in zip(inside.deep, outside.deep, strict=True))
        # Refinement is told how uncertain a place is beside the least certain one: that may lie in the padding.
        assert torch.allclose(inside.logits, outside.logits[..., :90, :81], atol=1e-4)
        whole = network(images(1, 96, 96)).refinements[-1]
        assert whole.shape[-2:] == (24, 24)  # nothing added to what fits already


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_with_fp32_where_it_must_be(build, images, dtype):
    network = build().train()
    with torch.autocast("cpu", dtype=dtype):
        output = network(images())
    assert output.logits.dtype == output.boundary_log_variance.dtype == torch.float32
    assert all(r.raw_logits.dtype == torch.float32 for r in output.routing.values())
    mask = (torch.rand(2, 1, 64, 64) > 0.5).float()
    OBJECTIVE(output, mask).total.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_uncertainty_is_relative_and_gives_no_gradient(build, images):
    uncertainty = build().train()(images()).uncertainty
    assert not uncertainty.requires_grad
    assert uncertainty.min() > 0
    assert uncertainty.max() <= 1


def test_the_dispatch_of_all_scales_is_planned_once_a_forward(build, images, monkeypatch):
    calls = []

    def planned(routings, experts):
        calls.append(len(routings))
        return moe.plan_dispatch(routings, experts)

    monkeypatch.setattr(camoxpert, "plan_dispatch", planned)
    network = build().train()
    network(images())
    assert calls == [4]


def test_nothing_else_waits_for_the_device(build, images, host_copies):
    network = build(noise=1.0).train()
    host_copies.clear()
    network(images())
    assert host_copies == ["tolist"]


def test_routing_noise_is_annealed_in_every_router(build, images):
    network = build(noise=50.0).train()
    chosen = [network(images(6)).routing[4].selected for _ in range(2)]
    assert not torch.equal(*chosen)
    network.anneal_routing_noise(0.0)
    batch = images(6)
    for stride in network.scales:
        first, second = (network(batch).routing[stride].selected for _ in range(2))
        assert torch.equal(first, second)


def test_the_balance_bias_steers_its_own_scale(build, images):
    network = build().eval()
    network.balance(16).bias.copy_(torch.tensor([0, 0, 0, 0, 50.0, 60.0]))
    routing = network(images()).routing
    assert routing[16].selected.tolist() == [[5, 4]] * 2
    assert routing[8].selected.tolist() == build().eval()(images()).routing[8].selected.tolist()


# ---- round trips


def test_from_pretrained_gives_the_same_network_bit_for_bit(build, images, tmp_path):
    network = build(experts=("edge", "frequency", "texture"), scales=(8, 32), refinement_steps=1, band=(0.4, 3.0))
    network.balance(8).bias.copy_(torch.tensor([0.5, -0.2, -0.3]))
    network.train()
    network(images())  # statistics that are not the initial ones
    network.eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config))
    loaded = CamoXpert.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config == network.config
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(loaded(images()).logits, network(images()).logits)


def test_config_asks_for_no_weights_when_the_network_is_built_again(tmp_path, build):
    file = tmp_path / "backbone.safetensors"
    source = build()
    save_file(timm.create_model("resnet10t").state_dict(), file)
    network = build(weights=str(file))
    assert network.config["weights"] is None
    assert network.config["pretrained"] is False
    assert json.loads(json.dumps(network.config)) == network.config == source.config


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"depth": 3}'), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"backbone": "resnet10t", "width": 8}'), "cannot be"),
    ],
)
def test_a_damaged_checkpoint_is_named(build, tmp_path, spoil, message):
    network = build()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config))
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message) as refusal:
        CamoXpert.from_pretrained(tmp_path)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 7}, "top_k = 7 of 6"),
        ({"top_k": 0}, "choose between 1 and 6"),
        ({"experts": ("edge", "smell")}, r"smell.*choose from"),
        ({"experts": ("edge", "edge")}, "twice"),
        ({"experts": ()}, "name at least one of"),
        ({"width": 20}, "multiple of 8"),
        ({"scales": (4, 5)}, "strides"),
        ({"mode": "spares"}, "choose from"),
        ({"dispatch": "loop"}, "choose from"),
        ({"backbone": "vit_tiny_patch16_224"}, "choose a pyramid"),
        ({"pretrained": True}, r"model\.weights"),
    ],
)
def test_impossible_arguments_are_refused_with_a_remedy(build, arguments, message):
    with pytest.raises(ExperimentError, match=message):
        build(**arguments)


def test_is_built_from_an_experiment(tiny_experiment):
    network = CamoXpert.from_experiment(tiny_experiment("model.moe.top_k=3", "model.moe.router.noise=0.25"))
    assert network.config["backbone"] == "resnet10t"
    assert network.config["width"] == 8
    assert network.config["top_k"] == 3
    assert network.routers["stride_4"].noise == 0.25


def test_the_main_recipes_network_stays_within_its_budget():
    """352², EdgeNeXt-base, width 128: at most 14 GMAC per image and 30 M parameters."""
    network = CamoXpert("edgenext_base", width=128).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, 352, 352))
    assert 7e9 < counter.get_total_flops() / 2 <= 14e9
    assert sum(parameter.numel() for parameter in network.parameters()) <= 30e6


# ---- compiled


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_experts_and_decoder_have_no_graph_break_and_say_the_same(build, images, monkeypatch, backend):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiler(*args, **options, backend=backend))
    plain, compiled = build(shared=True), build(shared=True, compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())  # no name of the compiler's in a checkpoint
    experts = [*compiled.mixtures["stride_4"].experts.values(), compiled.mixtures["stride_4"].shared]
    assert not compiled.config["compile"]  # who loads its checkpoint to predict waits for no compiler
    assert all(module._compiled_call_impl is not None for module in [*experts, compiled.decoder])
    for count, size in [(3, 64), (2, 96)]:  # sub-batches of several sizes; fullgraph raises on a break
        expected = outcome(plain, images(count, size, size))
        got = outcome(compiled, images(count, size, size))
        assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(expected, got, strict=True))
    average = copy.deepcopy(compiled).eval()
    with torch.no_grad():
        assert torch.allclose(average(images()).logits, plain.eval()(images()).logits, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"band": [1.0]}, {"band": {"a": 1}}, {"experts": "edge"}, {"temperature": "1"}, {"temperature": 10**400},
        {"width": 16.0}, {"width": 8 * 10**9}, {"width": None}, {"refinement_steps": 10**9}, {"scales": None},
        {"mode": []}, {"top_k": True}, {"backbone": "resnet10"}, {"backbone": ""}, {"granularity": 1.5}, {"new": 1},
    ],
)  # fmt: skip
def test_a_config_that_no_model_has_is_refused_before_one_is_built(build, tmp_path, change):
    network = build()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config | change))
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        CamoXpert.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"[]", b'"x"', b"9" * 5000])
def test_a_config_that_is_none_is_refused(build, tmp_path, content):
    save_file(build().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        CamoXpert.from_pretrained(tmp_path)


def test_a_config_cannot_have_anything_fetched(build, tmp_path):
    network = build()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config | {"pretrained": True}))
    assert CamoXpert.from_pretrained(tmp_path).config["pretrained"] is False  # and no network was asked for
