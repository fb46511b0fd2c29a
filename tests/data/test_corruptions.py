"""Images made worse: repeatable, in five degrees, and of the same form."""

from functools import partial

import cv2
import numpy as np
import pytest

from camox.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from camox.data.loading import EvalSet, eval_loader
from camox.data.sources import open_source


@pytest.fixture(scope="module")
def image():
    """A photograph's worth of structure at all scales."""
    noise = np.random.default_rng(0).random((96, 96, 3), np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1, 4, 12))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.rint(255 * smooth).astype(np.uint8)


def distance(first, second):
    return np.abs(first.astype(float) - second).mean()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_degree_is_further_from_the_image(image, kind):
    before = image.copy()
    distances = [distance(corrupt(image, "name", kind, severity), image) for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[0] > 0.5
    assert distances[-1] > 1.5 * distances[0]
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_same_name_gives_the_same_image(image, kind):
    first = corrupt(image, "name", kind, 3)
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert np.array_equal(corrupt(image, "name", kind, 3), first)
    is_random = not np.array_equal(corrupt(image, "other", kind, 3), first)
    assert is_random == (kind in ("noise", "low_light"))


def test_blur_is_of_the_same_share_of_an_image_of_any_size():
    step = np.zeros((64, 64, 3), np.uint8)
    step[:, 32:] = 255
    small = corrupt(step, "", "blur", 4)
    large = corrupt(cv2.resize(step, (256, 256), interpolation=cv2.INTER_NEAREST), "", "blur", 4)
    assert distance(cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA), small) < 2


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.08), (2, 0.12), (3, 0.18), (4, 0.26), (5, 0.38)])
def test_noise_has_the_deviation_it_says(severity, deviation):
    grey = np.full((128, 128, 3), 128, np.uint8)
    drawn = np.random.default_rng(0).normal(128 / 255, deviation, 10**6).clip(0, 1).std()
    assert corrupt(grey, "", "noise", severity).std() / 255 == pytest.approx(drawn, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_each_stop_halves_the_light(severity):
    grey = np.full((64, 64, 3), 200, np.uint8)
    light = (corrupt(grey, "", "low_light", severity) / 255) ** 2.2
    assert light.mean() == pytest.approx((200 / 255) ** 2.2 / 2**severity, rel=0.05)


def test_truths_stay_and_workers_do_not_matter():
    source = open_source({"synthetic": "habitats", "count": 4, "size": 48})
    clean = EvalSet(source, 64)
    worse = EvalSet(source, 64, partial(corrupt, kind="noise", severity=2))
    (expected,), (alone,), (parallel,) = (
        list(eval_loader(dataset, range(4), 4, workers, pin_memory=False))
        for dataset, workers in ((clean, 0), (worse, 0), (worse, 1))
    )
    assert not np.array_equal(alone.images, expected.images)
    assert np.array_equal(alone.images, parallel.images)
    assert all(np.array_equal(*pair) for pair in zip(alone.truths, expected.truths, strict=True))
