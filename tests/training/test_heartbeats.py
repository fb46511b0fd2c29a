"""Every part of a run that may take long beats, and the ranks' patience outlasts the watchdog."""

from datetime import timedelta

import pytest
from accelerate import Accelerator

from camox.stability.watchdog import Watchdog
from camox.training.processes import patience
from camox.training.trainer import Trainer


def test_a_run_beats_for_each_step_each_batch_of_validation_and_each_checkpoint(tiny_experiment, monkeypatch):
    beats = []
    beat = Watchdog.beat

    def note(watchdog: Watchdog, activity: str) -> None:
        beats.append(activity)
        beat(watchdog, activity)

    monkeypatch.setattr(Watchdog, "beat", note)
    # Four held-out images, in two batches; raw and averaged weights after each of two epochs.
    experiment = tiny_experiment("data.batch_size=2", "optimizer.accumulate=2", "checkpoints.asynchronous=false")
    Trainer(experiment, None, Accelerator(cpu=True)).run()
    assert beats[:3] == ["starting", "loading data", "training step"]
    assert beats.count("loading data") == beats.count("training step") == 4
    assert beats.count("validating") == 2 * 2 * (1 + 2)
    assert beats.count("saving") >= 2
    assert not (experiment.run_folder / "stacks.txt").exists()


@pytest.mark.parametrize("limit", [0, 60, 7200])
def test_processes_wait_longer_for_each_other_than_the_watchdog_does(tiny_experiment, limit):
    assert patience(tiny_experiment(f"stability.stall_seconds={limit}")) >= timedelta(seconds=limit, minutes=30)
