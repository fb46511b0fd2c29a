"""Measures taken on the GPU are those of the CPU, and one image's do not depend on the others of its batch."""

import numpy as np
import pytest
import torch

from benchmarking.pairs import EDGES, native_pair, random_pair, scattered_pair
from camox.measures.evaluator import Evaluator, measure_batch, measure_image, resize_probability, uint8_probability
from camox.measures.protocol import PROTOCOLS

pytestmark = pytest.mark.gpu


def assert_equals_cpu(probability, truth, protocol, device):
    expected = measure_image(resize_probability(probability, truth.shape), truth, protocol)
    (actual,) = measure_batch(torch.from_numpy(probability)[None].to(device), [truth], protocol)
    assert (actual.has_object, actual.counts) == (expected.has_object, expected.counts)
    assert actual.scalars == pytest.approx(expected.scalars, rel=0, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("make", [random_pair, scattered_pair, native_pair])
def test_random_pairs_have_the_same_measures(device, protocol, make):
    for seed in range(20):
        prediction, truth = make(seed)
        assert_equals_cpu(uint8_probability(prediction), (truth > 128).astype(np.uint8), protocol, device)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", EDGES)
def test_an_edge_has_the_same_measures(device, protocol, case):
    prediction, truth = EDGES[case]
    assert_equals_cpu(uint8_probability(prediction), (truth > 128).astype(np.uint8), protocol, device)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_map_of_the_networks_size_has_the_same_measures(device, protocol):
    for seed in range(4):
        _, truth = native_pair(seed)
        small = np.random.default_rng(seed).random((352, 352), dtype=np.float32)
        assert_equals_cpu(small, (truth > 128).astype(np.uint8), protocol, device)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_results_do_not_depend_on_the_batch(device, protocol):
    rng = np.random.default_rng(3)
    truths = [(rng.random((300 + 70 * n, 500 - 40 * n)) < 0.1).astype(np.uint8) for n in range(6)]
    maps = torch.from_numpy(rng.random((6, 352, 352), dtype=np.float32)).to(device)
    together, alone = Evaluator(protocol), Evaluator(protocol)
    together.add_batch(range(6), "abcdef", "ABABAB", maps, truths)
    for n in (5, 3, 1, 0, 2, 4):
        alone.add_batch([n], "abcdef"[n], "ABABAB"[n], maps[n : n + 1], truths[n : n + 1])
    assert together.summary() == alone.summary()
