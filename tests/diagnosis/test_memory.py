"""Bytes of tensors, counted."""

import torch
from torch import nn

from camox.diagnosis.memory import LiveBytes, saved_bytes


def test_a_linear_layer_saves_its_input():
    layer, x = nn.Linear(7, 11), torch.randn(5, 7)
    own = list(layer.parameters())
    assert saved_bytes(lambda: layer(x), own) == 5 * 7 * 4
    # To give the input a gradient, the weight is kept too; it belongs to the model.
    x.requires_grad_()
    assert saved_bytes(lambda: layer(x), own) == 5 * 7 * 4
    assert saved_bytes(lambda: layer(x)) == 5 * 7 * 4 + 11 * 7 * 4


def test_views_of_one_storage_are_saved_once_and_whole():
    x = torch.randn(4, 6, requires_grad=True)
    assert saved_bytes(lambda: x[:2].square() + x[2:].square()) == 4 * 6 * 4


def test_results_saved_along_a_chain_add_up():
    x = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: x.exp().sigmoid()) == 2 * 10 * 4  # both keep their result
    assert saved_bytes(lambda: x + 1) == 0
    with torch.no_grad():
        assert saved_bytes(lambda: x.exp()) == 0


def test_saved_bytes_leaves_nothing_behind():
    x = torch.randn(10, requires_grad=True)
    freed = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.token = Token()
            result = x.exp()
            ctx.save_for_backward(result)
            return result

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError

    class Token:
        def __del__(self):
            freed.append(True)

    saved_bytes(lambda: Watched.apply(x))
    assert freed


def test_live_bytes_are_those_not_yet_freed():
    x = torch.randn(1000)
    with LiveBytes() as live:
        doubled = x * 2
        view = doubled[:10]
        assert live.now == 4000
        tripled = x * 3
        del doubled
        assert live.now == 8000  # the view holds the whole storage
        del view
        assert live.now == 4000
        tripled.add_(1)
        assert live.now == 4000
    assert live.peak == 8000
