"""The feature extractor: shapes, whose weights it has, and every mistake a user can make with it."""

from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from camox.errors import ExperimentError
from camox.models.backbone import STRIDES, Backbone


@pytest.mark.parametrize("name", ["resnet10t", "edgenext_xx_small", "pvt_v2_b0", "mambaout_femto"])
def test_gives_four_maps_at_their_strides(name):
    backbone = Backbone(name).eval()
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 64 // stride, 96 // stride) for stride, channels in zip(STRIDES, backbone.channels, strict=True)
    ]


def test_normalises_with_the_statistics_its_weights_were_trained_with():
    backbone = Backbone("resnet10t").eval()
    image = torch.rand(1, 3, 32, 32)
    settings: Any = timm.get_pretrained_cfg("resnet10t")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (settings.mean, settings.std))
    assert torch.allclose(backbone(image)[-1], backbone.network((image - mean) / std)[-1], atol=1e-6)


def test_weights_of_a_classification_checkpoint_are_really_loaded(tmp_path):
    classifier = timm.create_model("resnet10t")
    for parameter in classifier.parameters():
        nn.init.normal_(parameter)
    file = tmp_path / "resnet10t.safetensors"
    save_file(classifier.state_dict(), file)
    loaded = dict(Backbone("resnet10t", weights=file).network.named_parameters())
    expected = dict(classifier.named_parameters())
    assert len(loaded) == len(expected) - 2  # but for the classifier's weight and bias
    for name, parameter in loaded.items():
        assert torch.equal(parameter, expected[name]), name


def test_loading_weights_leaves_the_random_stream_alone(tmp_path):
    file = tmp_path / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), file)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Backbone("resnet10t", weights=file)
    assert torch.equal(torch.get_rng_state(), before)


def other_network(path):
    save_file(timm.create_model("resnet18").state_dict(), path)


def foreign_names(path):
    state = timm.create_model("resnet10t").state_dict()
    save_file({f"encoder.{name}": value for name, value in state.items()}, path)


def half_of_it(path):
    state = timm.create_model("resnet10t").state_dict()
    save_file({name: value for name, value in state.items() if not name.startswith("layer3")}, path)


def no_safetensors(path):
    path.write_bytes(b"not a safetensors file at all")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (other_network, "do not fit"),
        (foreign_names, "do not fit"),
        (half_of_it, "do not fit"),
        (no_safetensors, "cannot be read"),
    ],
)
def test_refuses_weights_that_are_not_those_of_the_backbone(tmp_path, write, message):
    file = tmp_path / "weights.safetensors"
    write(file)
    with pytest.raises(ExperimentError, match=message) as refusal:
        Backbone("resnet10t", weights=file)
    assert str(file) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10x", "model.backbone = .resnet10x. is not known: did you mean"),
        ("vit_tiny_patch16_224", r"strides .*choose a pyramid"),
        ("swin_tiny_patch4_window7_224", r"images of .* only.*choose"),
        ("qqqq", "see timm.list_models"),
    ],
)
def test_refuses_a_backbone_it_cannot_use_and_says_which_it_can(name, message):
    with pytest.raises(ExperimentError, match=message):
        Backbone(name)


@pytest.mark.parametrize("offline", [True, False])
def test_pretrained_without_a_network_is_one_message_at_once_with_the_remedy(monkeypatch, caplog, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(timm, "create_model", lambda *arguments, **options: pytest.fail("left to the hub's client"))
    remedy = r"could not be fetched.*: download model\.safetensors of https://huggingface\.co/timm/resnet10t\.c3_in1k "
    with pytest.raises(ExperimentError, match=remedy + r"on another machine .* as model\.weights, or set model\.pre"):
        Backbone("resnet10t", pretrained=True)
    assert not caplog.records


def test_pretrained_weights_on_this_machine_are_not_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("camox.models.backbone.get_hf_file_metadata", lambda address: asked.append(address))
    monkeypatch.setattr(
        "camox.models.backbone.try_to_load_from_cache", lambda repository, file: f"/cache/{repository}/{file}"
    )
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options | {"pretrained": False}))
    Backbone("resnet10t", pretrained=True)
    assert not asked
    monkeypatch.setattr("camox.models.backbone.try_to_load_from_cache", lambda repository, file: None)
    Backbone("resnet10t", pretrained=True)
    assert asked == ["https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"]


def test_pretrained_where_there_are_no_weights_is_refused_before_any_request():
    with pytest.raises(ExperimentError, match=r'no pretrained weights of "coatnet_0_224": set model\.pretrained=false'):
        Backbone("coatnet_0_224", pretrained=True)


@pytest.mark.parametrize(
    ("file", "message"), [("there_is_none.safetensors", "model.weights = .* no such file"), ("weights.pth", "convert")]
)
def test_refuses_a_weights_path_that_is_missing_or_a_pickle(tmp_path, file, message):
    with pytest.raises(ExperimentError, match=message):
        Backbone("resnet10t", weights=tmp_path / file)


