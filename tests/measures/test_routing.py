"""What the routing measures say of cases whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.measures.routing import routing_measures

NAMES = ("a", "b", "c", "d", "e", "f")


def of_images(probabilities: np.ndarray, top_k: int = 2) -> dict[str, float]:
    """Measures of a router that gave these softmaxes `[n, E]` and took the best k of each."""
    chosen = np.zeros_like(probabilities)
    np.put_along_axis(chosen, np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k], 1.0, axis=1)
    entropy = -(probabilities * np.log(np.clip(probabilities, 1e-300, None))).sum()
    return routing_measures(chosen.sum(0), probabilities.sum(0), entropy, chosen.T @ chosen, NAMES)


def test_two_experts_that_do_everything():
    measures = of_images(np.tile([0.5, 0.5, 0, 0, 0, 0], (10, 1)))
    assert measures["load_balance"] == pytest.approx(3)
    assert measures["dead"] == 4
    assert measures["pair_share"] == 1
    assert measures["max_violation"] == pytest.approx(2)
    assert measures["mutual_information"] == pytest.approx(0)
    assert measures["entropy"] == pytest.approx(np.log(2))


def test_a_router_that_tells_three_kinds_of_images_apart():
    rows = np.repeat(np.eye(3), 2, axis=1) / 2  # kind i goes to experts 2i and 2i+1
    measures = of_images(np.tile(rows, (5, 1)))
    assert measures["load_balance"] == pytest.approx(1)
    assert measures["dead"] == 0
    assert measures["mutual_information"] == pytest.approx(np.log(3))
    assert measures["pair_share"] == pytest.approx(1 / 3)


def test_uniform_and_indifferent_has_no_information():
    measures = of_images(np.full((12, 6), 1 / 6))
    assert measures["mutual_information"] == pytest.approx(0, abs=1e-12)
    assert measures["load_balance"] == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_bounds(seed, images):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=images)
    measures = of_images(probabilities)
    assert 0 < measures["load_balance"] <= 6
    assert 0 <= measures["entropy"] <= np.log(6) + 1e-12
    assert 0 <= measures["mutual_information"] <= np.log(6) + 1e-12
    assert 0 < measures["pair_share"] <= 1
    assert sum(measures[f"usage/{name}"] for name in NAMES) == pytest.approx(1)


def test_no_image_or_no_number_gives_no_measure():
    zero = np.zeros(6)
    assert routing_measures(zero, zero, 0.0, np.zeros((6, 6)), NAMES) == {}
    assert routing_measures(zero + 1, zero * np.nan, np.nan, np.zeros((6, 6)), NAMES) == {}
