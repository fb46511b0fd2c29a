"""The table of experts by kind of image says what routers did, and is drawn whatever its size."""

import numpy as np
import pytest

from camox.inference.routing_pictures import choices_by_kind, draw_choices
from camox.measures.routing import RoutedImages

EXPERTS = ("texture", "edge", "contrast")


def routed(selected, kinds, experts=3):
    """`selected` [n, r, k]; weights fall from the first expert to the last."""
    selected = np.array(selected)
    weights = np.arange(experts, 0, -1) / (experts * (experts + 1) / 2)
    probabilities = np.broadcast_to(weights, (*selected.shape[:2], experts))
    indices, saturated = np.arange(len(selected)), np.zeros(selected.shape[:2], bool)
    return RoutedImages(indices, tuple(kinds), probabilities, selected, saturated)


def test_a_row_is_what_the_images_of_a_kind_chose():
    images = routed([[[0, 1]], [[1, 0]], [[1, 2]], [[2, 0]]], ["rock", "forest", "rock", "forest"])
    every, forest, rock = choices_by_kind(images)
    np.testing.assert_allclose(every, [3 / 8, 3 / 8, 2 / 8])
    np.testing.assert_allclose(forest, [2 / 4, 1 / 4, 1 / 4])
    np.testing.assert_allclose(rock, [1 / 4, 2 / 4, 1 / 4])


def test_each_region_of_an_image_counts():
    images = routed([[[0], [0], [0], [1]], [[2], [2], [2], [2]]], ["", ""])
    np.testing.assert_allclose(choices_by_kind(images), [[3 / 8, 1 / 8, 4 / 8]])


def test_images_without_a_kind_are_in_no_row_but_the_first():
    assert len(choices_by_kind(routed([[[0]], [[1]], [[2]]], ["rock", "", ""]))) == 2


def test_where_nothing_is_chosen_weights_are_shown():
    images = routed([[[2, 0, 1]], [[0, 1, 2]]], ["rock", "forest"])
    np.testing.assert_allclose(choices_by_kind(images), [[3 / 6, 2 / 6, 1 / 6]] * 3)


@pytest.mark.parametrize(
    ("kinds", "scales"),
    [
        (["", ""], (32,)),
        (["rock", "forest"], (4, 8, 16)),
        ([f"a kind with a long name {number}" for number in range(12)], (4, 32)),
    ],
)
def test_nothing_that_is_drawn_leaves_the_picture(kinds, scales):
    picture = draw_choices({scale: routed([[[0, 1]]] * len(kinds), kinds) for scale in scales}, EXPERTS)
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    edges = np.concatenate([picture[:3].ravel(), picture[-3:].ravel(), picture[:, :3].ravel(), picture[:, -3:].ravel()])
    assert (edges == 255).all()
    assert (picture < 100).any()


def test_another_routing_gives_another_picture_and_the_same_one_the_same():
    kinds = ["rock", "forest"]
    one, same, other = (
        draw_choices({4: routed(selected, kinds)}, EXPERTS)
        for selected in ([[[0]], [[1]]], [[[0]], [[1]]], [[[0]], [[2]]])
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_there_is_no_picture_of_nothing():
    broken = routed([[[0, 1, 2]]], ["rock"])
    assert draw_choices({}, EXPERTS) is None
    assert (
        draw_choices({4: RoutedImages(**{**vars(broken), "probabilities": np.full((1, 1, 3), np.nan)})}, EXPERTS)
        is None
    )
