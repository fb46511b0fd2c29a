"""report.html at the end of training: there when wanted, and never the reason for which a run fails."""

import json
import signal

import pytest

from camox.errors import ExperimentError, TrainingPaused, TrainingStopped
from camox.training.trainer import Trainer


def kinds(run):
    return [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_finished_run_has_its_page_which_says_that_it_is_finished(trained):
    assert "✓ Finished" in (trained / "report.html").read_text()
    assert kinds(trained)[-1] == "end"


def test_a_failure_of_the_page_becomes_an_event(tiny_experiment, monkeypatch):
    def fail(runs):
        raise RuntimeError("no room on the page")

    monkeypatch.setattr("camox.report.report.write_report", fail)
    experiment = tiny_experiment("tracking.report=true")
    Trainer(experiment).run()
    run = experiment.run_folder
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert kinds(run)[-2:] == ["end", "report"]
    assert "no room on the page" in (run / "events.jsonl").read_text()


def test_a_disk_that_takes_neither_page_nor_event_leaves_the_run_finished(tiny_experiment, monkeypatch, capsys):
    def fail(runs):
        monkeypatch.setattr("camox.tracking.events.EventLog.append", refuse)
        raise ExperimentError("report.html: cannot be written")

    def refuse(self, *arguments, **fields):
        raise TrainingStopped("events.jsonl: cannot be written")

    monkeypatch.setattr("camox.report.report.write_report", fail)
    Trainer(tiny_experiment("tracking.report=true")).run()
    said = capsys.readouterr()
    assert "report.html could not be written" in " ".join(said.err.split())
    assert "done: tiny" in said.out


def test_a_run_that_is_only_paused_does_not_wait_for_a_page(tiny_experiment, monkeypatch):
    experiment = tiny_experiment("tracking.report=true")
    trainer = Trainer(experiment)
    heed = Trainer._heed_requests

    def interrupt(self):
        signal.raise_signal(signal.SIGTERM)
        heed(self)

    monkeypatch.setattr(Trainer, "_heed_requests", interrupt)
    with pytest.raises(TrainingPaused):
        trainer.run()
    assert not (experiment.run_folder / "report.html").exists()
