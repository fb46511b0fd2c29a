"""The distance of spectra: bounded, blind to shifts, and aware of the mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camox.losses.frequency import frequency_loss


def random_mask(height: int, width: int, seed: int, share: float = 0.3) -> torch.Tensor:
    return (torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed)) < share).float()


@given(st.integers(0, 2**31), st.integers(1, 33), st.integers(1, 33))
def test_it_is_at_most_the_root_mean_squared_error(seed, height, width):
    mask = random_mask(height, width, seed)
    logits = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed + 1)) * 5
    error = (logits.sigmoid() - mask).square().mean().sqrt().item()
    assert 0 <= frequency_loss(logits, mask).item() <= error + 1e-6


def test_the_bound_is_reached_by_the_error_of_a_single_pixel():
    """A single pixel has a flat spectrum."""
    mask = torch.zeros(1, 1, 16, 24)
    logits = torch.full_like(mask, -30.0)
    logits[..., 5, 7] = 30
    assert frequency_loss(logits, mask).item() == pytest.approx((1 / (16 * 24)) ** 0.5, rel=1e-4)


@given(st.integers(0, 15), st.integers(0, 22))
def test_where_an_error_lies_does_not_matter(down, right):
    mask, logits = random_mask(16, 23, 0), torch.randn(1, 1, 16, 23, generator=torch.Generator().manual_seed(1))
    moved = frequency_loss(logits.roll((down, right), (2, 3)), mask.roll((down, right), (2, 3)))
    assert torch.allclose(moved, frequency_loss(logits, mask), atol=1e-6)


@pytest.mark.parametrize("size", [16, 17, 64])
def test_an_error_of_the_mean_alone_is_seen_in_one_frequency(size):
    mask = torch.zeros(1, 1, size, size)
    logits = torch.full_like(mask, 0.25).logit()
    assert frequency_loss(logits, mask).item() == pytest.approx(0.25 / size, rel=1e-4)


def test_an_error_does_not_vanish_in_a_large_image():
    """Divided by the area without an orthonormal transform, or with it, a texture of errors must cost the same."""
    losses = []
    for size in (32, 256):
        mask = torch.zeros(1, 1, size, size)
        losses.append(frequency_loss(torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)), mask).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@pytest.mark.parametrize("empty", [False, True])
def test_a_perfect_map_has_a_gradient_of_zero(empty):
    mask = random_mask(12, 12, 0, share=0.0 if empty else 0.5)
    logits = ((2 * mask - 1) * 200).requires_grad_()
    (gradient,) = torch.autograd.grad(frequency_loss(logits, mask).sum(), logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))
