"""Protocol "camox": what its values must obey, and that a summary does not depend on how it was gathered."""

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from camox.measures.evaluator import Evaluator, measure_image
from camox.measures.protocol import ALL_MEASURES, CURVE_FAMILIES, get_protocol

HIGHER_IS_BETTER = [name for name in ALL_MEASURES if name != "mae"]


def disc(size=48, radius=9, centre=(20, 26)):
    return cv2.circle(np.zeros((size, size), np.uint8), centre, radius, 1, -1)


def single(row, column, shape):
    truth = np.zeros(shape, np.uint8)
    truth[row, column] = 1
    return truth


def random_map(seed, truth):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random(truth.shape, np.float32), (0, 0), 2)
    return np.clip(0.6 * cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 2) + 0.4 * noise, 0, 1)


def random_images(count=9):
    """(index, name, group, probability, truth) of several sizes; every fourth has no object."""
    images = []
    for index in range(count):
        truth = disc(size=40 + index, radius=3 + index) if index % 4 != 3 else np.zeros((40, 50), np.uint8)
        images.append((index, f"image_{index}", "AB"[index % 2], random_map(index, truth), truth))
    return images


def evaluated(images, **settings):
    evaluator = Evaluator(**settings)
    for image in images:
        evaluator.add(*image)
    return evaluator


TRUTHS = {
    "disc": disc(),
    "one pixel": single(7, 9, (31, 40)),
    "one pixel in a large image": single(700, 300, (1500, 1000)),
    "first pixel": single(0, 0, (31, 40)),
    "last pixel": single(30, 39, (31, 40)),
    "all but one pixel": 1 - single(7, 9, (31, 40)),
    "full": np.ones((31, 40), np.uint8),
    "1×1": np.ones((1, 1), np.uint8),
    "one row": np.array([[0, 0, 1, 1, 0, 1]], np.uint8),
    "two objects": disc() | disc(radius=2, centre=(40, 40)),
}


@pytest.mark.parametrize("case", TRUTHS)
def test_a_perfect_map_scores_exactly_one(case):
    scalars = measure_image(TRUTHS[case].astype(np.float32), TRUTHS[case]).scalars
    assert scalars == {name: 0.0 if name == "mae" else 1.0 for name in ALL_MEASURES}


@given(
    data=st.data(),
    shape=arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
)
@settings(max_examples=150, deadline=None)
def test_values_stay_within_zero_and_one(data, shape):
    levels = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
    probability = data.draw(arrays.arrays(np.float32, shape, elements=levels))
    truth = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)))
    result = measure_image(probability, truth)
    values = np.array([*result.scalars.values(), *np.ravel(list(result.curves.values()))])
    assert np.all((values >= 0) & (values <= 1))


