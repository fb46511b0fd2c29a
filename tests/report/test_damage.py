"""A folder that lost something is not shown as a sound one: the verdict says what is missing."""

import json
import re
import shutil

import pytest

from camox.report.gallery import Examined
from camox.report.page import render
from camox.report.run import read_run
from camox.report.verdict import best_of, judge

NONE = Examined(trouble="No predictions.")


def _cut(file, share=0.5):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def _without_checkpoints(run):
    for folder in (run / "checkpoints").iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def _without_the_best(run):
    shutil.rmtree(run / "checkpoints" / (run / "checkpoints" / "best").read_text().strip())


DAMAGES = {
    "metrics in half": (lambda run: _cut(run / "metrics.jsonl"), r"metrics\.jsonl: its numbers end at step \d of 4"),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "a torn last number": (lambda run: _cut(run / "metrics.jsonl", 0.999), r"metrics\.jsonl: its last line is cut off"),
    "no events": (lambda run: (run / "events.jsonl").unlink(), "events.jsonl is missing"),
    "events in half": (lambda run: _cut(run / "events.jsonl"), "events.jsonl: the end of the run is not in it"),
    "no checkpoints": (_without_checkpoints, "checkpoints: none is left"),
    "no folder of checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints: none is left"),
    "the best is gone": (_without_the_best, "checkpoints/best: names no checkpoint that is there"),
    "cut weights": (
        lambda run: _cut(next(run.glob("checkpoints/epoch_*/model.safetensors"))),
        r"checkpoints/epoch_\d+: model\.safetensors has \d+ bytes instead of \d+",
    ),
    "a manifest that is none": (
        lambda run: _cut(next(run.glob("checkpoints/epoch_*/manifest.json"))),
        r"checkpoints/epoch_\d+/manifest\.json: damaged",
    ),
    "no experiment": (lambda run: (run / "experiment.toml").unlink(), "experiment.toml is missing"),
    "half an experiment": (lambda run: _cut(run / "experiment.toml"), "experiment.toml is not valid"),
    "no evaluation": (lambda run: shutil.rmtree(run / "evaluation"), "evaluation/measures.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_run_that_lost_something_says_what(run_folder, damage):
    act, said = DAMAGES[damage]
    act(run_folder)
    run = read_run(run_folder)
    verdict = judge(run)
    assert verdict.state == "finished"
    assert any(re.search(said, text) for text in verdict.missing), verdict.missing
    page = render([run], [NONE])
    assert "✓ Finished" not in page
    assert "Finished, but its folder is damaged" in page
    first_screen = page.partition("<main>")[2].partition("</dl>")[0]
    assert re.search(said, first_screen)


def test_a_sound_folder_misses_nothing(run_folder):
    assert judge(read_run(run_folder)).missing == ()


def test_of_two_runs_the_table_says_which_is_damaged(run_folder, tmp_path):
    other = shutil.copytree(run_folder, tmp_path / "other")
    (other / "metrics.jsonl").unlink()
    page = render([read_run(run_folder), read_run(other)], [NONE, NONE])
    table = page.partition("<table")[2].partition("</table>")[0]
    row = re.search(r">missing from the folder</th>(.*?)</tr>", table, re.DOTALL)
    assert row is not None
    sound, damaged = re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.DOTALL)
    assert sound == "nothing"
    assert "metrics.jsonl is missing" in damaged


def test_without_the_best_the_next_that_is_left_is_told(run_folder):
    (run_folder / "metrics.jsonl").unlink()
    (run_folder / "checkpoints" / "best").unlink()
    best = best_of(read_run(run_folder))
    assert best is not None
    assert best.checkpoint.startswith("epoch_")


def test_what_an_unreadable_experiment_leaves_unknown_is_not_called_done(run_folder):
    (run_folder / "experiment.toml").unlink()
    outcome = judge(read_run(run_folder)).outcome
    assert "All" not in outcome
    assert "2 epochs done" in outcome


def test_a_finished_run_whose_numbers_end_early_is_not_called_done(run_folder):
    _cut(run_folder / "metrics.jsonl", 0.3)
    _without_checkpoints(run_folder)
    (run_folder / "events.jsonl").write_text("")
    verdict = judge(read_run(run_folder))
    assert "All" not in verdict.outcome
    assert any("epoch" in text for text in verdict.missing)


def test_a_run_that_was_killed_misses_no_more_than_it_never_wrote(run_folder):
    """A torn last line is what a kill leaves, and there is no end in its events."""
    (run_folder / "exit.json").unlink()
    shutil.rmtree(run_folder / "evaluation")
    lines = (run_folder / "events.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] != "end"]
    (run_folder / "events.jsonl").write_text("\n".join(kept) + "\n")
    _cut(run_folder / "metrics.jsonl", 0.999)
    verdict = judge(read_run(run_folder))
    assert (verdict.state, verdict.missing) == ("gone", ())
