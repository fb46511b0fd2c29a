"""The verb: where the page goes, what it leaves alone, and what it does about what is missing or wrong."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from camox.cli import main
from camox.report.examination import examine
from camox.report.gallery import chosen
from camox.report.run import read_run
from tests.report.conftest import TEST_IMAGES, event

PACKAGES = "import sys; from camox.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"


@pytest.fixture
def report(capfd):
    """Runs the command; gives exit code, standard output and standard error."""

    def run(*arguments):
        code = main(["report", *map(str, arguments)])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_writes_the_page_into_the_run_and_changes_nothing_else(report, run_folder):
    before = contents(run_folder)
    code, out, err = report(run_folder)
    assert (code, err) == (0, "")
    assert str(run_folder / "report.html") in out.replace("\n", "")
    after = contents(run_folder)
    assert after.pop(run_folder / "report.html")
    assert after == before


def test_an_older_page_is_replaced(report, run_folder, tmp_path):
    out = tmp_path / "new" / "folder" / "page.html"
    assert report(run_folder, "--no-gallery", "--out", out)[0] == 0
    out.write_text("old")
    assert report(run_folder, "--no-gallery", "--out", out)[0] == 0
    assert "Verdict" in out.read_text()
    assert os.listdir(out.parent) == ["page.html"]


@pytest.mark.parametrize(
    ("runs", "out", "message"),
    [
        (["{run}/nowhere"], None, "no such folder"),
        (["{run}/evaluation"], None, "holds no run"),
        (["{run}", "{run}/../other"], None, "give --out FILE.html"),
        (["{run}"], "{run}", "is a folder: give a file, such as"),
        (["{run}"], "{run}/metrics.jsonl", "give a file that ends in .html"),
        (["{run}"], "{run}/metrics.jsonl/page.html", "metrics.jsonl: is a file: give a place in a folder"),
    ],
)
def test_mistakes_end_with_2_and_one_message(report, run_folder, runs, out, message):
    shutil.copytree(run_folder, run_folder.parent / "other")
    before = contents(run_folder)
    given = [text.format(run=run_folder) for text in runs]
    code, _, err = report(*given, *([] if out is None else ["--out", out.format(run=run_folder)]))
    assert code == 2
    assert message in " ".join(err.split())
    assert err.count("error:") == 1
    assert contents(run_folder) == before


@pytest.mark.parametrize("damage", ["no checkpoints", "a cut checkpoint", "no test data", "no experiment"])
def test_without_a_model_or_data_the_page_says_so_in_place_of_the_gallery(report, run_folder, damage):
    if damage == "no checkpoints":
        shutil.rmtree(run_folder / "checkpoints")
    elif damage == "a cut checkpoint":
        for weights in run_folder.glob("checkpoints/*/*.safetensors"):
            weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no test data":
        experiment = run_folder / "experiment.toml"
        gone = '[[data.test]]\nlayout = "folder"\nimages = "gone"\nmasks = "gone"\n'
        text = re.sub(r"\[\[data.test\]\].*?\n\n", gone + "\n", experiment.read_text(), count=1, flags=re.DOTALL)
        experiment.write_text(text)
    else:
        (run_folder / "experiment.toml").unlink()
    assert report(run_folder)[0] == 0
    page = (run_folder / "report.html").read_text()
    assert "No predictions:" in page
    assert "<article" not in page
    assert "raw weights" in page


def test_a_run_that_is_being_written_is_shown_as_far_as_it_goes(report, run_folder):
    (run_folder / "exit.json").unlink()
    shutil.rmtree(run_folder / "evaluation")
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = (run_folder / name).read_text().splitlines(keepends=True)
        (run_folder / name).write_text("".join(lines[:3]) + lines[3][:20])
    assert report(run_folder, "--no-gallery")[0] == 0
    assert "the newest number is of 20" in (run_folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        (["--no-gallery"], {"matplotlib", "plotly", "torch"}),
        pytest.param([], {"matplotlib", "plotly"}, marks=pytest.mark.slow),
    ],
)
def test_it_needs_neither_a_display_nor_what_draws_on_one(run_folder, options, absent):
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    arguments = [sys.executable, "-c", PACKAGES, "report", str(run_folder), *options]
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not set(ran.stdout.split()) & absent


def test_a_name_that_is_no_text_is_spelled_out(report, write_run):
    folder = write_run(events=[event("bad_sample", message="photo_\udcff.jpg cannot be read")])
    assert report(folder, "--no-gallery")[0] == 0
    assert "photo_\\udcff.jpg" in (folder / "report.html").read_text()


def test_a_disk_that_refuses_is_one_message(report, run_folder, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    code, _, err = report(run_folder, "--no-gallery")
    assert code == 2
    assert "report.html: cannot be written (No space left on device)" in " ".join(err.split())
    assert not list(run_folder.glob("*report*"))


# ------------------------------------------------------------------------------------------ the gallery


def scored(folder):
    with (folder / "evaluation" / "per_image.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_the_worst_image_comes_first_with_the_scores_of_the_evaluation(run_folder):
    examined = examine(read_run(run_folder))
    rows = scored(run_folder)
    by_iou = sorted((float(row["iou"]), name) for name, row in rows.items() if row["iou"])
    assert [key.name for key in examined.ranked] == [name for _, name in by_iou]
    shown = chosen([examined])
    assert [key.name for key in shown["Worst"]] == [name for _, name in by_iou[:12]]
    assert len(examined.images) == TEST_IMAGES


def test_scores_that_no_evaluation_has_are_computed_and_equal(run_folder):
    with_file = {seen.key: seen.scores for seen in examine(read_run(run_folder)).images}
    shutil.rmtree(run_folder / "evaluation")
    computed = {seen.key: seen.scores for seen in examine(read_run(run_folder)).images}
    assert computed.keys() == with_file.keys()
    for key, scores in computed.items():
        shared = {name: with_file[key][name] for name in scores if name in with_file[key]}
        assert {name: scores[name] for name in shared} == pytest.approx(shared, abs=1e-5)


@pytest.mark.parametrize("other", [{"step": 1}, {"tta": ["hflip"]}, {"ensemble": [{"checkpoint": "other"}]}], ids=str)
def test_scores_of_anything_but_the_model_alone_are_not_taken(run_folder, other):
    file = run_folder / "evaluation" / "measures.json"
    document = json.loads(file.read_text())
    document["protocol"] |= other
    file.write_text(json.dumps(document))
    rows = run_folder / "evaluation" / "per_image.csv"
    rows.write_text(re.sub(r"0\.\d+", "0.123", rows.read_text()))
    assert all(seen.scores.get("mae") != 0.123 for seen in examine(read_run(run_folder)).images)


def test_of_many_images_some_are_seen_and_the_worst_of_all_among_them(run_folder, monkeypatch):
    monkeypatch.setattr("camox.report.gallery.WORST", 2)
    monkeypatch.setattr("camox.report.gallery.MIDDLE", 0)
    monkeypatch.setattr("camox.report.gallery.BEST", 1)
    examined = examine(read_run(run_folder), most=3)
    rows = scored(run_folder)
    by_iou = sorted((float(row["iou"]), name) for name, row in rows.items() if row["iou"])
    seen = {one.key.name for one in examined.images}
    assert {by_iou[0][1], by_iou[1][1], by_iou[-1][1]} <= seen
    assert 3 <= len(seen) <= 6
    assert examined.total == TEST_IMAGES


def test_runs_on_the_same_images_show_them_side_by_side(report, run_folder, tmp_path):
    other = shutil.copytree(run_folder, tmp_path / "other" / "tiny")
    assert report(run_folder, other, "--out", tmp_path / "both.html")[0] == 0
    page = (tmp_path / "both.html").read_text()
    card = page.partition("<article")[2].partition("</article>")[0]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", card)
    assert captions == ["image", "truth", *["prediction", "boundary uncertainty"] * 2]
