"""What the routing measures say of cases whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.measures.routing import RoutedImages, choice_shares, churn, kind_information, routing_measures

COSTS = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0, "f": 1.0}
FROM_CHOICES = {"dead", "starved", "max_violation", "cv", "entropy", "pair_share"}
FROM_PROBABILITIES = {"marginal_entropy", "conditional_entropy", "mutual_information", "saturation"}


def routed(probabilities: np.ndarray, top_k: int = 2, regions: int = 1) -> RoutedImages:
    """Decisions of a router that gave these softmaxes `[n·regions, E]` and took the best k of each."""
    selected = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    images = len(probabilities) // regions
    return RoutedImages(
        np.arange(images),
        ("",) * images,
        probabilities.reshape(images, regions, -1),
        selected.reshape(images, regions, -1),
        np.zeros((images, regions), bool),
    )


def of_images(probabilities: np.ndarray, top_k: int = 2, learned: bool = True) -> dict[str, float]:
    return routing_measures(routed(probabilities, top_k).sums(), COSTS, learned)


def test_two_experts_that_do_everything():
    measures = of_images(np.tile([0.5, 0.5, 0, 0, 0, 0], (10, 1)))
    assert measures["load_balance"] == pytest.approx(3)
    assert measures["dead"] == measures["starved"] == 4
    assert measures["pair_share"] == 1
    assert measures["max_violation"] == pytest.approx(2)
    assert measures["cv"] == pytest.approx(np.sqrt(2))
    assert measures["mutual_information"] == pytest.approx(0)
    assert measures["entropy"] == measures["marginal_entropy"] == pytest.approx(np.log(2))


def test_a_router_that_tells_three_kinds_of_images_apart():
    rows = np.repeat(np.eye(3), 2, axis=1) / 2  # kind i goes to experts 2i and 2i+1
    measures = of_images(np.tile(rows, (5, 1)))
    assert measures["load_balance"] == pytest.approx(1)
    assert measures["dead"] == measures["cv"] == 0
    assert measures["mutual_information"] == pytest.approx(np.log(3))
    assert measures["conditional_entropy"] == pytest.approx(np.log(2))
    assert measures["pair_share"] == pytest.approx(1 / 3)


def test_uniform_and_indifferent_has_no_information():
    measures = of_images(np.full((12, 6), 1 / 6))
    assert measures["mutual_information"] == pytest.approx(0, abs=1e-12)
    assert measures["marginal_entropy"] == measures["conditional_entropy"] == pytest.approx(np.log(6))
    assert measures["load_balance"] == pytest.approx(1)


def test_starved_is_less_than_a_quarter_of_an_equal_share_and_dead_less_than_a_twentieth():
    counts = np.array([60.0, 60.0, 60.0, 6.0, 12.0, 0.5])  # 198.5 choices: an equal share is 33.1
    sums = routed(np.full((100, 6), 1 / 6)).sums() | {"counts": counts}
    measures = routing_measures(sums, COSTS)
    assert measures["starved"] == 2  # 6 and 0.5; 12 is more than a third
    assert measures["dead"] == 1


def test_the_share_of_cost_weighs_usage_with_multiply_adds():
    costs = {"cheap": 1.0, "dear": 3.0, "idle": 5.0}
    half = np.tile([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1]], (4, 1))
    measures = routing_measures(routed(half, top_k=1).sums(), costs)
    assert [measures[f"usage/{name}"] for name in costs] == [0.5, 0.5, 0.0]
    assert [measures[f"cost/{name}"] for name in costs] == [0.25, 0.75, 0.0]


def test_measures_are_of_what_was_decided():
    """All experts for all images leave nothing to choose; without a router the probabilities mean nothing."""
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), size=40)
    everything = FROM_CHOICES | FROM_PROBABILITIES | {"load_balance"}
    per_expert = {f"{what}/{name}" for what in ("usage", "cost") for name in COSTS}
    assert of_images(probabilities).keys() == everything | per_expert
    assert of_images(probabilities, top_k=6).keys() == FROM_PROBABILITIES
    assert of_images(probabilities, learned=False).keys() == FROM_CHOICES | per_expert
    assert of_images(probabilities, top_k=6, learned=False) == {}
    assert of_images(probabilities, top_k=1).keys() == (everything | per_expert) - {"pair_share"}
    assert of_images(np.ones((5, 1)), top_k=1)["mutual_information"] == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_bounds(seed, images):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=images)
    measures = of_images(probabilities)
    assert 0 < measures["load_balance"] <= 6
    assert 0 <= measures["entropy"] <= np.log(6) + 1e-12
    assert 0 <= measures["mutual_information"] <= measures["marginal_entropy"] <= np.log(6) + 1e-12
    assert 0 < measures["pair_share"] <= 1
    assert measures["dead"] <= measures["starved"]
    assert sum(measures[f"usage/{name}"] for name in COSTS) == pytest.approx(1)
    assert sum(measures[f"cost/{name}"] for name in COSTS) == pytest.approx(1)


def test_no_image_or_no_number_gives_no_measure():
    sums = routed(np.full((4, 6), 1 / 6)).sums()
    assert routing_measures({name: value * 0 for name, value in sums.items()}, COSTS) == {}
    assert routing_measures(sums | {"probabilities": np.full(6, np.nan)}, COSTS) == {}


def test_regions_are_decisions_of_their_own():
    probabilities = np.random.default_rng(1).dirichlet(np.ones(6), size=36)
    whole, parts = routed(probabilities).sums(), routed(probabilities, regions=9).sums()
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, err_msg=name)


def test_shares_of_an_image_are_means_over_its_regions():
    selected = np.array([[[0, 1], [0, 2]], [[3, 4], [4, 3]]])
    np.testing.assert_allclose(choice_shares(selected, 5), [[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(choice_shares(selected[:, 0], 5), [[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5]])


def reference_information(shares: np.ndarray, kinds: list[str]) -> float:
    """H(e) − H(e | kind), another way to write it."""

    def entropy(distribution: np.ndarray) -> float:
        return -sum(p * np.log(p) for p in distribution if p > 0)

    names = sorted(set(kinds))
    of_kind = [shares[[i for i, kind in enumerate(kinds) if kind == name]] for name in names]
    return entropy(shares.mean(0)) - sum(len(s) / len(shares) * entropy(s.mean(0)) for s in of_kind)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3))
def test_kind_information_is_the_difference_of_two_entropies(seed, images, kinds, top_k):
    generator = np.random.default_rng(seed)
    selected = generator.permuted(np.tile(np.arange(4), (images, 1)), axis=1)[:, :top_k]
    labels = [f"kind {number}" for number in generator.integers(kinds, size=images)]
    shares = choice_shares(selected, 4)
    information, by_chance = kind_information(shares, labels, permutations=3)
    assert information == pytest.approx(reference_information(shares, labels), abs=1e-12)
    assert -1e-12 <= by_chance <= np.log(4) + 1e-12


def test_chance_is_the_mean_over_shuffled_kinds():
    generator = np.random.default_rng(2)
    shares = choice_shares(generator.integers(6, size=(30, 1)), 6)
    kinds = ["forest"] * 5 + ["desert"] * 10 + ["underwater"] * 15
    by_chance = kind_information(shares, kinds, permutations=4000)[1]
    shuffled = [reference_information(shares, list(generator.permutation(kinds))) for _ in range(1000)]
    assert by_chance == pytest.approx(np.mean(shuffled), rel=0.03)
    assert kind_information(shares, kinds) == kind_information(shares, kinds)  # the seed is fixed


def test_independent_choices_say_nothing_beyond_chance_and_dependent_ones_do():
    generator = np.random.default_rng(3)
    kinds = ["forest", "desert", "underwater"] * 8
    beyond, raw = [], []
    for _ in range(200):
        information, by_chance = kind_information(choice_shares(generator.integers(6, size=(24, 1)), 6), kinds, 32)
        raw.append(information)
        beyond.append(information - by_chance)
    assert np.mean(raw) > 0.15  # what 24 images show of nothing
    assert abs(np.mean(beyond)) < 0.01
    told = choice_shares(np.array([[0, 1], [2, 3], [4, 5]] * 8), 6)
    assert kind_information(told, kinds)[0] == pytest.approx(np.log(3))


def test_churn_counts_choices_that_were_not_there_before():
    before = np.array([[[0, 1]], [[2, 3]]])
    assert churn(before, before[..., ::-1]) == 0
    assert churn(before, np.array([[[0, 4]], [[2, 3]]])) == 0.25
    assert churn(before, before + 1) == 0.5  # 0, 1 → 1, 2 and 2, 3 → 3, 4: one of two kept in each


def test_joined_parts_do_not_depend_on_who_had_which_image():
    whole = routed(np.random.default_rng(4).dirichlet(np.ones(6), size=20), regions=4)
    kinds = ("a", "b", "c", "d", "e")

    def part(rows: slice) -> RoutedImages:
        return RoutedImages(
            whole.indices[rows], kinds[rows], whole.probabilities[rows], whole.selected[rows], whole.saturated[rows]
        )

    joined = RoutedImages.joined([part(slice(1, None, 2)), part(slice(0, None, 2))])
    assert joined.kinds == kinds
    np.testing.assert_array_equal(joined.selected, whole.selected)
    np.testing.assert_array_equal(joined.probabilities, whole.probabilities)
    np.testing.assert_array_equal(joined.indices, whole.indices)
