"""Several checkpoints, several datasets, anyone's maps and corruptions: what is written, and that it is right."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from camox.cli import main
from camox.data.corruptions import CORRUPTIONS
from camox.errors import DataError
from camox.inference.scoring.comparison import evaluate_several
from camox.inference.scoring.evaluation import evaluate
from camox.inference.scoring.scored_maps import score_maps
from camox.measures.scoring import score_folder
from camox.tracking.console import Console


@pytest.fixture
def other_run(run_folder, tmp_path):
    """The same run with other raw weights: its first checkpoint's average."""
    other = shutil.copytree(run_folder, tmp_path / "runs" / "other")
    (other / "checkpoints" / "best").write_text("epoch_0002")
    return other


@pytest.fixture
def collection(tmp_path, save):
    """SINet's folder with two test sets of twelve pairs, and COD10K's non-camouflaged images in one of them."""
    rng = np.random.default_rng(5)
    for name in ("CAMO", "COD10K"):
        folder = tmp_path / "all" / "TestDataset" / name
        for i in range(12):
            mask = np.zeros((48, 48), np.uint8)
            cv2.circle(mask, (24, 24), 2 + 2 * i, 255, -1)
            save(folder / "Imgs" / f"{i}.png", rng.integers(0, 256, (48, 48, 3), np.uint8))
            save(folder / "GT" / f"{i}.png", mask)
    for i in range(3):
        stem = f"COD10K-NonCAM-1-x-{i}"
        save(folder / "Imgs" / f"{stem}.png", rng.integers(0, 256, (48, 48, 3), np.uint8))
        save(folder / "GT" / f"{stem}.png", np.zeros((48, 48), np.uint8))
    return tmp_path / "all"


@pytest.fixture
def printed():
    return io.StringIO()


@pytest.fixture
def console(printed):
    return Console(stream=printed, width=80)


def document(folder, name="measures"):
    return json.loads((folder / f"{name}.json").read_text())


def test_a_collection_is_scored_set_by_set(run_folder, collection, console, tmp_path, printed):
    scores = evaluate(run_folder, {"all": collection}, tmp_path / "out", workers=0, console=console)["datasets"]
    assert {name: one["count"] for name, one in scores.items()} == {"CAMO": 12, "COD10K": 12}
    assert "3 non-camouflaged images" in printed.getvalue()
    assert "COD10K: published" in printed.getvalue()
    assert "ZoomNeXt-B4" in (tmp_path / "out" / "table.md").read_text()


def test_non_camouflaged_images_are_in_no_mean(run_folder, collection, console, tmp_path):
    alone, together = (
        evaluate(
            run_folder,
            {"COD10K": collection / "TestDataset" / "COD10K"},
            tmp_path / str(kept),
            workers=0,
            protocol="pysod",
            console=console,
            non_camouflaged=kept,
        )["datasets"]["COD10K"]
        for kept in (False, True)
    )
    assert (alone["empty"]["count"], together["empty"]["count"]) == (0, 3)
    assert 0 <= together["empty"]["false_positive_area"] <= 1
    for key in ("count", "s_measure", "f_max", "mae", "iou"):
        assert together[key] == pytest.approx(alone[key], abs=1e-6)
    assert "Images without an object" in (tmp_path / "True" / "table.md").read_text()


def test_checkpoints_are_compared_on_the_same_images(run_folder, other_run, collection, console, printed, tmp_path):
    out = tmp_path / "out"
    compared = evaluate_several([run_folder, other_run], {"all": collection}, out, workers=0, console=console)
    assert list(compared["datasets"]) == ["CAMO", "COD10K"]
    of = compared["datasets"]["CAMO"]
    assert list(of["scores"]) == ["tiny", "other"]
    for name in ("tiny", "other"):
        own = document(out / name)
        assert own["datasets"]["CAMO"]["s_measure"] == of["scores"][name]["s_measure"]
    difference = of["differences"]["other"]["s_measure"]
    assert difference["value"] == pytest.approx(
        of["scores"]["other"]["s_measure"] - of["scores"]["tiny"]["s_measure"], abs=1e-12
    )
    assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
    assert document(out, "comparison") == compared
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {"comparison.json", "comparison.md", "comparison.tex", "comparison.png"}
    assert "CAMO: difference from tiny" in printed.getvalue()
    assert "selected on held-out 20%" in (out / "comparison.md").read_text()


def test_a_part_in_making_one_of_the_models_is_told(run_folder, other_run, override, collection, console, tmp_path):
    folder = collection / "TestDataset" / "CAMO"
    override(f'data.train=[{{ layout = "folder", images = "{folder}/Imgs", masks = "{folder}/GT" }}]')
    compared = evaluate_several([run_folder, other_run], {"CAMO": folder}, tmp_path / "out", workers=0, console=console)
    assert list(compared["datasets"]["CAMO"]["scores"]) == ["tiny (training images)", "other"]
    assert "| CAMO | tiny (training images) |" in (tmp_path / "out" / "comparison.md").read_text()


def test_two_checkpoints_of_a_run_have_names_of_their_own(run_folder, console, tmp_path):
    checkpoints = [run_folder / "checkpoints" / f"epoch_000{i}" for i in (1, 2)]
    compared = evaluate_several(checkpoints, None, tmp_path / "out", workers=0, console=console)
    (of,) = compared["datasets"].values()
    assert list(of["scores"]) == [f"tiny-epoch_000{i} (held out, selected on)" for i in (1, 2)]


