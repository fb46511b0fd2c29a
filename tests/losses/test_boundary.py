"""The boundary band, its loss, and the uncertainty's score."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camox.losses.boundary import boundary_band, boundary_loss, uncertainty_loss


def square(size=16, low=5, high=11):
    mask = torch.zeros(1, 1, size, size)
    mask[..., low:high, low:high] = 1
    return mask


def test_the_band_is_one_pixel_inside_and_one_outside():
    band = boundary_band(square())[0, 0]
    expected = torch.zeros(16, 16)
    expected[4:12, 4:12] = 1
    expected[6:10, 6:10] = 0
    assert torch.equal(band, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 0.95))
def test_a_pixel_is_in_the_band_where_its_neighbourhood_holds_both(seed, height, width, share):
    mask = (torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed)) < share).float()
    band = boundary_band(mask)
    for y in range(height):
        for x in range(width):
            around = mask[0, 0, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            assert band[0, 0, y, x].item() == float(around.min() != around.max())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 40), st.integers(3, 40), st.floats(0.5, 4))
def test_the_band_is_opencvs_morphological_gradient(seed, height, width, smoothness):
    """What edge maps that come with datasets are made by: none has to be read."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    mask = (cv2.GaussianBlur(noise, (0, 0), smoothness) > 0).astype(np.uint8)
    expected = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    assert np.array_equal(boundary_band(torch.from_numpy(mask)[None, None])[0, 0].numpy(), expected)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_the_frame_of_the_image_is_no_boundary(fill):
    assert boundary_band(torch.full((1, 1, 8, 8), fill)).sum() == 0


def test_object_and_background_have_the_same_boundary():
    mask = square(low=0)
    assert torch.equal(boundary_band(mask), boundary_band(1 - mask))


def test_a_perfect_boundary_costs_nothing_and_every_error_costs():
    band = boundary_band(square())
    perfect = (2 * band - 1) * 30
    assert boundary_loss(perfect, band).item() == pytest.approx(0, abs=1e-4)
    for y, x in ((4, 4), (0, 0), (8, 8), (5, 7)):  # on the band, on the frame, inside, on the band
        wrong = perfect.clone()
        wrong[..., y, x] *= -1
        assert boundary_loss(wrong, band) > 0.1


def test_predicting_no_boundary_at_all_is_not_nearly_free():
    band = boundary_band(square(64, 20, 40))
    nothing = torch.full_like(band, -6.0)
    assert boundary_loss(nothing, band) > 1


def test_every_pixel_pulls_towards_its_target():
    band = boundary_band(square())
    logits: Any = torch.zeros_like(band).requires_grad_()
    boundary_loss(logits, band).sum().backward()
    assert (logits.grad[band == 1] < 0).all()
    assert (logits.grad[band == 0] > 0).all()


def test_without_a_boundary_predicting_less_lowers_the_loss():
    band = torch.zeros(1, 1, 16, 16)
    logits: Any = torch.full_like(band, -2.0).requires_grad_()
    boundary_loss(logits, band).sum().backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("error", [0.05, 0.2, 0.5])
def test_the_uncertainty_is_best_stated_as_the_expected_squared_error(error):
    """A proper score: scanned over what may be stated, the least is at the truth."""
    band = (torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    probability = torch.full_like(band, error)
    logits = probability.logit()
    expected = (probability - band).square().mean().log().item()
    stated = torch.linspace(-6.9, 6.9, 2000)
    losses = torch.stack([uncertainty_loss(torch.full_like(band, v), logits, band)[0] for v in stated])
    assert stated[losses.argmin()].item() == pytest.approx(expected, abs=0.02)
    assert losses.min() >= 0


def test_the_uncertainty_does_not_teach_the_boundary():
    logits = torch.randn(1, 1, 8, 8, requires_grad=True)
    log_variance: Any = torch.zeros(1, 1, 8, 8, requires_grad=True)
    uncertainty_loss(log_variance, logits, square(8, 2, 5)).sum().backward()
    assert logits.grad is None
    assert log_variance.grad.abs().sum() > 0


def test_larger_errors_raise_the_stated_variance():
    log_variance: Any = torch.zeros(1, 1, 8, 8, requires_grad=True)
    band = torch.zeros(1, 1, 8, 8)
    logits = torch.full_like(band, -20.0)
    logits[..., 4:] = 20.0  # wrong there
    uncertainty_loss(log_variance - 3, logits, band).sum().backward()
    assert (log_variance.grad[..., 4:] < 0).all()
    assert (log_variance.grad[..., :4] > 0).all()


@pytest.mark.parametrize("v", [-7.0, 7.0])
@pytest.mark.parametrize("right", [True, False])
def test_the_uncertainty_is_at_least_zero_at_the_ends_of_its_range(v, right):
    band = square()
    logits = (2 * band - 1) * (30 if right else -30)
    assert uncertainty_loss(torch.full_like(band, v), logits, band) >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    band = boundary_band(square())
    generator = torch.Generator().manual_seed(0)
    logits: Any = (torch.randn(1, 1, 16, 16, generator=generator) * 1e4).to(dtype).requires_grad_()
    log_variance: Any = torch.full((1, 1, 16, 16), -7.0, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        losses = torch.cat([boundary_loss(logits, band), uncertainty_loss(log_variance, logits, band)])
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    small = (logits.detach().float() / 1e4).to(dtype)
    assert torch.equal(boundary_loss(small, band), boundary_loss(small.float(), band))
    losses.sum().backward()
    assert logits.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()


def test_each_image_has_its_own_losses():
    torch.manual_seed(0)
    band = torch.cat([boundary_band(square()), torch.zeros(1, 1, 16, 16)])
    logits, log_variance = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    for image in range(2):
        one = slice(image, image + 1)
        assert torch.allclose(boundary_loss(logits, band)[one], boundary_loss(logits[one], band[one]))
        together = uncertainty_loss(log_variance, logits, band)[one]
        assert torch.allclose(together, uncertainty_loss(log_variance[one], logits[one], band[one]))
