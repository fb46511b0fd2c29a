"""A dataset in parts: sizes, groups, images set apart, and curves."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camox.measures.breakdown import object_size, precision_and_recall, set_apart, summarise
from camox.measures.evaluator import Evaluator, measure_image
from camox.measures.protocol import PROTOCOLS


def disc(radius, size=64):
    return cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), radius, 1, -1)


def evaluated(truths, protocol="camox", groups=None):
    evaluator, shares = Evaluator(protocol), {}
    for index, truth in enumerate(truths):
        noise = np.random.default_rng(index).random(truth.shape, np.float32)
        group = "" if groups is None else groups[index]
        evaluator.add(index, f"image {index}", group, 0.5 * truth + 0.5 * noise, truth)
        shares[index] = float(truth.mean())
    return evaluator, shares


@pytest.mark.parametrize(
    ("share", "size"),
    [(1e-6, "tiny"), (0.0099, "tiny"), (0.01, "small"), (0.1, "small"), (0.11, "medium"), (0.5, "large"), (1, "large")],
)
def test_sizes_begin_where_cod10k_says(share, size):
    assert object_size(share) == size


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_object_has_one_size_and_its_scores_are_those_of_a_dataset_of_its_own(protocol):
    truths = [disc(radius) for radius in (2, 3, 8, 9, 15, 20, 30)] + [np.zeros((64, 64), np.uint8)]
    scores = summarise(*evaluated(truths, protocol))
    counts = {size: of["count"] for size, of in scores.summary["sizes"].items()}
    assert counts == {"tiny": 2, "small": 2, "medium": 2, "large": 1}
    alone, _ = evaluated(truths[:2], protocol)
    small = {key: scores.summary["sizes"]["tiny"][key] for key in ("count", "s_measure", "f_max", "mae")}
    assert small == {key: alone.summary()[key] for key in small}


def test_the_summary_is_the_evaluators_with_intervals_everywhere():
    truths = [disc(5 + i % 9) for i in range(24)]
    evaluator, shares = evaluated(truths, groups=["crab", "owl"] * 12)
    summary = summarise(evaluator, shares).summary
    for key, value in evaluator.summary().items():
        if key not in ("groups", "empty"):
            assert summary[key] == value
    for part in (summary, *summary["groups"].values()):
        for name, (low, high) in part["intervals"].items():
            assert low <= part[name] <= high, name
            assert low < high, name
    assert summary["sizes"]["large"]["intervals"]["mae"] is None


def test_false_positives_have_intervals():
    evaluator, nothing = Evaluator(), np.zeros((8, 8), np.uint8)
    for index in range(15):
        evaluator.add(index, str(index), "", np.random.default_rng(index).random((8, 8)), nothing)
    empty = summarise(evaluator, dict.fromkeys(range(15), 0.0)).summary["empty"]
    low, high = empty["intervals"]["false_positive_area"]
    assert low < empty["false_positive_area"] < high


def test_images_set_apart_are_in_no_mean_under_any_protocol():
    truths = [disc(9)] * 3 + [np.zeros((64, 64), np.uint8)] * 2
    for protocol in PROTOCOLS:
        evaluator, shares = evaluated(truths, protocol)
        apart = summarise(set_apart(evaluator, ["image 3", "image 4"]), shares)
        alone, _ = evaluated(truths[:3], protocol)
        assert apart.summary["count"] == 3
        assert apart.summary["s_measure"] == alone.summary()["s_measure"]
        assert apart.summary["empty"]["count"] == 2
        assert len(apart.records) == 5


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_precision_and_recall_are_those_of_the_pixels(seed):
    generator = np.random.default_rng(seed)
    truth = (generator.random((9, 11)) < generator.random()).astype(np.uint8)
    truth[0, 0] = 1
    probability = generator.random(truth.shape) ** generator.integers(1, 4)
    curves = measure_image(probability, truth).curves
    precision, recall = precision_and_recall(curves["f"], curves["dice"])
    for index, threshold in enumerate((np.arange(256) + 0.5) / 256):
        called = probability >= threshold
        hit = np.count_nonzero(called & (truth == 1))
        assert recall[index] == pytest.approx(hit / truth.sum(), abs=1e-9)
        assert precision[index] == pytest.approx(hit / called.sum() if hit else 0, abs=1e-9)


@pytest.mark.parametrize(("protocol", "first", "last"), [("camox", 0.5 / 256, 255.5 / 256), ("pysod", 0.0, 1.0)])
def test_curves_are_means_at_the_protocols_thresholds(protocol, first, last):
    evaluator, shares = evaluated([disc(5), disc(12), disc(20)], protocol)
    scores = summarise(evaluator, shares)
    curves, thresholds = scores.curves(), scores.thresholds()
    assert list(curves) == ["precision", "recall", "f", "e", "iou", "dice"]
    assert (thresholds[0], thresholds[-1]) == (first, last)
    for family in ("f", "e", "iou", "dice"):
        assert curves[family].max() == pytest.approx(scores.summary[f"{family}_max"])
        assert curves[family].mean() == pytest.approx(scores.summary[f"{family}_mean"])


def test_without_images_in_the_means_there_are_no_curves():
    assert summarise(*evaluated([np.zeros((64, 64), np.uint8)])).curves() == {}