def test_checkpointed_gradients_take_each_batch_into_the_statistics_once():
    def after_one_step(checkpointing):
        torch.manual_seed(0)
        backbone = Backbone("resnet10t").train()
        if checkpointing:
            backbone.checkpoint_gradients()
        for seed in (1, 2):
            batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
            sum(m.square().mean() for m in backbone(batch)).backward()
        return backbone

    plain, checkpointed = after_one_step(False), after_one_step(True)
    for (name, expected), buffer in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        if "running" in name:
            assert torch.equal(buffer, expected), name
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad), name


def test_checkpointing_really_drops_activations():
    def saved_bytes(checkpointing):
        backbone = Backbone("resnet10t").train()
        if checkpointing:
            backbone.checkpoint_gradients()
        tensors: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.setdefault(t.data_ptr(), t), lambda t: t):
            backbone(torch.rand(2, 3, 128, 128))
        parameters = {parameter.data_ptr() for parameter in backbone.parameters()}
        return sum(tensor.nbytes for pointer, tensor in tensors.items() if pointer not in parameters)

    assert saved_bytes(True) < 0.8 * saved_bytes(False)  # the stem keeps its own


BACKBONES = ["resnet10t", "edgenext_xx_small", "efficientnet_b0", "pvt_v2_b0"]


def steps_of(backbone, count, steps=2):
    """Trains with `count` frozen stages and gives the names of what has a gradient."""
    backbone.freeze_stages(count)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(steps):
        optimizer.zero_grad()
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        loss = torch.stack([feature.square().mean() for feature in backbone(images)]).sum()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
    return {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", BACKBONES)
def test_each_stage_leads_from_one_map_to_the_next(name):
    """Changing a stage's weights changes its own map and none before."""
    torch.manual_seed(0)
    backbone = Backbone(name).eval()
    images = torch.rand(1, 3, 64, 64)
    before = backbone(images)
    members = [id(parameter) for stage in backbone._stages() for parameter in stage]
    assert sorted(members) == sorted(id(parameter) for parameter in backbone.parameters())
    for index, stage in enumerate(backbone._stages()):
        kept = [parameter.detach().clone() for parameter in stage]
        with torch.no_grad():
            for parameter in stage:
                parameter.mul_(1.5)
        equal = [torch.equal(ours, theirs) for ours, theirs in zip(backbone(images), before, strict=True)]
        assert equal == [True] * index + [False] * (4 - index)
        with torch.no_grad():
            for parameter, value in zip(stage, kept, strict=True):
                parameter.copy_(value)


@pytest.mark.parametrize(
    ("name", "count"),
    [*((name, count) for name in BACKBONES[:2] for count in range(5)), *((name, 2) for name in BACKBONES[2:])],
)
def test_frozen_stages_keep_every_bit_and_the_others_are_trained(name, count):
    torch.manual_seed(0)
    backbone = Backbone(name).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    backbone.freeze_stages(count)
    backbone.train()
    with_gradient = steps_of(backbone, count)
    changed = {key for key, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[key])}
    names = {id(parameter): key for key, parameter in backbone.named_parameters()}
    frozen = {key for key, parameter in backbone.named_parameters() if not parameter.requires_grad}
    backbone.freeze_stages(0)
    expected = {names[id(parameter)] for stage in backbone._stages()[:count] for parameter in stage}
    assert frozen == expected
    assert with_gradient == set(names.values()) - frozen
    assert with_gradient <= changed
    for key in changed - with_gradient:  # norm statistics, and those of trained norms alone
        assert key.rpartition(".")[0] + ".weight" in with_gradient, key
    assert any("running" in key for key in changed) == (count < 4 and any("running" in key for key in before))


def test_freezing_stages_drops_their_activations_and_leaves_the_maps_alone():
    backbone = Backbone("resnet10t").eval()
    images = torch.rand(1, 3, 64, 64)
    free = backbone(images)
    backbone.freeze_stages(2)
    frozen = backbone(images)
    assert [feature.requires_grad for feature in frozen] == [False, False, True, True]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(frozen, free, strict=True))


def test_freezing_stages_is_undone_and_changes_neither_mode_nor_random_stream_nor_statistics():
    backbone = Backbone("resnet10t").train()
    state = torch.get_rng_state()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    for count in (3, 1, 4, 2, 0):
        backbone.freeze_stages(count)
        assert backbone.training
        assert backbone.frozen_stages == count
    assert all(module.training for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    backbone.eval().freeze_stages(2)
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("count", [1, 3])
def test_checkpointed_gradients_reach_every_stage_that_is_trained(count):
    def gradients(checkpointing):
        torch.manual_seed(0)
        backbone = Backbone("edgenext_xx_small").train()
        if checkpointing:
            backbone.checkpoint_gradients()
        backbone.freeze_stages(count)
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        sum(feature.square().mean() for feature in backbone(images)).backward()
        return {name: parameter.grad for name, parameter in backbone.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    assert any(gradient is not None for gradient in plain.values())
    for name, gradient in plain.items():
        assert (gradient is None) == (checkpointed[name] is None), name
        assert gradient is None or torch.equal(gradient, checkpointed[name]), name
