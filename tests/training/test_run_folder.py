"""A run's folder belongs to one run at a time."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from camox.errors import ExperimentError
from camox.training.run_folder import RunFolder, outcome


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
