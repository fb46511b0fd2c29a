"""What is summed on an accelerator equals what the CPU sums, here on CPU tensors; tests/gpu has the same on a GPU."""

import numpy as np
import pytest
import torch

from benchmarking.pairs import EDGES, native_pair, random_pair, scattered_pair
from camox.measures.device import resize_on_device
from camox.measures.evaluator import Evaluator, measure_batch, measure_image, resize_probability, uint8_probability
from camox.measures.protocol import ALL_MEASURES, PROTOCOLS


def assert_equals_cpu(probability, truth, protocol):
    expected = measure_image(probability, truth, protocol)
    (actual,) = measure_batch(torch.from_numpy(probability)[None], [truth], protocol)
    assert (actual.has_object, actual.counts) == (expected.has_object, expected.counts)
    assert list(actual.scalars) == list(expected.scalars)
    assert actual.scalars == pytest.approx(expected.scalars, rel=0, abs=1e-6, nan_ok=True)
    assert actual.curves.keys() == expected.curves.keys()
    for family, curve in expected.curves.items():
        np.testing.assert_allclose(actual.curves[family], curve, rtol=0, atol=1e-6)


def as_given(pair):
    """A pair as a network and a loader give it: float32 in [0, 1] that is on no level, and uint8 in {0, 1}."""
    prediction, truth = pair
    probability = uint8_probability(prediction)
    noise = np.random.default_rng(truth.size).uniform(-0.001, 0.001, truth.shape)
    return np.clip(probability + noise * (probability > 0), 0, 1).astype(np.float32), (truth > 128).astype(np.uint8)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("make", [random_pair, scattered_pair])
def test_a_random_pair_has_the_same_measures(protocol, make):
    for seed in range(40):
        assert_equals_cpu(*as_given(make(seed)), protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", EDGES)
def test_an_edge_has_the_same_measures(protocol, case):
    prediction, truth = EDGES[case]
    assert_equals_cpu(uint8_probability(prediction), (truth > 128).astype(np.uint8), protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(2))
def test_a_pair_of_native_size_has_the_same_measures(protocol, seed):
    assert_equals_cpu(*as_given(native_pair(seed)), protocol)


@pytest.mark.parametrize("shape", [(20, 20), (683, 1024), (7, 90), (33, 5), (1, 1)])
def test_a_map_is_resized_as_on_the_cpu(shape):
    small = np.random.default_rng(0).random((20, 20), dtype=np.float32)
    resized = resize_on_device(torch.from_numpy(small), shape).numpy()
    np.testing.assert_allclose(resized, resize_probability(small, shape), rtol=0, atol=1e-7)


def batch(count=5, size=24):
    """Maps of one size with truths of as many sizes; the fourth has no object."""
    rng = np.random.default_rng(3)
    truths = [(rng.random((30 + 7 * n, 50 - 4 * n)) < 0.1 * (n != 3)).astype(np.uint8) for n in range(count)]
    return torch.from_numpy(rng.random((count, size, size), dtype=np.float32)), truths


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_results_do_not_depend_on_the_batch(protocol):
    maps, truths = batch()
    together = Evaluator(protocol)
    together.add_batch(range(5), "abcde", ["A", "B", "A", "", "B"], maps, truths)
    alone = Evaluator(protocol)
    for n in (4, 2, 0, 1, 3):
        alone.add_batch([n], ["abcde"[n]], ["ABA B"[n].strip()], maps[n : n + 1], truths[n : n + 1])
    assert together.summary() == alone.summary()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_adds_what_its_images_would(protocol):
    maps, truths = batch()
    at_once, one_by_one = Evaluator(protocol), Evaluator(protocol)
    at_once.add_batch(range(5), "abcde", "ABABA", maps, truths)
    for n, (map_, truth) in enumerate(zip(maps.numpy(), truths, strict=True)):
        one_by_one.add(n, "abcde"[n], "ABABA"[n], map_, truth)
    assert [(r.index, r.name, r.group) for r in at_once.results] == [
        (r.index, r.name, r.group) for r in one_by_one.results
    ]
    expected = one_by_one.summary()
    for part in ("groups", "empty"):
        assert at_once.summary()[part].keys() == expected[part].keys()
    assert {name: at_once.summary()[name] for name in ALL_MEASURES} == pytest.approx(
        {name: expected[name] for name in ALL_MEASURES}, rel=0, abs=1e-6
    )
    assert at_once.summary()["empty"] == pytest.approx(expected["empty"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ALL_MEASURES)
def test_only_what_is_asked_for_is_measured(protocol, name):
    maps, truths = batch(count=2)
    alone = measure_batch(maps, truths, protocol, [name])
    for result, whole in zip(alone, measure_batch(maps, truths, protocol), strict=True):
        assert result.scalars == {name: whole.scalars[name]}


@pytest.mark.parametrize(("value", "message"), [(float("nan"), r"image 1 \(b\).*NaN"), (1.5, r"image 1 \(b\).*leaves")])
def test_a_broken_map_is_refused_with_its_name(value, message):
    maps, truths = batch(count=2)
    maps[1, 3, 4] = value
    with pytest.raises(ValueError, match=message):
        Evaluator().add_batch([0, 1], "ab", "AA", maps, truths)
