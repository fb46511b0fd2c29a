"""Selection on test images: found by the folders, refused where it is not declared, and labelled where it is."""

import io
import json

import numpy as np
import pytest

from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.inference.loading.selection import (
    identity,
    require_declared_selection,
    selected_on,
    selection_warnings,
    selects_on_test,
)

BASE = '[experiment]\nname = "x"\n[[phases]]\nname = "full"\nepochs = 1\n'


@pytest.fixture
def root(tmp_path, save, monkeypatch):
    """COD10K with both halves, and SINet's collection with two test sets, of two pairs each."""
    monkeypatch.chdir(tmp_path)
    places = [f"COD/{split}/{{}}" for split in ("Train", "Test")]
    places += ["NC4K/{}"]
    places += [f"all/{place}/{{}}" for place in ("TrainDataset", "TestDataset/CAMO", "TestDataset/NC4K")]
    for place in places:
        images, masks = ("Image", "GT_Object") if place.startswith("COD") else ("Imgs", "GT")
        for i in range(2):
            save(tmp_path / place.format(images) / f"{i}.jpg", np.full((9, 9, 3), 40 * i, np.uint8))
            save(tmp_path / place.format(masks) / f"{i}.png", np.full((9, 9), 255, np.uint8))
    return tmp_path


@pytest.fixture
def load(root):
    def load(data, more=""):
        file = root / "x.toml"
        file.write_text(f"{BASE}[data]\n{data}\n{more}")
        return Experiment.load(file)

    return load


COD, TEST_HALF = '{ layout = "cod10k", path = "COD" }', '{ layout = "cod10k", path = "COD", split = "test" }'
SETS = '{ layout = "sinet", path = "all" }'
ONE_SET = '{ layout = "folder", images = "all/TestDataset/CAMO/Imgs", masks = "all/TestDataset/CAMO/GT" }'
PAIRS = '{ layout = "pairs", path = "all/TestDataset/NC4K" }'
HABITATS, OTHER = '{ synthetic = "habitats", count = 9 }', '{ synthetic = "habitats", count = 5, seed = 1 }'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (f"train = [{COD}]\ntest = [{COD}]", None),
        (f"train = [{SETS}]\nval = [{COD}]\ntest = [{COD}, {SETS}]", None),
        (f"train = [{COD}]\nval = [{TEST_HALF}]", "the test part"),
        (f"train = [{COD}]\nval = [{TEST_HALF}]\ntest = [{COD}]", "data.test names too"),
        (f"train = [{COD}]\nval = [{ONE_SET}]\ntest = [{SETS}]", "data.test names too"),
        (f"train = [{COD}]\nval = [{ONE_SET}]", "the test part"),
        (f"train = [{COD}]\nval = [{PAIRS}]", "the test part"),
        (f'train = [{COD}]\nval = [{{ layout = "auto", path = "NC4K" }}]', "a test set"),
        (f'train = [{COD}]\nval = [{{ hub = "nobg/NC4K", split = "train" }}]', "a test set"),
        (f"train = [{COD}]\nval = [{HABITATS}]\ntest = [{OTHER}]", None),
        (f"train = [{COD}]\nval = [{OTHER}]\ntest = [{OTHER}]", "data.test names too"),
    ],
)
def test_selection_on_test_images_is_found(load, data, reason):
    experiment = load(data)
    found = selects_on_test(experiment)
    if reason is None:
        assert found is None
        require_declared_selection(experiment)
        return
    assert reason in found
    with pytest.raises(ExperimentError, match=r"select_on_test = true"):
        require_declared_selection(experiment)
    declared = load(data, "[validation]\nselect_on_test = true\n")
    require_declared_selection(declared)
    assert "test images" in selected_on(declared)
    assert "every result says so" in next(selection_warnings(declared))


def test_a_flag_without_effect_is_told(load):
    experiment = load(f"train = [{COD}]", "[validation]\nselect_on_test = true\n")
    assert "has no effect" in next(selection_warnings(experiment))
    assert selected_on(experiment).startswith("held-out 10%")
    labelled = load(f"train = [{COD}]\nval = [{OTHER}]", "[validation]\nselect_on_test = true\n")
    assert "labels every result" in next(selection_warnings(labelled))
    assert "test images" in selected_on(labelled)


@pytest.mark.parametrize("name", ["val", "test"])
def test_training_images_among_those_scored_are_told(load, name):
    (warning,) = selection_warnings(load(f"train = [{HABITATS}]\n{name} = [{HABITATS}]"))
    assert f"data.{name} names images that data.train names too" in warning


def test_sources_are_the_same_by_what_they_show(root):
    whole = identity({"layout": "sinet", "path": str(root / "all")}, "test")
    one = identity({"layout": "auto", "path": str(root / "all" / "TestDataset" / "CAMO")}, "test")
    assert one < whole
    assert identity({"synthetic": "habitats", "count": 3}) == identity({"synthetic": "habitats", "count": 9})
    assert not identity({"synthetic": "habitats", "count": 3, "seed": 1}) & identity(
        {"synthetic": "habitats", "count": 3}
    )


def test_a_set_of_the_hub_is_the_same_however_it_is_read():
    plain = identity({"hub": "nobg/COD10K"}, "test")
    assert identity({"hub": "nobg/COD10K", "split": "test", "mask": "gt", "streaming": True}) == plain
    assert not identity({"hub": "nobg/COD10K", "split": "train"}, "test") & plain
    assert not identity({"hub": "nobg/NC4K"}, "test") & plain


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_split_of_the_list_holds_where_the_source_has_none(root, split):
    (images,) = identity({"layout": "cod10k", "path": str(root / "COD")}, split)
    assert images == root / "COD" / split.capitalize() / "Image"


def test_every_file_of_scores_says_that_selection_was_on_test_images(override, run_folder, tmp_path):
    from camox.inference.scoring.evaluation import evaluate
    from camox.tracking.console import Console

    source = '[{ synthetic = "habitats", count = 3, size = 64, seed = 7 }]'
    override(f"data.val={source}", f"data.test={source}", "data.val_fraction=0.0", "validation.select_on_test=true")
    said = io.StringIO()
    document = evaluate(run_folder, workers=0, out=tmp_path / "scores", console=Console(stream=said, width=200))
    name = "habitats (test images, selected on)"
    assert f"{name}: the checkpoint was selected on these test images" in said.getvalue()
    assert list(document["datasets"]) == [name]
    assert document["protocol"]["data"][name]["used_for"] == "selection on test images"
    stored = json.loads((tmp_path / "scores" / "measures.json").read_text())
    assert "validation.select_on_test" in stored["protocol"]["selected_on"]["data"]
    for file in ("table.md", "table.tex"):
        text = (tmp_path / "scores" / file).read_text()
        assert "Selected on: test images named by data.val" in text
        assert "(test images, selected on)" in text
    assert "(test images, selected on)" in (tmp_path / "scores" / "per_image.csv").read_text()
