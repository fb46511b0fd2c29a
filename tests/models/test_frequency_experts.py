"""The two experts of the spectrum against explicit transforms: of the whole image, and of 8×8 patches."""

import pytest
import torch
from torch import nn

from camox.models.experts import FrequencyExpert, PatchFrequencyExpert
from tests.models.probes import given_to, grating, make

# ---- the whole image


def filter_of(expert, x):
    """The filter part by itself: what the mixture is given beside the unfiltered features."""
    nn.init.dirac_(expert.enter.weight)
    nn.init.zeros_(expert.enter.bias)
    return given_to(expert.mix, expert, x).chunk(2, dim=1)[1]


@pytest.mark.parametrize("size", [(16, 16), (15, 22), (1, 1), (1, 7)])
def test_gains_of_one_are_the_identity(size):
    expert = make(FrequencyExpert)
    nn.init.ones_(expert.gains)
    x = torch.randn(2, 16, *size)
    assert torch.allclose(filter_of(expert, x), x, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (9, 14), (14, 9), (7, 7)])
def test_equals_an_explicit_complex_transform(size):
    expert = make(FrequencyExpert, 8)
    x = torch.randn(2, 8, *size)
    height, width = size
    half = expert._gain_map(height, width).detach()
    full = torch.empty(8, height, width)
    for row in range(height):
        for column in range(width):  # a real filter: opposite frequencies share their gain
            mirrored = column >= half.shape[-1]
            full[:, row, column] = half[:, -row % height, width - column] if mirrored else half[:, row, column]
    expected = torch.fft.ifft2(torch.fft.fft2(x.to(torch.complex128)) * full)
    assert expected.imag.abs().max() < 1e-5  # a real filter, whatever the library makes of one that is not
    assert torch.allclose(filter_of(expert, x), expected.real.float(), atol=1e-5)


def test_gain_maps_of_two_sizes_agree_on_common_frequencies():
    expert = make(FrequencyExpert)
    with torch.no_grad():
        small, large = expert._gain_map(8, 12), expert._gain_map(24, 36)
    rows = [0, 3, 6, 9, 12, 15, 18, 21]  # fftfreq(24)[3k] = fftfreq(8)[k]
    assert torch.allclose(large[:, rows, ::3], small, atol=1e-5)


def test_gain_map_is_continuous_across_the_turn_of_orientation():
    """0° and 180° are one orientation: no seam between bands there."""
    expert = make(FrequencyExpert)
    with torch.no_grad():
        gains = expert._gain_map(512, 512)
    assert (gains[:, 1, 100] - gains[:, -1, 100]).abs().max() < 0.1


def test_each_band_scales_its_own_frequencies_alone():
    expert = make(FrequencyExpert)
    nn.init.ones_(expert.gains)
    with torch.no_grad():
        expert.gains[:, 0] = 0.0  # radius 0: the mean, fading out to the next band
    x = grating(0.375)
    assert torch.allclose(filter_of(expert, x), x, atol=1e-4)
    assert filter_of(expert, torch.ones(1, 16, 32, 32)).abs().max() < 1e-5


@pytest.mark.parametrize(("band", "removed", "kept"), [(0, 0.0, torch.pi / 2), (2, torch.pi / 2, 0.0)])
def test_an_orientation_band_scales_its_own_orientation_alone(band, removed, kept):
    expert = make(FrequencyExpert)
    nn.init.ones_(expert.gains)
    with torch.no_grad():
        expert.gains[:, :, band] = 0.0
    across, along = grating(0.25, removed), grating(0.25, kept)
    assert filter_of(expert, across).abs().max() < 1e-4
    assert torch.allclose(filter_of(expert, along), along, atol=1e-4)


@pytest.mark.parametrize("column", [0, -1])
def test_opposite_frequencies_share_their_gain(column):
    """Both stand in the first column, and in the last of an even width: otherwise the filter would not be real."""
    with torch.no_grad():
        gains = make(FrequencyExpert)._gain_map(15, 8)[:, 1:, column]
    assert torch.allclose(gains, gains.flip(1), atol=1e-5)


