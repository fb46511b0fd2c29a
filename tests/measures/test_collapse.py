"""The truth table of the collapse verdict, from decisions to signs, and from signs to a verdict."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.measures.collapse import WHAT_TO_DO, CollapseVerdict, collapse_signs, is_uniform
from camox.measures.routing import RoutedImages, routing_measures

IMAGES = 600


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def decided(logits: np.ndarray, top_k: int = 2, saturated: float = 0.0) -> dict[str, float]:
    """Measures of the decisions that these logits `[n, E]` give; a share of them is at the limit."""
    images, experts = logits.shape
    selected = np.argsort(-logits, axis=1, kind="stable")[:, None, :top_k]
    at_limit = (np.arange(images) < saturated * images)[:, None]
    routed = RoutedImages(np.arange(images), ("",) * images, softmax(logits)[:, None], selected, at_limit)
    return routing_measures(routed.sums(), {f"expert_{number}": 1.0 for number in range(experts)})


def noise(spread: float, images: int = IMAGES, experts: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(0, spread, (images, experts))


def favouring(*experts: int, images: float = 1.0, by: float = 20.0) -> np.ndarray:
    """A logit more for these experts, in the first share of the images."""
    logits = np.zeros((IMAGES, 6))
    logits[: int(images * IMAGES), list(experts)] = by
    return logits


# name → logits, further arguments of `decided`, signs
TRUTH: dict[str, tuple[np.ndarray, dict[str, float], set[str]]] = {
    "healthy: decided, even": (noise(2), {}, set()),
    "healthy: one expert in half of the images": (noise(2) + favouring(0, images=0.5), {}, set()),
    "healthy: an expert with a tenth of an equal share": (noise(2) - favouring(5, images=0.87), {}, set()),
    "a dead expert": (noise(2) - favouring(5), {}, {"dead"}),
    "one pair, decided by the image": (noise(2) + favouring(0, 1, images=0.93), {}, {"one_pair", "few_experts"}),
    "one pair in less than nine tenths": (noise(2) + favouring(0, 1, images=0.85), {}, {"few_experts"}),
    "one pair, whatever the image": (
        favouring(0, 1),
        {},
        {"dead", "one_pair", "few_experts", "uninformed"},
    ),
    "uniform, learned nothing": (noise(0.05), {}, {"uninformed"}),
    "four of six experts": (noise(2) - favouring(4, 5), {}, {"dead"}),
    "one expert in all, the second by the image": (noise(2) + favouring(0, by=6), {}, set()),
    "saturated": (noise(2), {"saturated": 0.6}, {"saturated"}),
    "saturated in less than half": (noise(2), {"saturated": 0.45}, set()),
}


@pytest.mark.parametrize("case", TRUTH)
def test_signs(case):
    logits, arguments, expected = TRUTH[case]
    signs = collapse_signs(decided(logits, **arguments), 6, 2, IMAGES)
    assert set(signs) == expected, signs
    assert set(signs) <= set(WHAT_TO_DO)


def test_every_sign_occurs_in_the_table():
    assert set.union(*(signs for *_, signs in TRUTH.values())) == set(WHAT_TO_DO)


def test_a_sign_tells_the_number_and_the_limit():
    signs = collapse_signs(decided(favouring(0, 1), saturated=0.6), 6, 2, IMAGES)
    assert signs["dead"] == 'expert "expert_2" gets 0.0% of an equal share of the choices (limit 5%)'
    assert signs["one_pair"] == "one pair of experts takes 100.0% of the decisions (limit 90%)"
    assert signs["few_experts"] == "2.00 of 6 experts do the work in effect (limit 3)"
    assert signs["uninformed"] == "experts tell 0.0000 nat about the image (limit 0.002): all are treated alike"
    assert signs["saturated"] == "in 60.0% of the decisions a logit is at its limit (limit 50%)"


@pytest.mark.parametrize(
    ("measures", "sign"),
    [
        ({"usage/a": 0.0501 / 6}, None),
        ({"usage/a": 0.0499 / 6}, "dead"),
        ({"pair_share": 0.9}, None),
        ({"pair_share": 0.901}, "one_pair"),
        ({"entropy": np.log(3.001)}, None),
        ({"entropy": np.log(2.999)}, "few_experts"),
        ({"mutual_information": 0.00201}, None),
        ({"mutual_information": 0.00199}, "uninformed"),
        ({"saturation": 0.5}, None),
        ({"saturation": 0.501}, "saturated"),
    ],
)
def test_limits(measures, sign):
    assert list(collapse_signs(measures, 6, 2, IMAGES)) == ([] if sign is None else [sign])


def test_a_choice_of_all_experts_can_still_be_uninformed_or_saturated():
    assert collapse_signs(decided(noise(2), top_k=6), 6, 6, IMAGES) == {}
    signs = collapse_signs(decided(noise(0.01), top_k=6, saturated=0.7), 6, 6, IMAGES)
    assert set(signs) == {"uninformed", "saturated"}


@given(st.integers(2, 8), st.integers(1, 7))
def test_a_decided_and_even_router_shows_no_sign_whatever_the_numbers(experts, top_k):
    """Fewer experts, or more per image, must not look like collapse."""
    top_k = min(top_k, experts)
    assert collapse_signs(decided(noise(2, experts=experts), top_k), experts, top_k, IMAGES) == {}


def test_two_experts_in_every_decision_leave_the_others_free_where_more_are_chosen():
    measures = decided(noise(2) + favouring(0, 1, by=4), top_k=4)
    assert measures["pair_share"] > 0.9
    assert collapse_signs(measures, 6, 4, IMAGES) == {}


def test_where_there_is_nothing_to_tell_there_is_no_sign():
    assert collapse_signs({}, 6, 2, IMAGES) == {}
    assert collapse_signs(decided(np.zeros((IMAGES, 1)), top_k=1), 1, 1, IMAGES) == {}
    few = decided(noise(2, images=31))
    assert collapse_signs(few | {"usage/expert_0": 0.0}, 6, 2, 31) == {}
    assert set(collapse_signs(few | {"usage/expert_0": 0.0}, 6, 2, 32)) == {"dead"}


def test_a_router_is_uniform_where_no_image_has_a_preference():
    assert is_uniform(decided(noise(0.05)), 6)
    assert not is_uniform(decided(favouring(0, 1)), 6)  # uninformed as well, but of one mind
    assert not is_uniform(decided(noise(2)), 6)
    assert not is_uniform({}, 6)


DEAD, PAIR = {"dead": "…"}, {"one_pair": "…"}
NONE: dict[str, str] = {}


@pytest.mark.parametrize(
    ("history", "begins"),
    [
        ([NONE, NONE], [False, False]),
        ([DEAD], [False]),
        ([DEAD, NONE, DEAD, NONE], [False, False, False, False]),
        ([DEAD, DEAD], [False, True]),
        ([DEAD, PAIR], [False, True]),
        ([DEAD] * 9, [False, True, False, True, False, False, False, True, False]),
        ([DEAD, DEAD, NONE, DEAD, PAIR], [False, True, False, False, True]),
    ],
    ids=[
        "healthy",
        "once",
        "now and then",
        "twice",
        "another sign",
        "told again after 4 and 8",
        "told again after recovery",
    ],
)
def test_two_evaluations_in_a_row(history, begins):
    verdict = CollapseVerdict()
    assert [8 in verdict.update({8: signs}) for signs in history] == begins
    assert verdict.collapsed == ([8] if all(history[-2:]) and len(history) > 1 else [])


@pytest.mark.parametrize(
    ("history", "begins"),
    [([DEAD, DEAD, DEAD], [False] * 3), ([NONE, DEAD, DEAD], [False, False, True])],
    ids=["never sound", "sound before"],
)
def test_early_only_what_was_sound_is_judged(history, begins):
    verdict = CollapseVerdict()
    assert [8 in verdict.update({8: signs}, early=True) for signs in history] == begins


def test_scales_are_judged_apart():
    verdict = CollapseVerdict()
    assert verdict.update({4: DEAD, 8: NONE}) == {}
    assert verdict.update({4: NONE, 8: DEAD}) == {}
    assert verdict.update({4: DEAD, 8: DEAD}) == {8: 2}


@given(st.lists(st.sampled_from([NONE, DEAD, PAIR]), max_size=6), st.integers(0, 6))
def test_a_saved_verdict_goes_on_as_if_never_interrupted(history: list[Mapping[str, str]], at: int):
    whole, first, second = CollapseVerdict(), CollapseVerdict(), CollapseVerdict()
    expected = [whole.update({4: signs}) for signs in history]
    before = [first.update({4: signs}) for signs in history[:at]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + [second.update({4: signs}) for signs in history[at:]] == expected
