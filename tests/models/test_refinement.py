"""Reverse attention, boundary uncertainty and refinement."""

from typing import Any

import pytest
import torch
from torch import nn

from camox.models.refinement import (
    LOG_VARIANCE_LIMIT,
    BoundaryUncertainty,
    Refinement,
    ReverseAttention,
    relative_deviation,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_reverse_attention_looks_where_nothing_was_found():
    module = ReverseAttention(16)
    caught = []
    module.look.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    features = torch.randn(1, 16, 6, 6)
    found = torch.full((1, 1, 6, 6), -40.0)
    found[..., :3] = 40.0
    module(features, found)
    assert caught[0][..., :3].abs().max() < 1e-6
    assert torch.allclose(caught[0][..., 3:], features[..., 3:])


def test_reverse_attention_does_not_teach_the_coarse_prediction():
    coarse = torch.randn(1, 1, 6, 6, requires_grad=True)
    features = torch.randn(1, 16, 6, 6, requires_grad=True)
    ReverseAttention(16)(features, coarse).sum().backward()
    assert coarse.grad is None
    assert features.grad is not None


@pytest.mark.parametrize("bias", [-1e4, 0.0, 1e4])
def test_log_variance_is_limited_smoothly_in_fp32(bias):
    module: Any = BoundaryUncertainty(16)
    nn.init.constant_(module.predict.bias, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, log_variance = module(torch.randn(2, 16, 5, 5))
    assert mean.shape == log_variance.shape == (2, 1, 5, 5)
    assert log_variance.dtype == torch.float32
    assert log_variance.abs().max() <= LOG_VARIANCE_LIMIT


def test_a_refinement_step_is_a_residual():
    module: Any = Refinement(16)
    nn.init.zeros_(module.leave.weight)
    nn.init.zeros_(module.leave.bias)
    logits = 20 * torch.randn(2, 1, 8, 8)
    refined = module(torch.randn(2, 16, 8, 8), logits, torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    assert torch.equal(refined, logits)


def test_a_small_residual_survives_half_precision():
    module: Any = Refinement(16)
    nn.init.zeros_(module.leave.weight)
    nn.init.constant_(module.leave.bias, 0.01)
    logits = torch.full((1, 1, 4, 4), 8.0, dtype=torch.bfloat16)
    clues = torch.randn(1, 16, 4, 4), logits, torch.randn(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = module(*clues)
    assert torch.allclose(refined, torch.tensor(8.01), atol=1e-3)


@pytest.mark.parametrize("clue", range(4))
def test_a_refinement_step_reads_every_clue(clue):
    module: Any = Refinement(16)
    nn.init.normal_(module.leave.weight)
    clues = [torch.randn(1, channels, 8, 8) for channels in (16, 1, 1, 1)]
    changed = list(clues)
    changed[clue] = changed[clue] + 1
    before, after = (module(*c) - c[1] for c in (clues, changed))
    assert (before - after).abs().max() > 1e-3


def test_relative_deviation_is_per_image_and_at_most_one():
    log_variance = torch.randn(3, 1, 6, 6) * 3
    together = relative_deviation(log_variance, 6, 6)
    assert torch.allclose(together.amax(dim=(1, 2, 3)), torch.ones(3))
    assert together.min() > 0
    assert torch.equal(together[:1], relative_deviation(log_variance[:1], 6, 6))
    assert torch.allclose(together, relative_deviation(log_variance - 4, 6, 6), atol=1e-6)


def test_relative_deviation_does_not_look_at_the_padding():
    log_variance = torch.randn(2, 1, 6, 6)
    padded = log_variance.clone()
    padded[..., 4:, :] = padded[..., :, 5:] = 6.0
    expected = relative_deviation(log_variance[..., :4, :5], 4, 5)
    assert torch.equal(relative_deviation(padded, 4, 5)[..., :4, :5], expected)
    assert relative_deviation(padded, 4, 5).max() == 1