def test_every_gain_is_used():
    expert = make(FrequencyExpert)
    expert._gain_map(32, 32).sum().backward()
    used = expert.gains.grad
    assert used is not None
    assert (used[:, 1:] > 0).all()
    assert (used[:, 0, 0] > 0).all()


def test_the_filter_is_linear_and_takes_phases_as_they_are():
    expert = make(FrequencyExpert)
    x, y = torch.randn(2, 2, 16, 12, 15).unbind()
    combined = 2 * filter_of(expert, x) - 3 * filter_of(expert, y)
    assert torch.allclose(filter_of(expert, 2 * x - 3 * y), combined, atol=1e-4)
    moved = filter_of(expert, x.roll((5, 2), (2, 3)))
    assert torch.allclose(moved, filter_of(expert, x).roll((5, 2), (2, 3)), atol=1e-5)


# ---- patches


def patch_filter(expert, x):
    """The filtered patches of x by themselves: twice the channels, as the filter is given them."""
    with torch.no_grad():
        return expert._filter(torch.cat([x, x], dim=1)).chunk(2, dim=1)[0]


@pytest.mark.parametrize("size", [(16, 16), (15, 22), (1, 1), (1, 9)])
def test_patch_gains_of_one_are_the_identity(size):
    expert = make(PatchFrequencyExpert)
    nn.init.ones_(expert.gains)
    x = torch.randn(2, 16, *size)
    assert torch.allclose(patch_filter(expert, x), x, atol=1e-5)


def test_patches_equal_an_explicit_complex_transform():
    expert = make(PatchFrequencyExpert, 8)
    x = torch.randn(2, 8, 16, 24)
    half = expert._symmetric_gains().detach()[:8, 0, :, 0]
    full = torch.cat([half, half[:, -torch.arange(8) % 8][:, :, [3, 2, 1]]], dim=2)  # gain(-f) = gain(f)
    filtered = patch_filter(expert, x)
    for top in (0, 8):
        for left in (0, 8, 16):
            patch = (..., slice(top, top + 8), slice(left, left + 8))
            expected = torch.fft.ifft2(torch.fft.fft2(x[patch].to(torch.complex128)) * full)
            assert expected.imag.abs().max() < 1e-6  # opposite frequencies share their gain
            assert torch.allclose(filtered[patch], expected.real.float(), atol=1e-5)


def test_each_patch_gain_scales_its_own_frequency_alone():
    expert = make(PatchFrequencyExpert)
    nn.init.ones_(expert.gains)
    with torch.no_grad():
        expert.gains[:, 0, 1] = 0.0  # one cycle in eight pixels, along rows
    assert patch_filter(expert, grating(1 / 8)).abs().max() < 1e-5
    for kept in (grating(2 / 8), grating(1 / 8, torch.pi / 2), torch.ones(1, 16, 32, 32)):
        assert torch.allclose(patch_filter(expert, kept), kept, atol=1e-5)


def test_patches_are_filtered_apart_and_continued_with_their_border():
    expert = make(PatchFrequencyExpert)
    x = torch.randn(1, 16, 16, 16)
    touched = x.clone()
    touched[..., 8, 8] += 20
    difference = (patch_filter(expert, x) - patch_filter(expert, touched)).abs().amax(dim=(0, 1))
    assert (difference[8:, 8:] > 1e-4).any()
    assert difference[:8].max() < 1e-5
    assert difference[:, :8].max() < 1e-5
    flat = patch_filter(expert, torch.ones(1, 16, 11, 13))  # padded with zeros, it would fade at two borders
    assert torch.allclose(flat, expert.gains[:16, 0, 0].detach().view(1, 16, 1, 1).expand_as(flat), atol=1e-5)


def test_the_gate_does_not_grow_with_its_input():
    """Otherwise the response would be the square of the input's scale, and overflow half precision."""
    expert = make(PatchFrequencyExpert)
    for module in (expert.enter, expert.local):
        nn.init.zeros_(module.bias)
    x = torch.randn(1, 16, 16, 16)
    small, large = (given_to(expert.mix, expert, image) for image in (x, 100 * x))
    assert torch.allclose(large, 100 * small, rtol=1e-3, atol=1e-3)
