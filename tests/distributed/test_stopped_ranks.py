"""A signal that reaches one of two processes stops both at the same step, and the run goes on bit for bit."""

import json
from pathlib import Path

import pytest

from camox.checkpoints.store import list_checkpoints, read_checkpoint
from camox.errors import TrainingPaused
from camox.experiment import Experiment
from tests.conftest import TINY_EXPERIMENT
from tests.distributed.test_two_ranks import ROOT, launch
from tests.training.test_trainer import bits, numbers, stopped_after, train

pytestmark = pytest.mark.distributed

EXPERIMENT = TINY_EXPERIMENT.replace("batch_size = 4", "batch_size = 1").replace("image_size = 32", "image_size = 64")


def assert_resumes_as(whole: Path, parts: Path, file: Path) -> None:
    """Goes on with the run in `parts` on two ranks: its numbers and checkpoints are those of the one in `whole`."""
    done = launch("camox/train.py", str(file), "--resume", "auto", "--output", str(parts.parent))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert numbers(parts) == numbers(whole)
    theirs = {path.name: bits(path) for path in list_checkpoints(whole)}
    ours = {path.name: bits(path) for path in list_checkpoints(parts)}
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_and_the_resumed_run_is_the_same(tmp_path):
    """Each rank has its own running statistics, random numbers and half-summed meters in mid-epoch."""
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT.replace("log_every = 1", "log_every = 3").replace("workers = 0", "workers = 1"))
    done = launch(str(ROOT / "tests/distributed/stopped_ranks.py"), str(tmp_path), str(file), "1", "training")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    parts, whole = tmp_path / "parts" / "tiny", tmp_path / "whole" / "tiny"
    assert [path.name for path in list_checkpoints(parts)] == ["epoch_0000_step_0000002"]  # heard a step later
    assert json.loads((parts / "exit.json").read_text())["code"] == 4

    assert_resumes_as(whole, parts, file)


@pytest.mark.slow
def test_a_signal_to_one_rank_in_a_validation_ends_it_on_both(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT)
    done = launch(str(ROOT / "tests/distributed/stopped_ranks.py"), str(tmp_path), str(file), "1", "validation")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    parts, whole = tmp_path / "parts" / "tiny", tmp_path / "whole" / "tiny"
    (stopped,) = list_checkpoints(parts)
    assert stopped.name.startswith("epoch_0000_step_")

    assert_resumes_as(whole, parts, file)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_says_what_differs(tmp_path):
    """Of an epoch of eight samples four are done: two processes share the other four in two steps."""
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT)
    experiment = Experiment.load(file, output=str(tmp_path))
    with stopped_after(4), pytest.raises(TrainingPaused):
        train(experiment)
    done = launch("camox/train.py", str(file), "--resume", "auto", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    text = " ".join((done.stdout + done.stderr).split())
    assert "was written by 1 process and 2 go on: effective batch" in text
    steps = [read_checkpoint(path).state["step"] for path in list_checkpoints(experiment.run_folder)]
    assert steps == [4, 4 + 2, 4 + 2 + 4]
