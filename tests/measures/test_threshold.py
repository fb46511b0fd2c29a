"""The threshold that held-out images choose."""

import numpy as np
import pytest

from camox.measures.evaluator import Evaluator
from camox.measures.threshold import CHOSEN_BY, best_threshold


def records(*images):
    evaluator = Evaluator("camox", ("iou", CHOSEN_BY))
    for index, (probability, truth) in enumerate(images):
        evaluator.add(index, str(index), "", np.float32(probability), np.uint8(truth))
    return evaluator.results


def mean_iou(images, threshold):
    called = [(np.float32(probability) >= threshold, np.uint8(truth) > 0) for probability, truth in images]
    return np.mean([(mask & truth).sum() / (mask | truth).sum() for mask, truth in called])


def test_no_other_threshold_has_a_better_mean_iou():
    generator = np.random.default_rng(0)
    images = []
    for level in (0.2, 0.3, 0.45):  # a timid model: objects are found below one half
        truth = np.zeros((32, 32))
        truth[8:20, 4:24] = 1
        images.append((np.clip(level * truth + generator.normal(0.1, 0.08, truth.shape), 0, 1), truth))
    chosen = best_threshold(records(*images))
    tried = [mean_iou(images, threshold) for threshold in np.linspace(0.001, 0.999, 999)]
    assert mean_iou(images, chosen) == pytest.approx(max(tried), abs=2e-3)
    assert mean_iou(images, chosen) > mean_iou(images, 0.5) + 0.2


def test_of_equally_good_thresholds_the_one_nearest_to_one_half_is_taken():
    truth = np.eye(8)
    assert best_threshold(records((0.9 * truth + 0.05, truth))) == pytest.approx(0.5, abs=0.5 / 256)
    assert best_threshold(records((0.4 * truth, truth))) == pytest.approx(0.4, abs=1 / 256)


def test_images_without_an_object_choose_nothing():
    empty = (np.full((8, 8), 0.4), np.zeros((8, 8)))
    assert best_threshold(records(empty)) is None
    truth = np.eye(8)
    assert best_threshold(records((0.4 * truth, truth), empty)) == best_threshold(records((0.4 * truth, truth)))
