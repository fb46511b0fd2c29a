"""Region losses against naive formulas, and what a minimum and a gradient must be."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from camox.losses.segmentation import difficulty_weight, structure_loss, weighted_bce, weighted_iou_loss


def disc(size=48, radius=12, count=1):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((x - size // 2) ** 2 + (y - size // 2) ** 2 < radius**2).float()
    return inside.expand(count, 1, size, size).clone()


def certain(mask, confidence=30.0):
    return (2 * mask - 1) * confidence


@pytest.mark.parametrize("size", [(48, 48), (40, 65), (7, 5), (1, 1)])
def test_difficulty_equals_one_window_of_31(size):
    mask = (torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    naive = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    assert torch.allclose(difficulty_weight(mask), naive, atol=1e-5)


def test_difficulty_is_between_one_and_six_and_highest_at_the_boundary():
    mask = disc(96, 32)
    weight = difficulty_weight(mask)
    assert weight.min() >= 1
    assert weight.max() <= 6
    assert weight[0, 0, 48, 48] == pytest.approx(1, abs=1e-4)  # deep inside
    assert weight[0, 0, 48, 48 + 31] > 2.5


@pytest.mark.parametrize(("stride", "cells"), [(1, 31), (4, 9), (8, 5), (16, 3), (32, 3)])
def test_coarse_difficulty_keeps_the_window_near_31_pixels_but_three_cells_wide(stride, cells):
    dot = torch.zeros(1, 1, 41, 41)
    dot[..., 20, 20] = 1
    reached = (difficulty_weight(dot, stride) > 1)[0, 0, 20]
    assert reached.sum() == cells


def test_structure_loss_equals_the_plain_formula():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 1, 40, 40), (torch.rand(2, 1, 40, 40) > 0.7).float()
    weight = difficulty_weight(mask)
    p = logits.sigmoid()
    for image in range(2):
        w, m, q = weight[image], mask[image], p[image]
        cross_entropy = -(w * (m * q.log() + (1 - m) * (1 - q).log())).sum() / w.sum()
        iou = 1 - ((w * q * m).sum() + 1) / ((w * (q + m)).sum() - (w * q * m).sum() + 1)
        assert structure_loss(logits, mask, weight)[image].item() == pytest.approx(
            (cross_entropy + iou).item(), abs=1e-5
        )


def test_an_error_at_the_boundary_costs_more_than_one_far_from_it():
    """With the cross-entropy averaged before the weights apply, both would cost the same there."""
    mask = disc(96, 20)
    weight = difficulty_weight(mask)
    near, far = certain(mask), certain(mask)
    near[..., 48, 48 + 21] *= -1
    far[..., 3, 3] *= -1
    assert weighted_bce(near, mask, weight) > 1.5 * weighted_bce(far, mask, weight)
    assert weighted_iou_loss(near, mask, weight) > 1.5 * weighted_iou_loss(far, mask, weight)


@pytest.mark.parametrize("mask", [disc(), torch.zeros(1, 1, 48, 48), torch.ones(1, 1, 48, 48)])
def test_perfect_logits_cost_nothing_and_anything_else_costs_more(mask):
    weight = difficulty_weight(mask)
    assert structure_loss(certain(mask), mask, weight).item() == pytest.approx(0, abs=1e-4)
    torch.manual_seed(0)
    for _ in range(5):
        flipped = certain(mask) * torch.where(torch.rand_like(mask) < 0.02, -1, 1)
        assert structure_loss(flipped, mask, weight) > 0.1


def test_the_loss_falls_all_the_way_to_the_perfect_mask():
    mask = disc()
    weight = difficulty_weight(mask)
    losses = [structure_loss(certain(mask, c), mask, weight).item() for c in (-4, -1, 0, 1, 4, 8)]
    assert losses == sorted(losses, reverse=True)


def test_an_image_without_an_object_teaches_to_predict_less():
    mask = torch.zeros(1, 1, 32, 32)
    logits = torch.full_like(mask, -2.0).requires_grad_()
    weight = difficulty_weight(mask)
    for loss in (weighted_bce, weighted_iou_loss):
        (gradient,) = torch.autograd.grad(loss(logits, mask, weight).sum(), logits)
        assert (gradient > 0).all()
        assert loss(logits - 1, mask, weight) < loss(logits, mask, weight)


def test_each_image_has_its_own_loss():
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 1, 32, 32), disc(32, 8, 3)
    weight = difficulty_weight(mask)
    together = structure_loss(logits, mask, weight)
    assert together.shape == (3,)
    for image in range(3):
        one = slice(image, image + 1)
        assert torch.allclose(structure_loss(logits[one], mask[one], weight[one]), together[one], atol=1e-6)


def test_cross_entropy_of_a_soft_mask_is_least_at_the_mask():
    soft = F.avg_pool2d(disc(64, 20), 8)
    weight = difficulty_weight(soft, 8)
    best = soft.clamp(1e-4, 1 - 1e-4).logit()
    for shift in (-0.5, 0.5):
        assert weighted_bce(best, soft, weight) < weighted_bce(best + shift, soft, weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [disc(32, 8), torch.zeros(1, 1, 32, 32)])
def test_half_precision_logits_of_large_magnitude_are_computed_in_fp32(dtype, mask):
    generator = torch.Generator().manual_seed(0)
    logits: Any = (torch.randn(1, 1, 32, 32, generator=generator) * 1e4).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = structure_loss(logits, mask, difficulty_weight(mask))
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    small = (logits.detach().float() / 1e4).to(dtype)
    weight = difficulty_weight(mask)
    assert torch.equal(structure_loss(small, mask, weight), structure_loss(small.float(), mask, weight))
    loss.sum().backward()
    assert logits.grad.isfinite().all()
