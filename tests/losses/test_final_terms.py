"""What every term for the final logits must be: its formula and gradient, its minimum, its behaviour on hard input."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from camox.losses.composite import FINAL_TERMS
from camox.losses.segmentation import (
    balanced_bce,
    dice_loss,
    difficulty_weight,
    focal_loss,
    iou_loss,
    structure_legacy_loss,
    tversky_loss,
    weighted_iou_loss,
)

Array = np.ndarray
LOSSES: dict[str, Callable[..., torch.Tensor]] = {**FINAL_TERMS, "foreground": balanced_bce}


def reference_cross_entropy(z: Array, m: Array) -> Array:
    return np.maximum(z, 0) - z * m + np.log1p(np.exp(-np.abs(z)))


def reference_weight(m: Array) -> Array:
    """A window of 31×31 around each pixel, zeros outside of the image."""
    padded = np.pad(m, 15)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (31, 31))
    return 1 + 5 * np.abs(windows.mean(axis=(2, 3)) - m)


def reference_iou(p: Array, m: Array, w: Array | float = 1.0) -> float:
    return 1 - ((w * p * m).sum() + 1) / ((w * (p + m - p * m)).sum() + 1)


def reference(name: str, z: Array, m: Array) -> float:
    """The loss of one image `[H, W]`, in float64 and as plainly as it can be said."""
    p, entropy = 1 / (1 + np.exp(-z)), reference_cross_entropy(z, m)
    match name:
        case "structure":
            w = reference_weight(m)
            return (w * entropy).sum() / w.sum() + reference_iou(p, m, w)
        case "structure_legacy":
            return entropy.mean() + reference_iou(p, m, reference_weight(m))
        case "bce":
            return entropy.mean()
        case "iou":
            return reference_iou(p, m)
        case "dice":
            return 1 - (2 * (p * m).sum() + 2) / (p.sum() + m.sum() + 2)
        case "tversky":
            right = (p * m).sum()
            return 1 - (right + 1) / (right + 0.3 * (p * (1 - m)).sum() + 0.7 * ((1 - p) * m).sum() + 1)
        case "focal":
            right = np.where(m > 0.5, p, 1 - p)
            return (np.where(m > 0.5, 0.25, 0.75) * (1 - right) ** 2 * entropy).mean()
        case "frequency":
            return np.abs(np.fft.fft2(p - m, norm="ortho")).mean()
        case "foreground":
            parts = [entropy[m == value].mean() for value in (0, 1) if (m == value).any()]
            return float(np.mean(parts))
    raise AssertionError(name)


def disc(size: int = 32, radius: float = 8, count: int = 1) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((x - 0.55 * size) ** 2 + (y - 0.45 * size) ** 2 < radius**2).float()
    return inside.expand(count, 1, size, size).clone()


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


EMPTY, FULL = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_equals_its_formula(name, seed, height, width, share):
    logits = noise(1, 1, height, width, seed=seed, scale=3)
    mask = (noise(1, 1, height, width, seed=seed + 1).sigmoid() < share).float()
    expected = reference(name, logits[0, 0].double().numpy(), mask[0, 0].double().numpy())
    assert LOSSES[name](logits, mask).item() == pytest.approx(expected, abs=2e-5, rel=2e-5)


@every_loss
@pytest.mark.parametrize("mask", [disc(9, 3), torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 9, 9)])
def test_its_gradient_is_the_slope_of_its_formula(name, mask):
    logits: Any = noise(1, 1, 9, 9).requires_grad_()
    LOSSES[name](logits, mask).sum().backward()
    z, m = logits.detach()[0, 0].double().numpy(), mask[0, 0].double().numpy()
    slopes = np.zeros_like(z)
    for position in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[position] = 1e-5
        slopes[position] = (reference(name, z + step, m) - reference(name, z - step, m)) / 2e-5
    np.testing.assert_allclose(logits.grad[0, 0].numpy(), slopes, atol=1e-5, rtol=1e-3)


@every_loss
@pytest.mark.parametrize("mask", [disc(), EMPTY, FULL, disc(17, 5)])
def test_a_perfect_mask_costs_nothing_and_every_error_costs(name, mask):
    perfect = (2 * mask - 1) * 30
    least = LOSSES[name](perfect, mask).item()
    assert least == pytest.approx(0, abs=1e-5)
    for position in ((0, 0), (8, 8), (3, 12)):
        wrong = perfect.clone()
        wrong[..., position[0], position[1]] *= -1
        assert LOSSES[name](wrong, mask).item() > least + 1e-3


@every_loss
@pytest.mark.parametrize("mask", [disc(), EMPTY, FULL])
def test_it_falls_all_the_way_from_wrong_to_right(name, mask):
    losses = [LOSSES[name]((2 * mask - 1) * c, mask).item() for c in (-6, -3, -1, 0, 1, 3, 6, 10)]
    assert all(before > after for before, after in itertools.pairwise(losses)), losses


@every_loss
def test_an_image_without_an_object_teaches_to_predict_less(name):
    logits: Any = torch.full((1, 1, 16, 16), -2.0).requires_grad_()
    LOSSES[name](logits, EMPTY).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.sum() > 0


@every_loss
def test_each_image_has_its_own_loss(name):
    logits, mask = noise(3, 1, 32, 32), torch.cat([disc(), EMPTY.repeat(1, 1, 2, 2), disc(radius=3)])
    together = LOSSES[name](logits, mask)
    assert together.shape == (3,)
    for image in range(3):
        one = slice(image, image + 1)
        assert torch.allclose(LOSSES[name](logits[one], mask[one]), together[one], atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [disc(), torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)])
def test_half_precision_logits_are_computed_in_fp32(name, dtype, mask):
    logits: Any = noise(1, 1, 32, 32, scale=1e4).to(dtype).requires_grad_()
    loss = LOSSES[name](logits, mask)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    small = noise(1, 1, 32, 32).to(dtype)
    assert torch.equal(LOSSES[name](small, mask), LOSSES[name](small.float(), mask))
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_the_legacy_structure_loss_is_that_of_the_published_code():
    """Written out as it stands there, with the flag that any string switches on."""
    logits, mask = noise(2, 1, 40, 40), disc(40, 9, 2)
    weight = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cross_entropy: Any = F.binary_cross_entropy_with_logits(logits, mask, reduce="none")  # type: ignore[arg-type]
    weighted = (weight * cross_entropy).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
    p = logits.sigmoid()
    inter, union = ((p * mask) * weight).sum(dim=(2, 3)), ((p + mask) * weight).sum(dim=(2, 3))
    published = (weighted + 1 - (inter + 1) / (union - inter + 1)).mean()
    assert torch.allclose(structure_legacy_loss(logits, mask).mean(), published, atol=1e-6)


def test_the_legacy_cross_entropy_does_not_look_at_boundaries():
    mask = disc(96, 20)
    near, far = (2 * mask - 1) * 30, (2 * mask - 1) * 30
    near[..., 43, 53 + 21] *= -1
    far[..., 3, 3] *= -1
    weight = difficulty_weight(mask)
    at_near, at_far = (structure_legacy_loss(z, mask) - weighted_iou_loss(z, mask, weight) for z in (near, far))
    assert torch.allclose(at_near, at_far, atol=1e-5)
    assert LOSSES["structure"](near, mask) > 1.5 * LOSSES["structure"](far, mask)


def test_focal_loss_is_the_published_one():
    logits, mask = noise(2, 1, 20, 20, scale=4), disc(20, 6, 2)
    theirs = sigmoid_focal_loss(logits, mask, alpha=0.25, gamma=2, reduction="none").mean(dim=(1, 2, 3))
    assert torch.allclose(focal_loss(logits, mask), theirs, atol=1e-6)


@given(st.integers(0, 2**31))
def test_focal_loss_without_focus_is_half_the_cross_entropy(seed):
    logits, mask = noise(1, 1, 12, 12, seed=seed), disc(12, 4)
    assert torch.allclose(2 * focal_loss(logits, mask, alpha=0.5, gamma=0), LOSSES["bce"](logits, mask), atol=1e-6)


@given(st.integers(0, 2**31))
def test_iou_and_dice_say_the_same_in_two_scales(seed):
    """But for the constant that keeps them defined: `iou = 2·dice / (1 + dice)` of losses."""
    logits, mask = noise(1, 1, 40, 40, seed=seed, scale=2), disc(40, 14)
    dice, iou = dice_loss(logits, mask), iou_loss(logits, mask)
    assert torch.allclose(iou, 2 * dice / (1 + dice), atol=2e-3)
    assert torch.allclose(iou, weighted_iou_loss(logits, mask, torch.ones_like(mask)), atol=1e-6)


def test_tversky_loss_minds_a_missed_pixel_more_than_a_false_alarm():
    mask = disc(32, 8)
    missed, alarm = (2 * mask - 1) * 30, (2 * mask - 1) * 30
    missed[..., 14, 12:22] = -30
    alarm[..., 30, 12:22] = 30
    assert tversky_loss(missed, mask) > 1.5 * tversky_loss(alarm, mask)


@pytest.mark.parametrize("radius", [1.5, 4, 12])
def test_balanced_cross_entropy_does_not_depend_on_how_small_the_object_is(radius):
    mask = disc(64, radius)
    nothing_found = torch.full_like(mask, -8.0)
    assert balanced_bce(nothing_found, mask).item() == pytest.approx(4, abs=1e-2)
    assert LOSSES["bce"](nothing_found, mask).item() < 1


def test_balanced_cross_entropy_reads_soft_masks():
    soft = F.avg_pool2d(disc(32, 8), 4)
    assert ((soft > 0) & (soft < 1)).any()
    z = noise(1, 1, 8, 8)
    entropy = [F.binary_cross_entropy_with_logits(z, torch.full_like(z, m), reduction="none") for m in (1.0, 0.0)]
    expected = ((soft * entropy[0]).sum() / soft.sum() + ((1 - soft) * entropy[1]).sum() / (1 - soft).sum()) / 2
    assert torch.allclose(balanced_bce(z, soft), expected, atol=1e-6)
