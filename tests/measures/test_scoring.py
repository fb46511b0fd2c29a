"""Folders of maps: pairing, what is refused, and that the numbers are those of the arrays."""

import cv2
import numpy as np
import pytest
from PIL import Image

from camox.errors import DataError
from camox.measures.evaluator import measure_uint8
from camox.measures.scoring import read_grey, score_folder


def pair(seed, shape=(40, 52)):
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.random(shape), (0, 0), 4)
    truth = ((field > np.quantile(field, 0.8)) * 255).astype(np.uint8)
    noise = cv2.GaussianBlur(rng.random(shape), (0, 0), 2) * 255
    return (0.6 * truth + 0.4 * noise).astype(np.uint8), truth


@pytest.fixture
def folders(tmp_path):
    """Prediction and truth folders with five pairs of PNG files."""
    predictions, truths = tmp_path / "maps", tmp_path / "truths"
    predictions.mkdir()
    truths.mkdir()
    for seed, stem in enumerate(["a", "b", "c with space", "海", "e"]):
        prediction, truth = pair(seed)
        Image.fromarray(prediction).save(predictions / f"{stem}.png")
        Image.fromarray(truth).save(truths / f"{stem}.png")
    return predictions, truths


@pytest.mark.parametrize("protocol", ["camox", "pysod"])
def test_scores_are_those_of_the_arrays(folders, protocol):
    scores = score_folder(folders[0], folders[1], protocol=protocol)
    by_name = {record.name: record.result.scalars for record in scores.records}
    assert by_name.keys() == {"a", "b", "c with space", "海", "e"}
    prediction, truth = pair(1)
    assert by_name["b"] == measure_uint8(prediction, truth, protocol).scalars
    assert scores.summary["count"] == 5
    assert scores.notices == ()


def test_more_processes_give_the_same_numbers(folders):
    assert (
        score_folder(folders[0], folders[1], workers=2).summary
        == score_folder(folders[0], folders[1], workers=1).summary
    )


def test_groups_come_from_names(folders):
    groups = score_folder(folders[0], folders[1], group_of=lambda name: "short" if len(name) == 1 else "")
    assert groups.summary["groups"].keys() == {"short"}
    assert groups.summary["groups"]["short"]["count"] == 4


def test_extensions_and_other_files_do_not_matter(folders):
    predictions, truths = folders
    (predictions / "a.png").rename(predictions / "a.PNG")
    for name in ("Thumbs.db", ".DS_Store", "._a.png", "notes.txt"):
        (truths / name).write_bytes(b"no image")
    assert score_folder(predictions, truths).summary["count"] == 5


def test_missing_predictions_are_counted_and_named(folders):
    (folders[0] / "b.png").unlink()
    (folders[0] / "e.png").unlink()
    with pytest.raises(DataError, match="2 of 5 ground truths have no prediction: b, e"):
        score_folder(folders[0], folders[1])


def test_predictions_without_a_truth_are_a_notice(folders):
    (folders[1] / "b.png").unlink()
    scores = score_folder(folders[0], folders[1])
    assert scores.summary["count"] == 4
    assert scores.notices == ("1 predictions have no ground truth and were left out: b",)


def test_camox_resizes_and_says_so(folders):
    Image.fromarray(pair(1)[0]).resize((26, 20)).save(folders[0] / "b.png")
    assert score_folder(folders[0], folders[1]).notices == (
        "1 predictions were resized to the size of their ground truth: b",
    )


def test_pysod_refuses_another_size(folders):
    Image.fromarray(pair(1)[0]).resize((26, 20)).save(folders[0] / "b.png")
    with pytest.raises(DataError, match=r"1 predictions have another size.*: b\.png"):
        score_folder(folders[0], folders[1], protocol="pysod")


@pytest.mark.parametrize(("protocol", "read_as"), [("camox", "read as object"), ("pysod", "count as empty")])
def test_label_masks_are_a_notice(folders, protocol, read_as):
    Image.fromarray(pair(0)[1] // 255).save(folders[1] / "a.png")
    (notice,) = score_folder(folders[0], folders[1], protocol=protocol).notices
    assert notice.startswith("1 ground truths have levels above 0 but none above 128")
    assert read_as in notice


@pytest.mark.parametrize(("suffix", "workers"), [(".png", 1), (".jpg", 1), (".png", 2)])
def test_a_truncated_file_is_refused_by_name(folders, suffix, workers):
    (folders[0] / "b.png").unlink()
    path = folders[0] / f"b{suffix}"
    Image.fromarray(pair(1)[0]).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"b{suffix}: not readable"):
        score_folder(folders[0], folders[1], workers=workers)


def test_two_files_of_one_stem_are_refused(folders):
    Image.fromarray(pair(1)[0]).save(folders[0] / "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg and b\.png share a stem"):
        score_folder(folders[0], folders[1])


def test_missing_and_empty_folders_are_refused(folders, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        score_folder(tmp_path / "nowhere", folders[1])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: has no image files"):
        score_folder(folders[0], tmp_path / "nothing")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_black_and_white_survive_every_mode(tmp_path, mode):
    levels = pair(0)[1]
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    if mode == "I;16":
        Image.fromarray(levels.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(levels).convert(mode).save(path)
    assert np.array_equal(read_grey(path), levels)


@pytest.mark.parametrize("as_labels", [False, True])
def test_colours_are_luminance_unless_they_are_labels(tmp_path, as_labels):
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    assert np.all(read_grey(tmp_path / "red.png", as_labels) == (255 if as_labels else 76))


def test_16_bit_labels_do_not_vanish(tmp_path):
    Image.fromarray(np.array([[0, 1, 2]], np.uint16)).save(tmp_path / "labels.png")
    assert read_grey(tmp_path / "labels.png", as_labels=True).tolist() == [[0, 1, 2]]
