"""Datasets are recognised by their folders, and what is not one says what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.data.layouts import IMAGE_FOLDERS, LAYOUTS, MASK_FOLDERS, locate, splits_of
from camox.errors import DataError

COD10K = ["Train/Image", "Train/GT_Object", "Train/GT_Instance", "Test/Image", "Test/GT_Object", "Info"]
CAMO = ["Images/Train", "Images/Test", "GT"]
SINET = ["TrainDataset/Imgs", "TrainDataset/GT", "TrainDataset/Edge", "TestDataset/CAMO/Imgs", "TestDataset/CAMO/GT"]
HALVES = ["train/Imgs", "train/GT", "train/Edges", "test/Imgs", "test/GT"]
PAIR = ["Imgs", "GT"]
DIVIDED = ["images/train", "images/test", "masks/train", "masks/test"]
CAMO_DIVIDED = ["Images/Train", "Images/Test", "GT/Train", "GT/Test"]


def made(root, folders):
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("folders", "layout", "train", "test"),
    [
        (COD10K, "cod10k", ("Train/Image", "Train/GT_Object"), ("Test/Image", "Test/GT_Object")),
        (CAMO, "camo", ("Images/Train", "GT"), ("Images/Test", "GT")),
        (SINET, "sinet", ("TrainDataset/Imgs", "TrainDataset/GT"), ("TestDataset/CAMO/Imgs", "TestDataset/CAMO/GT")),
        (HALVES, "pairs", ("train/Imgs", "train/GT"), ("test/Imgs", "test/GT")),
        (PAIR, "pairs", ("Imgs", "GT"), ("Imgs", "GT")),
        (DIVIDED, "pairs", ("images/train", "masks/train"), ("images/test", "masks/test")),
        (CAMO_DIVIDED, "camo", ("Images/Train", "GT/Train"), ("Images/Test", "GT/Test")),
    ],
)
@pytest.mark.parametrize("capitals", [str, str.lower, str.upper])
def test_a_layout_is_recognised_and_takes_its_own_name(tmp_path, folders, layout, train, test, capitals):
    root = made(tmp_path, [capitals(folder) for folder in folders])
    for split, expected in (("train", train), ("test", test)):
        found = locate(root, "auto", split)
        (part,) = found.parts
        assert (found.layout, part.images, part.masks) == (layout, *(root / capitals(name) for name in expected))
        assert locate(root, layout, split) == found
        assert f"layout {layout}: images in {part.images}, masks in {part.masks}" == found.explanation
    assert splits_of(root) == ("train", "test")


@given(images=st.sampled_from(IMAGE_FOLDERS), masks=st.sampled_from(MASK_FOLDERS))
def test_a_folder_of_images_beside_one_of_masks_is_a_dataset(tmp_path_factory, images, masks):
    root = made(tmp_path_factory.mktemp("set"), [images, masks, "Edge", ".hidden"])
    (part,) = locate(root).parts
    assert (part.images.name, part.masks.name) == (images, masks)


def test_images_beside_a_folder_of_the_other_split_are_the_first_split(tmp_path):
    (made(tmp_path, ["images/test", "masks/test"]) / "images" / "a.jpg").touch()
    for split, expected in (("train", "images"), ("test", "images/test")):
        (part,) = locate(tmp_path, split=split).parts
        assert part.images == tmp_path / expected


def test_the_name_as_written_wins_over_the_same_in_capitals(tmp_path):
    (part,) = locate(made(tmp_path, ["imgs", "Imgs", "gt"])).parts
    assert part.images.name == "imgs"


def test_every_set_of_a_collection_is_a_part(tmp_path):
    root = made(tmp_path, [f"TestDataset/{name}/{inner}" for name in ("NC4K", "CAMO") for inner in ("Imgs", "GT")])
    for path in (root, root / "TestDataset"):
        found = locate(path, split="test")
        assert [part.name for part in found.parts] == ["CAMO", "NC4K"]
        assert found.explanation.endswith("and 1 more sets")
        assert splits_of(path) == ("test",)
    assert locate(root / "TestDataset" / "CAMO").layout == "pairs"


@pytest.mark.parametrize(
    ("folders", "arguments", "message"),
    [
        (["Train/Image", "Train/GT_Object"], ("auto", "test"), 'only a train part: give split = "train"'),
        (["images/test", "masks/test"], ("auto", "train"), 'only a test part: give split = "test"'),
        (["COD10K-v3/Train/Image", "COD10K-v3/Train/GT_Object"], ("cod10k",), "itself, but .*COD10K-v3 does"),
        (["a/Imgs", "a/GT", "b/Imgs", "b/GT"], (), r"itself, but .*a \(and 1 more\) does: use that path"),
        (CAMO, ("cod10k",), 'expects Train/Image .*it has layout = "camo"'),
        (["photos", "GT"], (), r'no known layout .*holds GT, photos\. .*layout = "folder"'),
        ([], (), "holds no folder"),
        (PAIR, ("auto", "valid"), 'split is "valid"'),
        (PAIR, ("cod",), 'layout "cod" is unknown: use one of auto, cod10k'),
    ],
)
def test_what_is_no_dataset_says_what_to_do(tmp_path, folders, arguments, message):
    with pytest.raises(DataError, match=message):
        locate(made(tmp_path, folders), *arguments)


@pytest.mark.parametrize("place", ["train.parquet", "data/train-00000-of-00001.parquet", "data.arrow"])
def test_a_folder_of_rows_is_a_source_of_another_kind(tmp_path, place):
    made(tmp_path, ["data"])
    (tmp_path / place).touch()
    with pytest.raises(DataError, match=rf'an experiment reads them by \{{ hub = "{tmp_path}" \}}'):
        locate(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_folder_says_what_is_expected_in_it(tmp_path, layout):
    with pytest.raises(DataError, match=rf"no folder .*nowhere \(layout {layout} expects .*correct the path"):
        locate(tmp_path / "nowhere", layout)
