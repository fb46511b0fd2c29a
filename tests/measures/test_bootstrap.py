"""Intervals of means over images: against scipy's, by coverage, and what a paired one gains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from camox.measures.bootstrap import (
    FEWEST_IMAGES,
    Table,
    bca,
    draw,
    intervals,
    mean_interval,
    paired_differences,
)
from camox.measures.evaluator import ImageResult


def results(values, curves=None):
    """An image per row: its MAE and, if given, its curve of F."""
    return [
        ImageResult({"mae": value}, {} if curves is None else {"f": curves[i]}, has_object=True, counts=True)
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("images", [12, 60, 400])
def test_intervals_of_a_mean_are_those_of_scipy(images):
    values = np.random.default_rng(images).beta(0.5, 6, images)
    low, high = intervals(results(values), ["mae"], resamples=20000)["mae"]
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    # Both have the noise of their own draws, a few hundredths of the width.
    tolerance = 0.04 * (reference.high - reference.low)
    assert low == pytest.approx(reference.low, abs=tolerance)
    assert high == pytest.approx(reference.high, abs=tolerance)


def test_the_maximum_is_found_anew_in_each_resample():
    generator = np.random.default_rng(0)
    curves = generator.random((30, 256))
    weights = np.concatenate(list(draw(30, 50)))
    table = Table.of(results(generator.random(30), curves), ["mae", "f_max"])
    slow = [max(np.average(curves, axis=0, weights=row)) for row in weights]
    assert table.weighted(weights)[:, 1] == pytest.approx(slow)
    without = [np.delete(curves, image, axis=0).mean(axis=0).max() for image in range(30)]
    assert table.without_each()[:, 1] == pytest.approx(without)


@given(st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_resample_has_as_many_images_as_the_dataset(images, resamples):
    weights = np.concatenate(list(draw(images, resamples)))
    assert weights.shape == (resamples, images)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights * images, np.rint(weights * images))


def test_pieces_do_not_change_what_is_drawn(monkeypatch):
    whole = np.concatenate(list(draw(40, 64)))
    monkeypatch.setattr("camox.measures.bootstrap._AT_ONCE", 160)
    assert np.array_equal(np.concatenate(list(draw(40, 64))), whole)


def test_the_same_images_give_the_same_interval():
    values = np.random.default_rng(3).random(50)
    assert intervals(results(values), ["mae"]) == intervals(results(values), ["mae"])


def test_a_handful_of_images_has_no_interval():
    assert mean_interval(np.linspace(0, 1, FEWEST_IMAGES - 1)) is None
    assert mean_interval(np.linspace(0, 1, FEWEST_IMAGES)) is not None


def test_an_undefined_value_has_no_interval():
    assert mean_interval([*np.linspace(0, 1, 20), np.nan]) is None


def test_images_that_are_all_alike_have_an_interval_of_no_width():
    assert mean_interval([0.25] * 20) == (0.25, 0.25)


def test_more_images_narrow_the_interval():
    values = np.random.default_rng(0).random(1600)
    widths = [np.diff(mean_interval(values[:count]))[0] for count in (100, 1600)]
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)


def test_a_paired_difference_is_surer_than_two_intervals():
    hard = np.random.default_rng(0).random(80)
    first, second = results(hard), results(hard + 0.02 + np.random.default_rng(1).normal(0, 0.01, 80))
    difference = paired_differences(first, second, ["mae"])["mae"]
    assert difference.value == pytest.approx(0.02, abs=0.005)
    low, high = difference.interval
    assert 0.01 < low < difference.value < high < 0.03
    alone = intervals(first, ["mae"])["mae"]
    assert high - low < 0.1 * (alone[1] - alone[0])


def test_the_difference_of_maxima_is_that_of_the_mean_curves():
    curves = np.random.default_rng(0).random((2, 20, 256))
    pairs = [results(np.zeros(20), of) for of in curves]
    difference = paired_differences(*pairs, ["f_max"])["f_max"]
    assert difference.value == pytest.approx(curves[1].mean(axis=0).max() - curves[0].mean(axis=0).max())


def test_of_no_images_there_is_no_difference():
    assert paired_differences([], [], ["mae"])["mae"] == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "least"), [(20, 0.85), (76, 0.92), (250, 0.93)], ids=lambda value: str(value))
@pytest.mark.parametrize(("a", "b"), [(0.5, 12.0), (6.0, 1.2), (1.0, 1.0)], ids=["mae", "s_measure", "uniform"])
def test_intervals_cover_the_true_mean(images, least, a, b):
    """Of datasets drawn from a known distribution of scores, shaped as those of the field."""
    generator = np.random.default_rng(images)
    covered, trials = 0, 500
    for _ in range(trials):
        values = generator.beta(a, b, images)
        table = Table(("mae",), values[:, None], ())
        drawn = np.concatenate([table.weighted(weights) for weights in draw(images, 1000)])
        low, high = bca(table.whole(), drawn, table.without_each())[0]
        covered += low <= a / (a + b) <= high
    assert least <= covered / trials <= 0.985


@pytest.mark.slow
def test_intervals_of_a_maximum_cover_the_true_one():
    """Curves of F whose mean has one peak of 0.6; the maximum of a mean of few images leans upwards by a little."""
    generator, thresholds = np.random.default_rng(0), np.linspace(-1, 1, 256)
    covered, trials = 0, 300
    for _ in range(trials):
        heights, places = 0.6 + generator.normal(0, 0.2, 100), generator.normal(0, 0.2, 100)
        curves = heights[:, None] - (thresholds - places[:, None]) ** 2
        low, high = intervals(results(heights, curves), ["f_max"], resamples=1000)["f_max"]
        covered += low <= 0.6 - 0.2**2 <= high
    assert 0.9 <= covered / trials <= 0.985
