import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.inference.prediction.objects import LEAST_SHARE, document, find_objects


def two_squares():
    probability = np.full((50, 80), 0.1, np.float32)
    probability[5:15, 10:30] = 0.8
    probability[30:34, 60:70] = 0.6
    probability[0, 0] = 0.9  # one pixel of 4000: no object of its own
    return probability


def test_area_box_and_score_of_each_object_and_of_all():
    found = find_objects(two_squares(), 0.5)
    assert [one.box for one in found.objects] == [(10, 5, 20, 10), (60, 30, 10, 4)]
    assert [one.area for one in found.objects] == [200, 40]
    assert [one.score for one in found.objects] == pytest.approx([0.8, 0.6])
    assert found.objects[0].share == 200 / 4000
    assert (found.whole.area, found.whole.box) == (241, (0, 0, 70, 34))
    assert found.whole.score == pytest.approx((200 * 0.8 + 40 * 0.6 + 0.9) / 241)
    assert found.highest == pytest.approx(0.9)


def test_parts_that_touch_at_a_corner_are_one_object():
    probability = np.zeros((20, 20), np.float32)
    probability[2:8, 2:8] = probability[8:14, 8:14] = 0.9
    (one,) = find_objects(probability, 0.5).objects
    assert (one.area, one.box) == (72, (2, 2, 12, 12))


def test_the_threshold_decides():
    assert len(find_objects(two_squares(), 0.7).objects) == 1
    nothing = find_objects(two_squares(), 0.95)
    assert (nothing.whole, nothing.objects) == (None, ())


def test_the_document_holds_every_image_with_and_without_an_object():
    found = [("a.jpg", "a.png", find_objects(two_squares(), level)) for level in (0.5, 0.95)]
    written = document(found, 0.5, "asked for", {"checkpoint": "x"})
    assert (written["format"], written["version"]) == ("camox objects", 1)
    some, none = written["images"]
    assert some.keys() == none.keys()
    assert (some["width"], some["height"], some["area"], len(some["objects"])) == (80, 50, 241, 2)
    assert some["objects"][0] == {"area": 200, "share": 0.05, "box": (10, 5, 20, 10), "score": pytest.approx(0.8)}
    assert (none["area"], none["box"], none["score"], none["objects"]) == (0, None, None, [])


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_objects_lie_in_the_mask_and_in_its_box(seed, threshold):
    rng = np.random.default_rng(seed)
    probability = rng.random(rng.integers(1, 40, 2), np.float32)
    found = find_objects(probability, threshold)
    mask = probability >= threshold
    assert (found.whole.area if found.whole else 0) == mask.sum()
    for one in found.objects:
        left, top, width, height = one.box
        assert one.share > LEAST_SHARE
        assert one.area <= mask[top : top + height, left : left + width].sum()
        assert threshold - 1e-6 <= one.score <= 1
    assert sum(one.area for one in found.objects) <= mask.sum()
