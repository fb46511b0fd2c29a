"""Search & identification and the decoder."""

from typing import Any

import pytest
import torch
from torch import nn

from camox.models.decoder import Decoder, SearchIdentification


def test_decoder_gives_the_features_of_each_skip():
    torch.manual_seed(0)
    decoder = Decoder(16)
    skips = [torch.randn(2, 16, size, 2 * size) for size in (8, 4, 2)]
    decoded = decoder(torch.randn(2, 16, 1, 2), skips)
    assert [d.shape for d in decoded] == [skip.shape for skip in reversed(skips)]


@pytest.mark.parametrize("touched", range(4))
def test_the_finest_features_depend_on_every_scale(touched):
    torch.manual_seed(0)
    decoder = Decoder(16)
    maps = [torch.randn(1, 16, size, size) for size in (8, 4, 2, 1)]
    maps[touched].requires_grad_()
    decoder(maps[-1], maps[:-1])[-1].square().sum().backward()
    assert maps[touched].grad.abs().sum() > 0


def test_search_never_erases_features():
    """With the search certain that nothing is there, half of each feature still comes through."""
    torch.manual_seed(0)
    module: Any = SearchIdentification(16)
    caught = []
    module.identify.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    x = torch.randn(2, 16, 4, 4)
    for bias, kept in ((-1e4, 0.5), (1e4, 1.0)):
        nn.init.zeros_(module.search[-1].weight)
        nn.init.constant_(module.search[-1].bias, bias)
        module(x)
        assert torch.allclose(caught[-1], kept * x)


def test_search_logits_are_not_squashed():
    torch.manual_seed(0)
    module: Any = SearchIdentification(16)
    nn.init.constant_(module.search[-1].bias, 30.0)
    features, search = module(torch.randn(2, 16, 4, 4))
    assert features.shape == (2, 16, 4, 4)
    assert search.shape == (2, 1, 4, 4)
    assert search.min() > 20


def test_search_gradient_comes_through_the_gate_as_well():
    torch.manual_seed(0)
    module: Any = SearchIdentification(16)
    module(torch.randn(1, 16, 4, 4))[0].square().sum().backward()
    assert module.search[-1].weight.grad.abs().sum() > 0
