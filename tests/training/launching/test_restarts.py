"""What an elastic launcher's next attempt knows of those before it."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from camox import train
from camox.checkpoints import store
from camox.errors import CamoxError, DataError, PeersMissing, TrainingPaused, TrainingStopped
from camox.training import trainer
from camox.training.interruption import STOP, Requests
from camox.training.launching.launcher import exit_code, forget_earlier_attempts, has_told_failure
from camox.training.launching.restarts import ended_before, note_begun, note_end, resume_from, seconds_since_begun

RUN = Path("nowhere")


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """Makes this process one of an attempt of a launch, as torchrun's launcher tells it."""

    def be(launch: str, number: int = 0, rank: int = 0) -> None:
        folder = tmp_path / launch / f"attempt_{number}" / str(rank)
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))

    return be


def test_an_attempt_knows_of_the_last_one_of_its_launch_alone(attempt):
    attempt("one", 0)
    assert (resume_from(None, RUN), ended_before()) == (None, None)
    note_begun()
    note_end(3)
    attempt("one", 1, rank=5)
    assert (resume_from(None, RUN), ended_before()) == ("auto", 3)
    attempt("other", 1)
    assert (resume_from(None, RUN), ended_before()) == (None, None)


def test_without_a_launcher_there_are_no_other_attempts(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    note_begun()
    note_end(3)
    assert (resume_from(None, RUN), ended_before()) == (None, None)
    assert not list(tmp_path.iterdir())


class Ending:
    """Stands for the trainer: ends with an error, and notes how it was to resume."""

    error: CamoxError | None = None
    resumes: list[str | None]

    def __init__(self, experiment: object, resume: str | None):
        self.resumes.append(resume)

    def run(self) -> None:
        note_begun()
        if self.error is not None:
            raise self.error


@pytest.fixture
def file(monkeypatch, tiny_experiment, tmp_path) -> str:
    monkeypatch.setattr(trainer, "Trainer", Ending)
    monkeypatch.setattr(Ending, "resumes", [], raising=False)
    tiny_experiment()
    return str(tmp_path / "tiny.toml")


@pytest.mark.parametrize("error", [TrainingPaused("later"), TrainingStopped("bad"), DataError("gone")], ids=repr)
def test_what_has_ended_by_itself_is_told_once_and_not_tried_again(monkeypatch, attempt, file, capsys, error):
    monkeypatch.setattr(Ending, "error", error)
    codes = []
    for number in range(3):
        attempt("one", number)
        codes.append(train.main([file]))
    assert codes == [error.exit_code] * 3
    assert capsys.readouterr().err.count(str(error)) == 1
    assert len(Ending.resumes) == 1


@pytest.mark.parametrize(("local_rank", "met", "tells"), [("0", False, True), ("1", False, False), ("0", True, False)])
def test_one_process_of_a_machine_tells_what_is_wrong_before_all_have_met(monkeypatch, capsys, local_rank, met, tells):
    """There may be no such file on this machine alone; once they have met, the main process tells."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: met)
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    assert train.main(["nowhere.toml"]) == 2
    assert capsys.readouterr().err.startswith("error on process 2: ") is tells


def test_what_peers_were_missing_for_is_tried_again(monkeypatch, attempt, file):
    monkeypatch.setattr(Ending, "error", PeersMissing("they are late"))
    attempt("one", 0)
    assert train.main([file]) == 2
    monkeypatch.setattr(Ending, "error", None)
    attempt("one", 1)
    assert train.main([file]) == 0


@pytest.mark.parametrize("asked", [None, "auto", "elsewhere/epoch_0003"])
def test_an_attempt_goes_on_with_what_its_launch_has_begun(monkeypatch, attempt, file, asked):
    """From a checkpoint of another run it begins again, as long as there is none of its own."""
    options = [] if asked is None else ["--resume", asked]
    attempt("one", 0)
    train.main([file, *options])
    attempt("one", 1)
    train.main([file, *options])
    assert Ending.resumes == [asked, asked or "auto"]
    monkeypatch.setattr(store, "list_checkpoints", lambda run: [run / "checkpoints" / "epoch_0004"])
    train.main([file, *options])
    attempt("other")
    train.main([file, *options])
    assert Ending.resumes[2:] == ["auto", asked]


def test_the_code_of_the_first_attempt_reaches_who_waits(monkeypatch, attempt, file, tmp_path: Path):
    monkeypatch.setattr(Ending, "error", TrainingStopped("bad"))
    monkeypatch.setenv("CAMOX_EXIT_CODE_FILE", str(tmp_path / "code"))
    attempt("one", 0)
    train.main([file])
    (tmp_path / "code").unlink()
    attempt("one", 1)
    train.main([file])
    assert exit_code(tmp_path / "code", 1) == 3


def test_a_code_that_was_told_before_a_restart_is_taken_back(monkeypatch, attempt, file, tmp_path: Path):
    """The processes that followed may be killed, and then say nothing."""
    monkeypatch.setattr(Ending, "error", PeersMissing("late"))
    monkeypatch.setenv("CAMOX_EXIT_CODE_FILE", str(tmp_path / "code"))
    attempt("one", 0)
    train.main([file])
    assert exit_code(tmp_path / "code", 1) == 2
    assert has_told_failure()
    forget_earlier_attempts()  # another process of the same attempt, which is late
    assert has_told_failure()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    attempt("one", 1)
    monkeypatch.setattr(Ending, "run", crash)
    with pytest.raises(RuntimeError, match="a bug"):
        train.main([file])
    assert exit_code(tmp_path / "code", 1) == 1
    assert not has_told_failure()


def test_who_interrupts_a_run_twice_is_not_answered_by_a_restart(monkeypatch, attempt, file):
    monkeypatch.setattr(Ending, "run", interrupt)
    attempt("one", 0)
    assert train.main([file]) == 130
    assert ended_before() == 130


def interrupt(trainer: object) -> None:
    raise KeyboardInterrupt


def crash(trainer: object) -> None:
    raise RuntimeError("a bug")


def test_time_runs_on_over_restarts(attempt, monkeypatch):
    attempt("one", 0)
    assert seconds_since_begun() is None
    note_begun()
    now = time.time()
    monkeypatch.setattr("camox.training.launching.restarts.time.time", lambda: now + 100.0)
    attempt("one", 1)
    note_begun()
    assert seconds_since_begun() == pytest.approx(100.0, abs=1.0)
    alone = Accelerator(cpu=True)
    assert [Requests(alone, seconds / 3600, timedelta(seconds=1)).ask() for seconds in (200, 99)] == [set(), {STOP}]
