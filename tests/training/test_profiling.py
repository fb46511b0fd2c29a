"""`--profile` records every kind of step once, says what it takes, and leaves the run that is there alone."""

import gzip
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from camox.experiment import Experiment
from camox.models.camoxpert import DEFAULT_EXPERTS
from camox.train import main
from camox.training import profiling
from camox.training.profile_labels import PARTS, PREFIX
from camox.training.profiling import stages_of
from tests.conftest import TINY_EXPERIMENT
from tests.distributed.test_two_ranks import launch

RECORDED = 2
WORKED = {
    *("waiting for data", "copy to the device", "backbone", "routers", "dispatch", "experts", "decoder"),
    *("refinement", "losses", "backward, rest of", "gradient reduction", "clipping", "optimizer", "weight average"),
    *("guards", "meters", "logging", "in between"),
}
"""The parts of every step."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but those of its profile."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if folder / "profile" not in path.parents}


def trace(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        events: list[dict[str, Any]] = json.load(opened)["traceEvents"]
    return events


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> dict[str, Any]:
    """A finished run, then a profile of the same experiment, of fewer steps than by default."""
    folder = tmp_path_factory.mktemp("profiled")
    file = folder / "tiny.toml"
    file.write_text(TINY_EXPERIMENT)
    run = folder / "runs" / "tiny"
    arguments = [str(file), "--output", str(folder / "runs")]
    assert main(arguments) == 0
    before = contents(run)
    left = run / "profile" / "old_rank_0.json.gz"
    left.parent.mkdir()
    left.touch()
    with pytest.MonkeyPatch.context() as patched:
        for name, steps in (("FIRST", 1), ("UNRECORDED", 1), ("RECORDED", RECORDED)):
            patched.setattr(profiling, name, steps)
        code = main([*arguments, "--profile"])
    return {
        "code": code,
        "run": run,
        "before": before,
        "after": contents(run),
        "summary": json.loads((run / "profile" / "summary.json").read_text()),
        "arguments": arguments,
    }


def test_it_ends_well_and_replaces_the_profile_that_was_there(profiled):
    assert profiled["code"] == 0
    traces = [path.name for path in (profiled["run"] / "profile").glob("*.json.gz")]
    assert sorted(traces) == ["frozen_rank_0.json.gz", "full_rank_0.json.gz"]


def test_the_run_beside_it_stays_as_it_was(profiled):
    assert profiled["before"]
    assert profiled["before"] == profiled["after"]


def test_nothing_is_saved(profiled):
    assert not (profiled["run"] / "profile" / "checkpoints").exists()


def test_each_phase_has_a_trace_with_the_labels_of_all_recorded_steps(profiled):
    for name in ("frozen", "full"):
        events = trace(profiled["run"] / "profile" / f"{name}_rank_0.json.gz")
        names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        assert sum(name.startswith("ProfilerStep#") for name in names) == RECORDED
        labels = {name.removeprefix(PREFIX).partition(":")[0] for name in names if name.startswith(PREFIX)}
        unlabelled = {"in between", "gradient reduction"}
        assert labels >= WORKED - unlabelled
        assert labels <= set(PARTS)


def test_the_parts_add_up_to_the_step(profiled):
    for stage in profiled["summary"]["stages"].values():
        assert set(stage["parts"]) >= WORKED
        whole = sum(part["total"] for part in stage["parts"].values())
        assert whole == pytest.approx(stage["recorded_step_ms"], rel=1e-3)
        assert sum(label["total"] for label in stage["labels"].values()) == pytest.approx(whole, rel=1e-3)


def test_the_recorded_step_is_about_what_the_trace_says(profiled):
    # Logging, counted as often as it happens in a run, is all that may make a difference.
    for name, stage in profiled["summary"]["stages"].items():
        events = trace(profiled["run"] / "profile" / f"{name}_rank_0.json.gz")
        steps = [event["dur"] for event in events if event["name"].startswith("ProfilerStep#")]
        logging = sum(event["dur"] for event in events if event["name"] == f"{PREFIX}logging")
        mean = sum(steps) / len(steps) / 1e3
        assert mean - logging / len(steps) / 1e3 <= stage["recorded_step_ms"] <= mean * 1.001


def test_a_frozen_backbone_has_no_backward_pass_and_a_trained_one_has(profiled):
    stages = profiled["summary"]["stages"]
    assert stages["frozen"]["parts"]["backbone"]["backward"] == 0
    assert stages["full"]["parts"]["backbone"]["backward"] > 0
    assert stages["full"]["parts"]["experts"]["backward"] > 0


def test_experts_are_told_by_name_and_scale_and_all_of_them_work(profiled):
    labels = [label for label in profiled["summary"]["stages"]["full"]["labels"] if label.startswith("experts: ")]
    # Untrained routers would send all images of a scale to the same two.
    assert {label.split(",")[0].removeprefix("experts: ") for label in labels} == set(DEFAULT_EXPERTS)
    assert {label.rpartition(" ")[2] for label in labels} == {"4", "8", "16", "32"}


def test_steps_have_numbers_of_their_own_and_the_last_of_each_stage_is_logged(profiled):
    lines = [json.loads(line) for line in (profiled["run"] / "profile" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    of_stage = 1 + 1 + 1 + RECORDED
    assert steps == sorted(set(steps))
    assert {of_stage, 2 * of_stage} <= set(steps)


def test_the_learning_rate_is_zero(profiled):
    lines = (profiled["run"] / "profile" / "metrics.jsonl").read_text().splitlines()
    rates = [value for line in lines for name, value in json.loads(line).items() if name.startswith("lr/")]
    assert rates
    assert not any(rates)


@pytest.mark.parametrize("others", [["--check"], ["--resume", "auto"], ["--resume", "auto", "--check"]])
def test_it_goes_with_neither_check_nor_resume(profiled, capsys, others):
    assert main([*profiled["arguments"], "--profile", *others]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "leave out " + " and ".join(sorted(other for other in others if other.startswith("--"))) in error


def test_a_signal_ends_it_and_saves_nothing(tiny_experiment, monkeypatch, tmp_path, capsys):
    taken = profiling._Recorder.step

    def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        taken(self)

    monkeypatch.setattr(profiling._Recorder, "step", stop)
    tiny_experiment()
    assert main([str(tmp_path / "tiny.toml"), "--output", str(tmp_path / "runs"), "--profile"]) == 4
    assert "nothing was trained" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "tiny" / "profile" / "checkpoints").exists()


def test_a_run_named_profile_is_not_overwritten(tiny_experiment, tmp_path, capsys):
    tiny_experiment()
    file, output = str(tmp_path / "tiny.toml"), str(tmp_path / "runs" / "tiny")
    assert main([file, "--output", output, "experiment.name=profile"]) == 0
    before = contents(tmp_path / "runs" / "tiny" / "profile")
    assert main([file, "--output", str(tmp_path / "runs"), "--profile"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert contents(tmp_path / "runs" / "tiny" / "profile") == before


def test_stages_differ_in_what_is_frozen_batch_accumulation_or_size(tiny_experiment):
    def names(*overrides: str) -> list[tuple[int, str]]:
        experiment: Experiment = tiny_experiment(*overrides)
        return [(stage.epoch, stage.name) for stage in stages_of(experiment.phases_resolved())]

    assert names() == [(0, "frozen"), (1, "full")]
    assert names("phases.frozen.epochs=3") == [(0, "frozen"), (3, "full")]
    progressive = names("phases.full.epochs=8", 'phases.full.unfreeze="progressive"')
    assert progressive == [
        (0, "frozen"),
        *((epoch, f"full_frozen_{n}") for epoch, n in ((1, 3), (3, 2), (5, 1), (7, 0))),
    ]


def test_a_phase_that_differs_in_nothing_is_recorded_once(tiny_experiment):
    alike = tiny_experiment("phases.frozen.freeze=[]")
    assert [stage.name for stage in stages_of(alike.phases_resolved())] == ["frozen"]
    larger = tiny_experiment("phases.frozen.freeze=[]", "phases.full.batch_size=2")
    assert [stage.name for stage in stages_of(larger.phases_resolved())] == ["frozen", "full"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_have_a_trace_each_and_share_gradients(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(TINY_EXPERIMENT)
    done = launch("camox/train.py", str(file), "--output", str(tmp_path / "runs"), "--profile")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny" / "profile"
    assert sorted(path.name for path in folder.glob("*.json.gz")) == [
        f"{phase}_rank_{rank}.json.gz" for phase in ("frozen", "full") for rank in (0, 1)
    ]
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    assert stages["full"]["parts"]["gradient reduction"]["total"] > 0
    assert "4 × 1 × 2" in stages["full"]["setting"]
    assert json.loads((folder / "exit.json").read_text())["code"] == 0
    assert not (tmp_path / "runs" / "tiny" / "checkpoints").exists()
