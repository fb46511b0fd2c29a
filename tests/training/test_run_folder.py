"""A run's folder belongs to one run at a time."""

import errno
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from camox.checkpoints.store import list_checkpoints
from camox.errors import CheckpointError, ExperimentError, TrainingPaused
from camox.stability.guards import Finding
from camox.stability.recovery import Recovery
from camox.tracking.events import EventLog
from camox.training.endings import outcome
from camox.training.run_folder import RunFolder
from camox.training.trainer import Trainer
from tests.training.test_trainer import rows, stopped_after, train


def test_a_name_that_is_too_long_to_be_a_folder_is_one_message(tiny_experiment, tmp_path):
    folder = RunFolder(tmp_path / ("x" * 300))
    with pytest.raises(ExperimentError, match="there is no run at"):
        folder.open(tiny_experiment(), "latest")
    with pytest.raises(ExperimentError, match="cannot be written"):
        folder.open(tiny_experiment(), None)


def test_a_folder_in_use_by_another_process_is_refused_and_free_when_that_is_killed(tiny_experiment, tmp_path):
    experiment = tiny_experiment()
    holder = textwrap.dedent(
        f"""
        import os, sys, time
        from pathlib import Path
        from camox.training.run_folder import RunFolder
        folder = RunFolder(Path({str(experiment.run_folder)!r}))
        folder._acquire()
        # A data worker inherits the open file and outlives its parent by some seconds.
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        print("held", flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ExperimentError, match=r"in use by a run.*--output"):
            RunFolder(experiment.run_folder).open(experiment, "auto")
        process.kill()
        process.wait()
        assert RunFolder(experiment.run_folder).open(experiment, "auto") is None
        process.stdout.close()


def test_the_experiment_in_the_folder_loads_back_equal(tiny_experiment):
    experiment = tiny_experiment()
    folder = RunFolder(experiment.run_folder)
    folder.open(experiment, None)
    folder.close(0, "done")
    assert type(experiment).load(experiment.run_folder / "experiment.toml") == experiment


def test_a_folder_that_cannot_be_written_says_so(tiny_experiment, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    experiment = tiny_experiment(output=blocker)
    with pytest.raises(ExperimentError, match=r"cannot be written.*--output"):
        RunFolder(experiment.run_folder).open(experiment, None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optimizer.lr=5e-3", r"optimizer\.lr"),
        ("phases.full.epochs=9", "phases"),
        ("checkpoints.monitor=mae", r"checkpoints\.monitor"),
        ("experiment.seed=8", r"experiment\.seed"),
    ],
)
def test_other_settings_are_another_run(tiny_experiment, change, named):
    first = tiny_experiment()
    folder = RunFolder(first.run_folder)
    folder.open(first, None)
    (first.run_folder / "metrics.jsonl").write_text('{"step": 1}\n')
    folder.close(3, "stopped")
    with pytest.raises(ExperimentError, match=named):
        RunFolder(first.run_folder).open(tiny_experiment(change), "auto")
    free = tiny_experiment("checkpoints.keep_last=9", "tracking.log_every=3", "experiment.notes=x", "data.workers=1")
    again = RunFolder(first.run_folder)
    assert again.open(free, "auto") is None
    again.close(0, "done")


def test_the_end_is_written_with_code_and_reason(tiny_experiment):
    experiment = tiny_experiment()
    folder = RunFolder(experiment.run_folder)
    folder.open(experiment, None)
    folder.close(*outcome(KeyboardInterrupt()))
    end = json.loads((experiment.run_folder / "exit.json").read_text())
    assert (end["code"], end["last_clean_checkpoint"]) == (130, None)
    assert outcome(None) == (0, "done")
    assert outcome(ExperimentError("no"))[0] == 2
    assert outcome(ValueError("bug")) == (1, "ValueError: bug")
    assert isinstance(folder.path, Path)


def test_a_checkpoint_may_be_named_from_inside_its_folder(tiny_experiment, tmp_path, monkeypatch):
    experiment = tiny_experiment()
    folder = RunFolder(experiment.run_folder)
    folder.open(experiment, None)
    folder.close(4, "stopped")
    checkpoint = experiment.run_folder / "checkpoints" / "epoch_0001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    for inside, name in ((checkpoint.parent, "epoch_0001"), (checkpoint, ".")):
        monkeypatch.chdir(inside)
        again = RunFolder(experiment.run_folder)
        assert again.open(experiment, name).resolve() == checkpoint.resolve()
        again.close(0, "done")
        other = tiny_experiment("optimizer.lr=5e-3", output=tmp_path / "elsewhere")
        with pytest.raises(ExperimentError, match=r"optimizer\.lr"):
            RunFolder(other.run_folder).open(other, name)


def test_where_no_checkpoint_is_old_enough_the_first_may_do(tiny_experiment):
    run = train(tiny_experiment("phases.full.epochs=2"))
    folder, (first, second, third) = RunFolder(run), list_checkpoints(run)
    assert folder.last_sound(10**6) == (third, [])
    assert folder.last_sound(1) == (None, [])
    assert folder.last_sound(1, or_first=True) == (first, [])
    (first / "model.safetensors").write_bytes(b"damaged")
    found, (told,) = folder.last_sound(1, or_first=True)
    assert found == second
    assert told.startswith(f"{first} is damaged: ")
    assert folder.last_sound(3) == (None, [told])


BOOKS = Recovery(4, 0.5, 0, ())
BOOKS.roll_back(40, [], 100)


@pytest.mark.parametrize("stop", [0, 2])
def test_a_kill_before_the_next_checkpoint_does_not_make_a_run_forget_its_rollbacks(tiny_experiment, tmp_path, stop):
    """Nor one before the first, after a rollback to the beginning."""
    whole = train(tiny_experiment(output=tmp_path / "whole"))
    experiment = tiny_experiment(output=tmp_path / "parts")
    folder = RunFolder(experiment.run_folder)
    if stop:
        with stopped_after(stop), pytest.raises(TrainingPaused):
            train(experiment)
    experiment.run_folder.mkdir(parents=True, exist_ok=True)
    folder.note_recovery(BOOKS.state_dict())
    run = train(experiment, resume="auto")
    rates, before = ([row["lr/head"] for row in rows(of) if "lr/head" in row] for of in (run, whole))
    assert rates == pytest.approx([*before[:stop], *(0.5 * rate for rate in before[stop:])])
    assert {row["stability/rollbacks"] for row in rows(run)[stop:] if "lr/head" in row} == {1}


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"acts": 5}', '{"acts": 5, "adjustments": {"rate": 1, "speed": 2}}']
)
def test_damaged_books_of_recovery_are_named(tmp_path, text):
    (tmp_path / "recovery.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"recovery\.json: cannot be read"):
        RunFolder(tmp_path).noted_recovery()


def test_what_recovery_has_changed_holds_in_the_run(tiny_experiment):
    """Beside the rates, which the controls of each step have: the last rung of the ladder and those for routers."""
    experiment = tiny_experiment("model.moe.router.noise=0.5")
    books = Recovery(4, 1.0, 0, ("no_deep_supervision",))
    books.roll_back(0, [], 100)
    for _ in range(2):
        books.decide(Finding("router_collapse", "to one pair", "calm_routers"), 0)
    experiment.run_folder.mkdir(parents=True)
    RunFolder(experiment.run_folder).note_recovery(books.state_dict())
    trainer = Trainer(experiment, "auto", Accelerator(cpu=True))
    trainer.run()
    assert trainer.training_step.objective.weights["deep"] == 0
    assert {trainer.network.balance(stride).bias_rate for stride in trainer.network.scales} == {
        4 * experiment.model.moe.balance.bias_rate
    }
    assert {(router.noise, router.noise_share) for router in trainer.network.routers.values()} == {(1.0, 1 - 4 / 500)}


def test_a_disk_that_is_full_at_the_end_does_not_hide_why_the_run_ended(tiny_experiment, monkeypatch):
    append = EventLog.append

    def full(log: EventLog, kind: str, *arguments: Any, **keywords: Any) -> Any:
        if kind == "end":
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(log, kind, *arguments, **keywords)

    monkeypatch.setattr(EventLog, "append", full)
    experiment = tiny_experiment()
    with stopped_after(2), pytest.raises(TrainingPaused):
        train(experiment)
    assert json.loads((experiment.run_folder / "exit.json").read_text())["code"] == 4
