"""Protocol "pysod" against pysodmetrics run its own way, and against published values."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarking.pairs import EDGES, native_pair, random_pair, scattered_pair
from benchmarking.reference import reference_measures
from camox.measures import image_measures
from camox.measures.evaluator import Evaluator, measure_image, uint8_probability
from camox.measures.protocol import ALL_MEASURES, PYSOD
from camox.measures.scoring import read_grey, score_folder

TOLERANCE = 1e-6
PUBLISHED_NAMES = {
    "Smeasure": "s_measure",
    "wFmeasure": "f_weighted",
    "MAE": "mae",
    "adpFm": "f_adaptive",
    "meanFm": "f_mean",
    "maxFm": "f_max",
    "adpEm": "e_adaptive",
    "meanEm": "e_mean",
    "maxEm": "e_max",
}


def assert_equals_reference(prediction, truth):
    expected = reference_measures([(prediction, truth)])
    actual = image_measures(prediction, truth, protocol="pysod")
    assert actual.keys() == set(ALL_MEASURES)
    compared = {name: actual[name] for name in expected}
    assert compared == pytest.approx(expected, rel=0, abs=TOLERANCE, nan_ok=True)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_every_measure_of_a_random_pair_equals_the_reference(first):
    for seed in range(first, first + 50):
        assert_equals_reference(*random_pair(seed))
        assert_equals_reference(*scattered_pair(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(200, 2400, 100))
def test_every_measure_of_many_random_pairs_equals_the_reference(first):
    for seed in range(first, first + 100):
        assert_equals_reference(*random_pair(seed))
        assert_equals_reference(*scattered_pair(seed))


@pytest.mark.parametrize("seed", range(4))
def test_every_measure_at_native_size_equals_the_reference(seed):
    assert_equals_reference(*native_pair(seed))


@given(data=st.data(), shape=arrays.array_shapes(min_dims=2, max_dims=2, max_side=10))
@settings(max_examples=150, deadline=None)
def test_every_measure_of_any_small_pair_equals_the_reference(data, shape):
    levels = st.one_of(st.sampled_from([0, 1, 100, 127, 128, 255]), st.integers(0, 255))
    prediction = data.draw(arrays.arrays(np.uint8, shape, elements=levels))
    truth = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 255])))
    assert_equals_reference(prediction, truth)


@pytest.mark.parametrize("seed", range(20))
def test_a_map_in_floating_point_is_rounded_to_the_levels_of_an_image(seed):
    prediction, truth = random_pair(seed)
    within_half_a_level = np.random.default_rng(seed).uniform(-0.49, 0.49, prediction.shape)
    probability = np.clip((prediction + within_half_a_level) / 255, 0, 1).astype(np.float32)
    actual = measure_image(probability, PYSOD.binarise_truth(truth), "pysod").scalars
    assert {name: actual[name] for name in ALL_MEASURES} == image_measures(prediction, truth, "pysod")


@pytest.mark.parametrize("case", EDGES)
def test_every_measure_at_an_edge_equals_the_reference(case):
    assert_equals_reference(*EDGES[case])


@pytest.mark.parametrize("seed", range(5))
def test_iou_and_dice_are_those_at_one_half_of_the_map_as_it_is(seed):
    prediction, truth = random_pair(seed)
    predicted, objects = prediction >= 127.5, truth > 128
    intersection, areas = (predicted & objects).sum(), predicted.sum() + objects.sum()
    actual = image_measures(prediction, truth, protocol="pysod")
    assert actual["iou"] == pytest.approx(intersection / max(areas - intersection, 1))
    assert actual["dice"] == pytest.approx(2 * intersection / max(areas, 1))


def test_a_datasets_summary_equals_the_reference():
    pairs = [random_pair(seed) for seed in range(20)]
    evaluator = Evaluator("pysod")
    for index, (prediction, truth) in enumerate(pairs):
        evaluator.add(index, str(index), "", uint8_probability(prediction), PYSOD.binarise_truth(truth))
    summary = evaluator.summary()
    expected = reference_measures(pairs)
    assert summary["count"] == 20
    assert {name: summary[name] for name in expected} == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def published(open_pairs, name):
    """Folder and expected values of a set of published pairs."""
    folder = open_pairs / name
    return folder, json.loads((folder / "expected_pysodmetrics_1.6.2.json").read_text())


@pytest.mark.parametrize("name", ["pysodmetrics_examples", "metric_reference"])
def test_published_values_per_image(open_pairs, name):
    folder, expected = published(open_pairs, name)
    for file, values in expected["per_image"].items():
        actual = image_measures(read_grey(folder / "preds" / file), read_grey(folder / "masks" / file))
        renamed = {PUBLISHED_NAMES[key]: value for key, value in values.items()}
        assert {key: actual[key] for key in renamed} == pytest.approx(renamed, rel=0, abs=TOLERANCE), file


@pytest.mark.parametrize("name", ["pysodmetrics_examples", "metric_reference"])
def test_published_values_of_the_whole_set(open_pairs, name):
    folder, expected = published(open_pairs, name)
    summary = score_folder(folder / "preds", folder / "masks", protocol="pysod").summary
    renamed = {PUBLISHED_NAMES[key]: value for key, value in expected["total"].items()}
    assert {key: summary[key] for key in renamed} == pytest.approx(renamed, rel=0, abs=TOLERANCE)


def test_importing_measures_imports_nothing_else():
    code = "import sys, camox.measures; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_measuring_imports_neither_the_reference_nor_torch():
    code = "import sys, camox.measures.scoring; sys.exit(bool({'py_sod_metrics', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        image_measures(np.zeros((4, 4)), np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="differ in shape"):
        image_measures(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))