def test_checkpoints_with_other_data_need_data_to_compare_on(run_folder, other_run, override, tmp_path, console):
    override('data.test=[{ synthetic = "habitats", count = 3, size = 64, seed = 9 }]')
    with pytest.raises(DataError, match="give --data NAME=PATH"):
        evaluate_several([run_folder, other_run], None, tmp_path / "out", workers=0, console=console)


def test_a_comparison_needs_a_place(run_folder, other_run, pairs, capfd):
    assert main(["evaluate", str(run_folder), str(other_run), "--data", f"x={pairs}"]) == 2
    assert "--out DIR" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------ corruptions


def test_corruptions_are_scored_at_every_severity(run_folder, pairs, tmp_path):
    out = tmp_path / "out"
    stream = io.StringIO()
    console = Console(stream=stream, terminal=True, width=80)
    evaluate(run_folder, {"x": pairs}, out, workers=0, console=console, corruptions=True)
    of = document(out, "corruptions")["datasets"]["x"]
    plain = document(out)["datasets"]["x"]
    assert of["clean"] == {name: pytest.approx(plain[name]) for name in of["clean"]}
    assert list(of["corruptions"]) == list(CORRUPTIONS)
    for one in of["corruptions"].values():
        values = [severity["s_measure"] for severity in one["severities"].values()]
        assert list(one["severities"]) == ["1", "2", "3", "4", "5"]
        assert len(set(values)) == 5
        assert one["mean"]["s_measure"] == pytest.approx(np.mean(values))
        assert one["drop"]["s_measure"] == pytest.approx(1 - np.mean(values) / of["clean"]["s_measure"])
        assert one["drop"]["mae"] == pytest.approx(one["mean"]["mae"] / of["clean"]["mae"] - 1)
    kinds = [one["mean"]["s_measure"] for one in of["corruptions"].values()]
    assert of["mean"]["s_measure"] == pytest.approx(np.mean(kinds))
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())  # without what moves the cursor
    assert "corrupting x" in drawn
    assert "21/21" in drawn
    assert "jpeg 5" in drawn
    assert all((out / f"corruptions.{suffix}").is_file() for suffix in ("md", "tex", "png"))
    assert max(map(len, drawn.split("x: S by severity")[1].split("Drop:")[0].splitlines())) <= 80


# ------------------------------------------------------------------------------------------ maps


@pytest.fixture
def maps(collection, tmp_path, save):
    """Two folders of maps of the set COD10K, one of them blurred."""
    truths = collection / "TestDataset" / "COD10K" / "GT"
    for path in truths.iterdir():
        truth = np.asarray(Image.open(path))
        save(tmp_path / "sharp" / path.name, (truth * 0.9).astype(np.uint8))
        save(tmp_path / "soft" / path.name, cv2.GaussianBlur(truth, (0, 0), 3))
    return [tmp_path / "sharp", tmp_path / "soft"], truths


def test_maps_get_the_files_of_a_checkpoint(maps, console, tmp_path):
    score_maps(maps[0][:1], maps[1], tmp_path / "out", "camox", 1, console)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"measures.json", "per_image.csv", "curves.csv", "curves.png", "table.md", "table.tex"}
    scores = document(tmp_path / "out")["datasets"]["sharp"]
    assert scores["intervals"]["s_measure"][0] <= scores["s_measure"] <= scores["intervals"]["s_measure"][1]
    assert sum(size["count"] for size in scores["sizes"].values()) == 12
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        shares = {row["name"]: float(row["object_share"]) for row in csv.DictReader(file)}
    assert shares["0"] == pytest.approx(np.asarray(Image.open(maps[1] / "0.png")).mean() / 255)


@pytest.mark.parametrize("protocol", ["camox", "pysod"])
def test_non_camouflaged_maps_are_in_no_mean_and_told(maps, console, printed, tmp_path, protocol):
    scores = score_maps(maps[0][:1], maps[1], None, protocol, 1, console)["datasets"]["sharp"]
    assert (scores["count"], scores["empty"]["count"]) == (12, 3)
    assert "3 images are non-camouflaged by their names" in printed.getvalue()


def test_folders_of_maps_are_compared(maps, console, tmp_path):
    out = tmp_path / "out"
    score_maps(maps[0], maps[1], out, "pysod", 1, console)
    of = document(out, "comparison")["datasets"]["GT"]
    assert list(of["scores"]) == list(document(out)["datasets"]) == ["sharp", "soft"]
    one_by_one = [score_folder(folder, maps[1], "pysod", stands_apart=lambda n: "NonCAM" in n) for folder in maps[0]]
    value = one_by_one[1].summary["f_weighted"] - one_by_one[0].summary["f_weighted"]
    assert of["differences"]["soft"]["f_weighted"]["value"] == pytest.approx(value, abs=1e-12)


def test_folders_of_one_name_are_told_apart_by_their_parents(maps, console, tmp_path):
    sharp, soft = maps[0]
    for name, folder in (("a", sharp), ("b", soft)):
        shutil.move(folder, tmp_path / name / "COD10K")
    folders = [tmp_path / "a" / "COD10K", tmp_path / "b" / "COD10K"]
    scores = score_maps(folders, maps[1], None, "camox", 1, console)["datasets"]
    assert list(scores) == ["a/COD10K", "b/COD10K"]
    with pytest.raises(DataError, match="given twice"):
        score_maps([folders[0]] * 2, Path(maps[1]), None, "camox", 1, console)
