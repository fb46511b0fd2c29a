"""Multiply-adds per pixel: against counts by hand, and what counting them leaves untouched."""

import math

import pytest
import torch

from camox.models.costs import expert_costs
from camox.models.experts import EXPERTS


@pytest.mark.parametrize("channels", [8, 32, 128])
def test_equal_to_a_count_by_hand(channels):
    square, pixels = channels**2, 32**2
    real_transform = 1.25 * math.log2(pixels)  # 2.5·n·log₂(n) operations, two to a multiply-add, per pixel
    heads = max(1, channels // 32)
    patch_transforms = 2 * (1.25 * 3 + 2.5 * 3 * 5 / 8)  # real along 8 columns, complex along 8 rows of 5 columns
    expected = {
        "texture": 4 * 9 * channels + 10 * square,
        "edge": 3 * 9 * channels + 10 * square,
        "contrast": 5 * (9 * channels + 9) + 10 * square,  # box means: one convolution, and one channel of ones
        "frequency": 2 * real_transform * channels + 10 * square,
        "attention": 3 * 9 * channels + 7.5 * square + 2 * square / heads,
        "semantic": (9 + 25 / 16) * channels + square / pixels + 9 * square,
        "patch_frequency": 2 * channels * (9 + patch_transforms) + 8 * square,
        "hybrid": 9 * channels + 2 * (9 * channels + 9) + 2 * square / heads + 4 * square / pixels + 10 * square,
    }
    assert expert_costs(EXPERTS, channels) == pytest.approx(expected)


def test_only_the_named_experts_in_their_order():
    assert list(expert_costs(["semantic", "edge"], 8)) == ["semantic", "edge"]


def test_leaves_the_random_state_and_gradients_alone():
    before = torch.get_rng_state()
    expert_costs(EXPERTS, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
