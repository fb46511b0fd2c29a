import numpy as np
import pytest

from camox.inference.pictures import overlay, prediction_panel

RNG = np.random.default_rng(0)


def image(height, width):
    return RNG.integers(0, 200, (height, width, 3), np.uint8)


def blob(height, width):
    probability = np.zeros((height, width), np.float32)
    probability[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = 0.9
    return probability


@pytest.mark.parametrize(("height", "width"), [(60, 80), (1, 50), (50, 1), (1, 1), (700, 300)])
def test_overlay_has_the_size_of_the_image(height, width):
    picture = overlay(image(height, width), blob(height, width))
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_overlay_changes_the_object_and_nothing_far_from_it():
    photograph = image(60, 80)
    picture = overlay(photograph, blob(60, 80))
    changed = (picture != photograph).any(axis=2)
    assert changed[15:31, 20:41].mean() > 0.95
    assert not changed[40:, 50:].any()


def test_overlay_leaves_an_image_without_object_as_it_is():
    photograph = image(30, 30)
    np.testing.assert_array_equal(overlay(photograph, np.zeros((30, 30), np.float32)), photograph)


def test_overlay_does_not_touch_its_input():
    photograph = image(30, 30)
    before = photograph.copy()
    overlay(photograph, blob(30, 30))
    np.testing.assert_array_equal(photograph, before)


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("uncertainty", [True, False])
@pytest.mark.parametrize("boundary", [True, False])
def test_panel_has_a_tile_for_everything_given(truth, uncertainty, boundary):
    panel = prediction_panel(
        image(64, 64),
        np.ones((64, 64), np.uint8) if truth else None,
        blob(64, 64),
        blob(64, 64) if uncertainty else None,
        size=256,
        boundary=blob(16, 16) if boundary else None,
    )
    tiles = 2 + truth + uncertainty + boundary
    assert panel.dtype == np.uint8
    assert panel.shape[1] == tiles * 256 + (tiles - 1) * 4
    assert 256 < panel.shape[0] < 300


def test_panel_shows_what_it_was_given():
    panel = prediction_panel(image(64, 64), np.ones((64, 64), np.uint8), blob(64, 64), blob(64, 64), size=64)
    plain = prediction_panel(image(64, 64), np.zeros((64, 64), np.uint8), blob(64, 64) * 0, blob(64, 64) * 0, size=64)
    assert panel.std() > 10
    assert (panel != plain).any()


def test_uncertainty_is_drawn_in_colour():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    panel = prediction_panel(image(64, 64), None, ramp, ramp, size=256)
    heat = panel[100, -256:].astype(int)
    brightness = heat @ [0.3, 0.6, 0.1]
    assert (heat.max(axis=1) - heat.min(axis=1)).max() > 60
    assert (np.diff(brightness) > -3).all(), "a perceptual map grows brighter with the value"


@pytest.mark.parametrize(("height", "width"), [(1, 300), (300, 1), (1, 1), (3165, 435)])
def test_panel_of_extreme_sizes(height, width):
    panel = prediction_panel(image(height, width), None, blob(height, width))
    assert 18 < panel.shape[0] <= 18 + 256
    assert panel.shape[1] <= 2 * 256 + 4
