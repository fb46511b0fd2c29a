"""Sets of the hub and their local forms, read as the `datasets` library reads them."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import httpx
import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from PIL import Image

from camox.data.cache import cached
from camox.data.hub_columns import choose_columns
from camox.data.huggingface import names_of_files
from camox.data.loading import TrainSet, train_loader
from camox.data.resized import read_resized
from camox.data.sources import open_source, open_sources
from camox.errors import DataError
from tests.data.hub_sets import as_dataset, encoded, rows, write_image_folder, write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_saved(folder: Path, made: list) -> Path:
    datasets.DatasetDict({"train": as_dataset(made)}).save_to_disk(folder)
    return folder


FORMS = {"parquet": write_shards, "saved": write_saved, "image folder": write_image_folder}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(tmp_path, form):
    made = rows(6)
    source = open_source({"hub": str(FORMS[form](tmp_path / "set", made)), "split": "train"})
    assert source.label == "set"
    assert source.names == [Path(row["image_name"]).stem for row in made]
    assert source.groups == ["Aquatic", "Terrestrial"] * 3
    for row, index in zip(made, range(len(source)), strict=True):
        sample = source[index]
        assert encoded(sample.image) == row["image"]["bytes"]
        assert encoded(sample.mask * np.uint8(255)) == row["mask"]["bytes"]
    (remark,) = source.remarks
    assert "images are column image, masks column mask" in remark


def test_several_files_are_one_set_in_order(tmp_path):
    made = rows(7)
    source = open_source({"hub": str(write_shards(tmp_path / "set", made, shards=3))})
    assert source.names == [Path(row["image_name"]).stem for row in made]


def test_files_without_the_librarys_types_are_read_too(tmp_path):
    plain = [{"image": row["image"], "GT": row["mask"]["bytes"]} for row in rows(3)]
    table = datasets.Dataset.from_list(plain).with_format("arrow")[:].replace_schema_metadata(None)
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train-00000-of-00001.parquet")
    source = open_source({"hub": str(tmp_path / "set")})
    assert source.names == ["image_0", "image_1", "image_2"]
    assert source[1].mask.any()


def test_loads_alike_in_worker_processes(tmp_path):
    source = open_source({"hub": str(write_shards(tmp_path / "set", rows(8)))})
    dataset = TrainSet(source, 32, [{"name": "HorizontalFlip", "p": 0.5}], seed=3)
    keys = [[(0, 4), (0, 1)], [(0, 7), (0, 2)]]
    here, there = (list(train_loader(dataset, keys, workers, pin_memory=False)) for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert one.problems == other.problems == []
        assert one.images.equal(other.images)
        assert one.masks.equal(other.masks)


def test_a_process_that_gets_the_source_by_pickle_reopens_it(tmp_path):
    source = open_source({"hub": str(write_shards(tmp_path / "set", rows(3)))})
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[2].image, source[2].image)


def test_a_cache_can_tell_rows_apart_and_when_the_set_changes(tmp_path):
    folder = write_shards(tmp_path / "set", rows(4))
    source = open_source({"hub": str(folder)})
    stamps = [source.content(index) for index in range(4)]
    assert len(set(stamps)) == 4
    assert [open_source({"hub": str(folder)}).content(index) for index in range(4)] == stamps
    write_shards(folder, rows(5)[1:])
    changed = open_source({"hub": str(folder)})
    assert changed.names != source.names
    assert not set(stamps) & {changed.content(index) for index in range(4)}


def test_a_cache_does_not_take_one_part_of_a_split_for_another(tmp_path):
    folder = write_shards(tmp_path / "set", rows(6))
    first, second = (open_source({"hub": str(folder), "split": part}) for part in ("train[:50%]", "train[50%:]"))
    for source in (first, second):
        kept = cached(source, [32], tmp_path / "kept", 1.0, 0, lambda text: None)
        for index in range(3):
            image, mask = read_resized(kept, index, 32)
            assert np.array_equal(image, read_resized(source, index, 32)[0])
            assert np.array_equal(mask, read_resized(source, index, 32)[1])


# ---- columns


def picture(kind="Image", **kwargs):
    return SimpleNamespace(_type=kind, **kwargs)


TEXT = picture("Value", dtype="string")


@pytest.mark.parametrize("mask", ["mask", "Masks", "gt", "GT", "label", "Labels", "annotation", "ground_truth"])
@pytest.mark.parametrize("image", ["image", "Images", "img"])
def test_usual_names_are_recognised(image, mask):
    found = choose_columns({"edge": picture(), image: picture(), mask: picture(), "text": TEXT}, "set")
    assert (found.image, found.mask) == (image, mask)


def test_a_class_label_is_no_mask():
    classes = picture("ClassLabel", names=["cat", "dog"], dtype="int64")
    found = choose_columns({"image": picture(), "gt": picture(), "label": classes}, "set")
    assert found.mask == "gt"
    with pytest.raises(DataError, match=r"no mask column.*image \(Image\), label \(ClassLabel\)"):
        choose_columns({"image": picture(), "label": classes}, "set")


def test_of_two_masks_one_has_to_be_named():
    features = {"image": picture(), "mask": picture(), "gt": picture()}
    with pytest.raises(DataError, match='mask and gt may all be the mask: name the one to take, as in mask = "mask"'):
        choose_columns(features, "set")
    assert choose_columns(features, "set", mask="gt").mask == "gt"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mask": "msk"}, r'no column "msk": set mask to one of image \(Image\)'),
        ({"mask": "caption"}, 'column "caption" holds no images but string'),
        ({"image": "caption"}, 'column "caption" holds no images but string: set image'),
        ({"names": "image"}, 'no column of names "image"'),
    ],
)
def test_columns_that_are_named_must_be_there_and_fit(given, words):
    with pytest.raises(DataError, match=words):
        choose_columns({"image": picture(), "mask": picture(), "caption": TEXT}, "set", **given)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["b/x.jpg", "b/y.png"], ["x", "y"]),
        (["/data/a/1.jpg", "/data/b/1.jpg"], ["a/1", "b/1"]),
        (["x.jpg", "x.jpg"], ["000000", "000001"]),
        (["x.jpg", ""], ["000000", "000001"]),
    ],
)
def test_names_after_files_tell_rows_apart(paths, names):
    assert names_of_files(paths) == names


def test_a_column_of_names_that_tells_no_rows_apart_is_taken_only_where_it_is_wanted(tmp_path):
    folder = str(write_shards(tmp_path / "set", [{**row, "image_name": "crab"} for row in rows(3)]))
    source = open_source({"hub": folder})
    assert source.names == ["image_0", "image_1", "image_2"]
    assert "image_name" not in source.remarks[0]
    with pytest.raises(DataError, match='column "image_name": 2 names occur twice: set names to a column'):
        open_source({"hub": folder, "names": "image_name"})


def test_super_classes_may_be_a_column(tmp_path):
    made = [{**row, "super_class": index % 2} for index, row in enumerate(rows(4))]
    folder = write_shards(tmp_path / "set", made, super_class=datasets.ClassLabel(names=["Flying", "Amphibian"]))
    assert open_source({"hub": str(folder)}).groups == ["Flying", "Amphibian"] * 2
    assert open_source({"hub": str(folder), "super_class": "none"}).groups == [""] * 4


def test_non_camouflaged_images_are_left_out_with_a_count(tmp_path):
    made = rows(3)
    made[1]["image_name"] = "COD10K-NonCAM-1-x-1.jpg"
    folder = str(write_shards(tmp_path / "set", made))
    source = open_source({"hub": folder})
    assert len(source) == 2
    assert source.notices[0].startswith("1 non-camouflaged images of ")
    assert open_source({"hub": folder, "non_camouflaged": True}).groups[1] == "NonCAM"


# ---- what is wrong with a set


def test_a_set_without_masks_is_told_by_its_columns(tmp_path):
    made = [{"image": row["image"], "label": "crab"} for row in rows(2)]
    folder = write_shards(tmp_path / "set", made)
    with pytest.raises(DataError, match=r"set \(train\) has no mask column, such as mask, gt, label: its columns are"):
        open_source({"hub": str(folder)})


def test_a_mask_of_another_size_is_told_with_its_row(tmp_path):
    made = rows(3)
    made[1]["mask"]["bytes"] = rows(1, (16, 16))[0]["mask"]["bytes"]
    with pytest.raises(
        DataError, match=r"1 masks differ from their image in size:\n .*row 1 \(.*-1\), column image 40x32"
    ):
        open_source({"hub": str(write_shards(tmp_path / "set", made))})


def test_rows_without_a_mask_are_counted(tmp_path):
    made = rows(3)
    made[2]["mask"] = None
    with pytest.raises(DataError, match=r"1 of 3 rows have nothing in column mask: COD10K-CAM-1-Aquatic-3-Crab-2"):
        open_source({"hub": str(write_shards(tmp_path / "set", made))})


def test_bytes_that_are_no_image_are_told_before_training(tmp_path):
    made = rows(3)
    made[1]["mask"]["bytes"] = b"no image"
    made[2]["image"]["bytes"] = b""
    with pytest.raises(DataError, match="2 files cannot be read") as caught:
        open_source({"hub": str(write_shards(tmp_path / "set", made))})
    assert "row 1 (COD10K-CAM-1-Terrestrial-3-Crab-1), column mask: not an image of a known format" in str(caught.value)
    assert "column image: the file is empty" in str(caught.value)


def test_a_damaged_image_is_a_bad_sample_and_not_the_end(tmp_path):
    made = rows(3)
    made[1]["image"]["bytes"] = encoded(np.full((32, 40, 3), 90, np.uint8), "JPEG")[:-2]
    source = open_source({"hub": str(write_shards(tmp_path / "set", made))})
    (batch,) = train_loader(TrainSet(source, 32), [[(0, 0), (0, 1)]], 0, pin_memory=False)
    (problem,) = batch.problems
    assert "row 1 (COD10K-CAM-1-Terrestrial-3-Crab-1), column image: the JPEG is truncated" in problem
    assert batch.weights.tolist() == [1.0, 0.0]


def test_an_image_is_turned_as_its_mask_needs_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    made = rows(2)
    turned = np.arange(32 * 40 * 3, dtype=np.uint8).reshape(40, 32, 3)
    made[0]["image"]["bytes"] = encoded(turned.transpose(1, 0, 2)[::-1], "PNG", exif=exif.tobytes())
    made[0]["mask"]["bytes"] = encoded(np.eye(40, 32, dtype=np.uint8) * np.uint8(255))
    made[1]["image"]["bytes"] = encoded(turned[:32].repeat(2, 1)[:, :40], "PNG", exif=exif.tobytes())
    source = open_source({"hub": str(write_shards(tmp_path / "set", made))})
    assert np.array_equal(source[0].image, turned)
    assert np.array_equal(source[1].image, turned[:32].repeat(2, 1)[:, :40])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"split": "test"}, 'has no split "test", only train: set split'),
        ({"config": "other"}, 'has no configuration "other"'),
        ({"revision": "v1"}, "is a folder, which has no revisions"),
    ],
)
def test_a_part_that_is_not_there_is_told_with_those_that_are(tmp_path, given, words):
    folder = write_shards(tmp_path / "set", rows(2))
    with pytest.raises(DataError, match=words):
        open_source({"hub": str(folder), "split": "train", **given})


def test_a_saved_set_keeps_to_its_split(tmp_path):
    with pytest.raises(DataError, match='no split "test", only train'):
        open_source({"hub": str(write_saved(tmp_path / "set", rows(2))), "split": "test"})


def test_a_part_of_a_split_can_be_taken(tmp_path):
    folder = write_shards(tmp_path / "set", rows(10))
    first, last = (open_source({"hub": str(folder), "split": f"train[{part}]"}) for part in (":80%", "80%:"))
    assert [len(first), len(last)] == [8, 2]
    assert not set(first.names) & set(last.names)


def test_a_damaged_parquet_file_is_one_message(tmp_path):
    file = next(write_shards(tmp_path / "set", rows(4)).glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot be read \(.*\): check its files"):
        open_source({"hub": str(tmp_path / "set")})


def test_an_empty_folder_is_told(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="holds no data that can be read"):
        open_source({"hub": str(tmp_path / "set")})


def test_a_folder_of_images_beside_one_of_masks_is_told_its_layout(tmp_path):
    for name in ("Imgs", "GT"):
        (tmp_path / "NC4K" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r'use { layout = "auto", path = ".*NC4K" }'):
        open_source({"hub": str(tmp_path / "NC4K")})


def test_what_is_neither_folder_nor_id_is_told_without_the_library():
    with pytest.raises(DataError, match='hub = "COD10K": there is no such folder, and it is no id'):
        open_source({"hub": "COD10K"})


# ---- the hub itself, which tests cannot reach


def test_an_id_without_network_is_one_message_at_once():
    with pytest.raises(DataError, match=r"nobg/COD10K.* is not on this machine, and HF_HUB_OFFLINE is set: connect"):
        open_source({"hub": "nobg/COD10K"})


def test_a_path_with_a_slip_may_look_like_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"if it means a folder, there is none at {tmp_path}/data/my_set"):
        open_source({"hub": "data/my_set"})


@pytest.fixture
def online(monkeypatch):
    """As if HF_HUB_OFFLINE were not set; conftest refuses connections as a machine without network does."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_a_hub_that_does_not_answer_is_asked_once(online, monkeypatch):
    asked = []
    monkeypatch.setattr("time.sleep", lambda seconds: asked.append(seconds))
    with pytest.raises(DataError, match="is not on this machine, and the hub cannot be reached: connect"):
        open_source({"hub": "nobg/COD10K"})
    assert asked == []  # clients wait between attempts


