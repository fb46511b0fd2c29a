"""Numbers of objects against slow or exact counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from camox.data.audit.statistics import colour_contrast, count_objects, heat_map, measure, summarise
from tests.data.audit.traps import photograph


def square(height, width, top, left, side):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


@settings(max_examples=60)
@given(height=st.integers(32, 200), width=st.integers(32, 200), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_numbers_of_any_mask(height, width, seed, share):
    noise = np.random.default_rng(seed).random((height, width))
    mask = (ndimage.gaussian_filter(noise, 3) > np.quantile(ndimage.gaussian_filter(noise, 3), share)).astype(np.uint8)
    found = measure(photograph(seed % 7, height, width), mask)
    assert (found.width, found.height) == (width, height)
    assert found.area == pytest.approx(mask.mean())
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    assert found.objects == (np.bincount(parts.ravel())[1:] >= 1e-4 * mask.size).sum()
    assert found.heat.mean() == pytest.approx(mask.mean(), abs=1e-4)
    if mask.any():
        rows, columns = np.nonzero(mask)
        assert found.centre == pytest.approx((columns.mean() / width, rows.mean() / height))
    else:
        assert found.centre is None
    assert (found.contrast is None) == (mask.mean() in (0, 1))
    ring = np.ones_like(mask, bool)
    ring[1:-1, 1:-1] = False
    assert 0 <= found.border <= 1
    assert (found.border > 0) == mask[ring].any()


def test_objects_of_large_masks_are_counted_without_specks():
    mask = square(1500, 2000, 100, 100, 300) | square(1500, 2000, 800, 1200, 40)
    mask[1400, 50] = 1
    assert count_objects(mask) == 2


@pytest.mark.parametrize(("inside", "outside", "expected"), [(255, 0, 100.0), (119, 119, 0.0)])
def test_contrast_of_greys_is_their_difference_in_lightness(inside, outside, expected):
    mask = square(400, 600, 150, 200, 120)
    image = np.where(mask[..., None] > 0, inside, outside).astype(np.uint8).repeat(3, axis=2)
    # Shrinking mixes the colours along the edge.
    assert colour_contrast(image, mask) == pytest.approx(expected, abs=3)


def test_contrast_of_red_in_green_is_their_distance_in_lab():
    mask = square(256, 256, 60, 70, 120)  # not shrunk, so that colours stay pure
    image = np.where(mask[..., None] > 0, [255, 0, 0], [0, 255, 0]).astype(np.uint8)
    red, green = np.array([53.24, 80.09, 67.20]), np.array([87.73, -86.18, 83.18])  # of sRGB in L*a*b* under D65
    assert colour_contrast(image, mask) == pytest.approx(np.linalg.norm(red - green), abs=0.3)


def test_contrast_is_that_of_the_surroundings_not_of_the_far_sky():
    mask = square(300, 300, 200, 130, 40)
    image = np.full((300, 300, 3), 90, np.uint8)
    image[:100] = 250
    assert colour_contrast(image, mask) < 0.5


def test_a_line_thinner_than_a_pixel_when_shrunk_still_has_a_contrast():
    mask = np.zeros((2000, 2000), np.uint8)
    mask[500, 300:900] = 1
    assert colour_contrast(photograph(1, 2000, 2000), mask) is not None


def test_a_summary_leaves_images_without_object_out_of_the_areas():
    image = photograph(0, 100, 100)
    masks = [square(100, 100, 10, 10, 20), square(100, 100, 10, 10, 40), np.zeros((100, 100), np.uint8)]
    numbers = summarise([measure(image, mask) for mask in masks])
    assert (numbers["images"], numbers["empty"]) == (3, 1)
    assert numbers["area"]["min"] == pytest.approx(0.04)
    assert numbers["area"]["median"] == pytest.approx(0.1)
    assert numbers["width"]["max"] == 100


def test_nothing_measured_has_no_numbers():
    numbers = summarise([])
    assert numbers["images"] == 0
    assert numbers["area"] is None
    assert heat_map([]).shape == (32, 32)


def test_the_map_of_places_is_the_mean_of_masks():
    image = photograph(0, 64, 64)
    left, all_of_it = np.zeros((64, 64), np.uint8), np.ones((64, 64), np.uint8)
    left[:, :32] = 1
    heat = heat_map([measure(image, left), measure(image, all_of_it)])
    assert np.allclose(heat[:, :16], 1)
    assert np.allclose(heat[:, 16:], 0.5)
