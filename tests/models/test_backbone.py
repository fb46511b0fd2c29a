"""The feature extractor: shapes, whose weights it has, and every mistake a user can make with it."""

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from camox.errors import ExperimentError
from camox.models.backbone import STRIDES, Backbone


@pytest.mark.parametrize("name", ["resnet10t", "edgenext_xx_small", "pvt_v2_b0"])
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
        ("resnet10x", "unknown backbone .resnet10x.: did you mean"),
        ("vit_tiny_patch16_224", r"strides .*choose a pyramid"),
        ("swin_tiny_patch4_window7_224", r"images of .* only.*choose"),
        ("qqqq", "see timm.list_models"),
    ],
)
def test_refuses_a_backbone_it_cannot_use_and_says_which_it_can(name, message):
    with pytest.raises(ExperimentError, match=message):
        Backbone(name)


def test_pretrained_without_a_network_names_the_remedy():
    with pytest.raises(ExperimentError, match=r"model\.weights"):
        Backbone("resnet10t", pretrained=True)


@pytest.mark.parametrize(
    ("file", "message"), [("there_is_none.safetensors", "no backbone weights"), ("weights.pth", "convert")]
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