@pytest.mark.parametrize("value", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("name", ["f_weighted", "f_adaptive", "iou_adaptive", "dice_adaptive"])
def test_a_constant_map_finds_next_to_nothing(value, name):
    truth = single(7, 9, (31, 40))
    assert measure_image(np.full(truth.shape, value, np.float32), truth).scalars[name] < 0.01


def test_an_empty_map_scores_zero_wherever_an_object_must_be_found():
    scalars = measure_image(np.zeros((48, 48), np.float32), disc()).scalars
    found = [name for name in HIGHER_IS_BETTER if not name.startswith(("s_", "e_"))]
    assert {name: scalars[name] for name in found} == dict.fromkeys(found, 0.0)
    # A map that says nothing has an alignment of 0 everywhere, which E turns into a quarter.
    assert {scalars[name] for name in ("e_max", "e_mean", "e_adaptive")} == {0.25}


@pytest.mark.parametrize("name", HIGHER_IS_BETTER)
def test_a_map_nearer_to_the_truth_scores_higher(name):
    truth = disc()
    noise = np.random.default_rng(3).random(truth.shape)
    wrong_share = (0.4, 0.2, 0.1, 0.05, 0.0)
    maps = [np.where(noise < share, 1 - truth, truth).astype(np.float32) for share in wrong_share]
    values = [measure_image(probability, truth).scalars[name] for probability in maps]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_the_curve_starts_and_ends_between_nothing_and_everything():
    truth = disc()
    probability = np.full(truth.shape, 0.25, np.float32)
    iou = measure_image(probability, truth).curves["iou"]
    assert iou[:64] == pytest.approx(truth.mean())  # thresholds below a quarter call every pixel object
    assert not iou[64:].any()


def test_iou_and_dice_are_at_one_half_without_stretching():
    truth = np.array([[1, 1, 0, 0]], np.uint8)
    scalars = measure_image(np.array([[0.5, 0.49, 0.6, 0.0]], np.float32), truth).scalars
    assert scalars["iou"] == pytest.approx(1 / 3)
    assert scalars["dice"] == pytest.approx(1 / 2)


def test_a_faint_map_is_not_stretched():
    truth = disc()
    assert measure_image(truth.astype(np.float32) * 0.4, truth).scalars["iou"] == 0
    assert measure_image(truth.astype(np.float32) * 0.4, truth).scalars["mae"] == pytest.approx(0.6 * truth.mean())


@pytest.mark.parametrize("protocol", ["camox", "pysod"])
@pytest.mark.parametrize("name", ALL_MEASURES)
def test_a_measure_does_not_depend_on_which_others_are_asked_for(protocol, name):
    truth = disc()
    probability = random_map(1, truth)
    alone = measure_image(probability, truth, protocol, [name]).scalars
    assert alone == {name: measure_image(probability, truth, protocol).scalars[name]}


@pytest.mark.parametrize("protocol", ["camox", "pysod"])
def test_a_summary_does_not_depend_on_order_or_shards(protocol):
    images = random_images()
    expected = evaluated(images, protocol=protocol).summary()
    assert evaluated(images[::-1], protocol=protocol).summary() == expected
    shards = [evaluated(images[rank::3], protocol=protocol) for rank in range(3)]
    gathered = Evaluator(protocol)
    for shard in shards:
        gathered.extend(pickle.loads(pickle.dumps(shard.results)))
    assert gathered.summary() == expected


def test_the_maximum_is_that_of_the_mean_curve():
    images = [image for image in random_images() if image[4].any()]
    evaluator = evaluated(images)
    summary = evaluator.summary()
    for family in CURVE_FAMILIES:
        mean_curve = np.mean([record.result.curves[family] for record in evaluator.results], axis=0)
        assert summary[f"{family}_max"] == mean_curve.max()
        assert summary[f"{family}_mean"] == pytest.approx(mean_curve.mean())
    of_images = [record.result.scalars["f_max"] for record in evaluator.results]
    assert summary["f_max"] < np.mean(of_images)


def test_every_other_measure_is_the_mean_over_images():
    images = [image for image in random_images() if image[4].any()]
    evaluator = evaluated(images)
    summary = evaluator.summary()
    for name in (name for name in ALL_MEASURES if not name.endswith("_max")):
        values = [record.result.scalars[name] for record in evaluator.results]
        assert summary[name] == pytest.approx(np.mean(values)), name


def test_groups_are_summarised_as_if_they_were_alone():
    images = random_images()
    groups = evaluated(images).summary()["groups"]
    assert groups.keys() == {"A", "B"}
    alone = evaluated([image for image in images if image[2] == "B"]).summary()
    assert groups["B"] == {name: alone[name] for name in ("count", *ALL_MEASURES)}


def test_images_without_an_object_stay_out_of_the_means():
    images = random_images()
    with_object = [image for image in images if image[4].any()]
    summary, alone = evaluated(images).summary(), evaluated(with_object).summary()
    assert summary["count"] == len(with_object)
    assert {name: summary[name] for name in ALL_MEASURES} == {name: alone[name] for name in ALL_MEASURES}
    assert summary["empty"]["count"] == 2


def test_false_positives_are_areas_and_objects_above_one_in_a_thousand():
    truth = np.zeros((100, 100), np.uint8)
    speck, blob, clean = (np.zeros((100, 100), np.float32) for _ in range(3))
    speck[::20, ::20] = 0.9  # 25 objects of one pixel each
    blob[10:15, 10:15] = 0.5
    evaluator = Evaluator()
    for index, probability in enumerate((speck, blob, clean)):
        evaluator.add(index, "", "", probability, truth)
    empty = evaluator.summary()["empty"]
    assert empty == {
        "count": 3,
        "false_positive_area": pytest.approx(50 / 30000),
        "false_positive_rate": 1 / 3,
    }


def test_a_summary_of_nothing_has_no_numbers():
    summary = Evaluator(measures=["iou"]).summary()
    nothing = {"count": 0, "false_positive_area": None, "false_positive_rate": None}
    assert summary == {"count": 0, "iou": None, "groups": {}, "empty": nothing}


def test_a_map_is_resized_to_its_truth():
    truth = cv2.resize(disc(), (130, 96), interpolation=cv2.INTER_NEAREST)
    small = cv2.resize(truth.astype(np.float32), (65, 48), interpolation=cv2.INTER_LINEAR)
    evaluator = Evaluator()
    evaluator.add(0, "a", "", small, truth)
    assert evaluator.summary()["iou"] > 0.95


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, r"image 4 \(crab\).*has NaN"), (1.5, "leaves"), (-0.1, "leaves")]
)
def test_a_broken_map_is_refused_with_its_name(value, message):
    probability = np.full((4, 4), 0.5, np.float32)
    probability[1, 2] = value
    with pytest.raises(ValueError, match=message):
        Evaluator().add(4, "crab", "", probability, np.ones((2, 2), np.uint8))


def test_an_image_added_twice_is_refused():
    image = random_images(1)[0]
    evaluator = evaluated([image])
    with pytest.raises(ValueError, match=r"image 0 .* added twice"):
        evaluator.add(*image)
    with pytest.raises(ValueError, match=r"image 0 .* added twice"):
        evaluator.extend(evaluator.results)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown measures s_measur"):
        Evaluator(measures=["s_measur"])
    with pytest.raises(ValueError, match="unknown protocol 'sod'"):
        Evaluator("sod")


def test_a_truth_that_is_not_binary_is_refused():
    with pytest.raises(ValueError, match="0 and 1"):
        measure_image(np.zeros((2, 2), np.float32), np.full((2, 2), 255, np.uint8))


@pytest.mark.parametrize("level", [1, 2, 128])
def test_label_masks_are_read_as_labels_by_camox_alone(level):
    labels = np.array([[0, level]], np.uint8)
    assert get_protocol("camox").binarise_truth(labels).tolist() == [[0, 1]]
    assert get_protocol("pysod").binarise_truth(labels).tolist() == [[0, 0]]


@pytest.mark.parametrize("protocol", ["camox", "pysod"])
def test_grey_masks_are_cut_above_128(protocol):
    levels = np.array([[0, 1, 128, 129, 255]], np.uint8)
    assert get_protocol(protocol).binarise_truth(levels).tolist() == [[0, 0, 0, 1, 1]]