def test_without_a_network_the_copy_in_the_cache_is_used_and_said(online, tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "elsewhere" / "COD10K", rows(3))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda hub, *_, **__: datasets.Dataset.from_parquet(str(next(folder.iterdir())))
    )
    source = open_source({"hub": "nobg/COD10K", "split": "train"})
    assert source.label == "COD10K"
    assert len(source) == 3
    assert "the hub cannot be reached; the copy in the cache of this machine is used" in source.notices[0]
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (GatedRepoError, "accept its conditions on https://huggingface.co/datasets/nobg/COD10K and log in"),
        (RepositoryNotFoundError, "no set of this name, or a private one: correct the id, or log in"),
        (HfHubHTTPError, "the hub refuses it"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(online, monkeypatch, kind, words):
    def refuse(*_, **__):
        raise kind("no", response=httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(DataError, match=words):
        open_source({"hub": "nobg/COD10K"})


def test_the_library_is_imported_for_these_sources_alone():
    code = "import sys, camox.data.sources; sys.exit('datasets' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_joins_other_sources_with_a_weight(tmp_path):
    folder = write_shards(tmp_path / "set", rows(4))
    joined = open_sources([{"hub": str(folder), "weight": 2.0}, {"synthetic": "habitats", "count": 2, "size": 32}])
    assert joined.weights == [2.0] * 4 + [1.0] * 2
    assert joined.label == "set + habitats"
