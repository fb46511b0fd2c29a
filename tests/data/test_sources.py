from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from camox.data.sources import Subset, held_out_split, open_source, open_sources
from camox.errors import DataError


def write_pairs(root, count=3):
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (10, 14, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(random.integers(0, 2, (10, 14), dtype=np.uint8) * 255).save(root / f"masks/{i}.png")
    return {"layout": "folder", "images": str(root / "images"), "masks": str(root / "masks")}


groups_strategy = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=2, max_size=80)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**31)


@given(groups_strategy, fractions, seeds)
def test_split_is_disjoint_complete_and_ascending(groups, fraction, seed):
    training, held_out = held_out_split(groups, fraction, seed)
    assert sorted(training + held_out) == list(range(len(groups)))
    assert training == sorted(training)
    assert held_out == sorted(held_out)
    assert training
    assert held_out


@given(groups_strategy, fractions, seeds)
def test_split_keeps_one_of_every_larger_group_for_training(groups, fraction, seed):
    training, _ = held_out_split(groups, fraction, seed)
    kept = {groups[i] for i in training}
    assert all(group in kept for group, size in Counter(groups).items() if size >= 2)


@given(groups_strategy, fractions, seeds)
@example(["a"] * 2 + ["b"] * 8 + ["c"] * 2, 0.71875, 0)
def test_split_takes_the_same_part_of_every_group(groups, fraction, seed):
    _, held_out = held_out_split(groups, fraction, seed)
    taken, sizes = Counter(groups[i] for i in held_out), Counter(groups)
    # A group of two keeps one for training: what it cannot give the others do.
    shortfall = sum(max(0.0, fraction * size - max(size - 1, 1)) for size in sizes.values())
    for group, size in sizes.items():
        assert taken[group] <= fraction * size + 1 + shortfall or len(held_out) == 1


@given(groups_strategy, fractions, seeds)
def test_split_is_deterministic(groups, fraction, seed):
    assert held_out_split(groups, fraction, seed) == held_out_split(list(groups), fraction, seed)


def test_split_of_many_samples_holds_out_the_fraction():
    groups = ["a"] * 500 + ["b"] * 300 + ["c"] * 200
    _, held_out = held_out_split(groups, 0.1, 0)
    assert Counter(groups[i] for i in held_out) == {"a": 50, "b": 30, "c": 20}


def test_split_depends_on_the_seed():
    groups = ["a"] * 100
    assert held_out_split(groups, 0.1, 0) != held_out_split(groups, 0.1, 1)


@pytest.mark.parametrize(("groups", "fraction"), [(["a"], 0.5), ([], 0.5), (["a"] * 9, 0.0), (["a"] * 9, 1.0)])
def test_impossible_splits(groups, fraction):
    with pytest.raises(DataError):
        held_out_split(groups, fraction, 0)


def test_folder_samples_are_what_was_written(tmp_path):
    source = open_source(write_pairs(tmp_path))
    sample = source[1]
    assert np.array_equal(sample.image, np.array(Image.open(tmp_path / "images/1.png")))
    assert np.array_equal(sample.mask * 255, np.array(Image.open(tmp_path / "masks/1.png")))
    assert (sample.name, sample.group) == ("1", "")


@pytest.mark.parametrize(("name", "label"), [(None, "folder"), ("mine", "mine")])
def test_label_is_the_layout_unless_named(tmp_path, name, label):
    assert open_source({**write_pairs(tmp_path), "name": name}).label == label


def test_concatenation_is_one_source_after_the_other(tmp_path):
    first, second = write_pairs(tmp_path / "a", 3), write_pairs(tmp_path / "b", 2)
    both = open_sources([first, {**second, "name": "second"}])
    assert both.label == "folder + second"
    assert list(both.names) == ["0", "1", "2", "0", "1"]
    assert [both[i].name for i in range(5)] == both.names
    with pytest.raises(IndexError):
        both[5]


def test_subset_keeps_its_order(tmp_path):
    subset = Subset(open_source(write_pairs(tmp_path)), [2, 0])
    assert list(subset.names) == ["2", "0"]
    assert [subset[i].name for i in range(2)] == ["2", "0"]


def test_a_recognised_layout_is_explained_and_called_after_its_folder(tmp_path):
    write_pairs(tmp_path / "NC4K")
    source = open_source({"layout": "auto", "path": str(tmp_path / "NC4K")})
    assert source.label == "NC4K"
    (remark,) = source.remarks
    assert remark.startswith("layout pairs: images in ")
    assert open_source({"layout": "pairs", "path": str(tmp_path / "NC4K")}).remarks == []


def test_samples_keep_the_weight_of_their_source_in_every_part(tmp_path):
    files = {**write_pairs(tmp_path), "weight": 0.5}
    habitats = {"synthetic": "habitats", "count": 4, "size": 32, "weight": 3.0}
    joined = open_sources([files, habitats])
    assert list(joined.weights) == [0.5] * 3 + [3.0] * 4
    assert list(Subset(joined, [6, 0, 1]).weights) == [3.0, 0.5, 0.5]


def test_notices_say_which_source_they_are_of(tmp_path):
    specification = write_pairs(tmp_path / "a")
    (tmp_path / "a/images/0.png").unlink()
    source = open_sources([{**specification, "name": "mine"}, write_pairs(tmp_path / "b")])
    assert [notice.split(" masks")[0] for notice in source.notices] == ["mine: 1"]


def test_split_in_the_specification_comes_before_the_default(tmp_path):
    with pytest.raises(DataError, match="no test part"):
        open_source({"layout": "cod10k", "path": str(tmp_path), "split": "test"}, split="train")
    with pytest.raises(DataError, match="no test part"):
        open_source({"layout": "cod10k", "path": str(tmp_path), "split": None}, split="test")


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"layout": "coco"}, "unknown form"),
        ({"layout": "folder", "images": "a"}, "masks is missing"),
        ({"layout": "cod10k", "path": "a", "masks": "b"}, "unknown masks"),
    ],
)
def test_wrong_specifications(specification, message):
    with pytest.raises(DataError, match=message):
        open_source(specification)


def test_synthetic_habitats_open_as_a_source():
    source = open_source({"synthetic": "habitats", "count": 5, "size": 32, "seed": 3, "name": None})
    sample = source[4]
    assert (len(source), source.label, list(source.notices)) == (5, "habitats", [])
    assert (sample.name, sample.group) == (source.names[4], source.groups[4])


def test_mask_that_changed_its_size_after_opening_is_named(tmp_path):
    source = open_source(write_pairs(tmp_path))
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "masks/1.png")
    with pytest.raises(DataError, match=r"masks/1\.png: the mask is 3x3"):
        source[1]


@pytest.mark.parametrize("name", ["coco_open", "pets_open", "kvasir_open", "coffee_leaf_open"])
def test_real_photographs_open(open_pairs, name):
    root = open_pairs / name
    source = open_source({"layout": "folder", "images": str(root / "images"), "masks": str(root / "masks")})
    for i in range(0, len(source), 5):
        sample = source[i]
        assert sample.image.shape == (*sample.mask.shape, 3)
        assert sample.mask.max() <= 1
