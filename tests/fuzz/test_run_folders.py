"""A run's folder in any state is resumed, or refused with an error that says why; whole checkpoints stay."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from camox.checkpoints.folders import clean_leftovers, list_checkpoints, read_pointer, resolve
from camox.checkpoints.store import read_checkpoint
from camox.errors import CheckpointError
from camox.experiment import Experiment
from camox.tracking.events import EventLog
from camox.tracking.trackers import JsonlTracker
from camox.training.run_folder import RunFolder
from camox.training.trainer import Trainer
from tests.fuzz.cases import few_or_many, run_cases, survives, time_limit
from tests.fuzz.damage import THINGS, copy_of, damage, put, put_thing, seal_again, ways

LINES = ("metrics.jsonl", "events.jsonl")
POINTERS = ("checkpoints/latest", "checkpoints/best")
FILES = (*LINES, *POINTERS, "exit.json", "environment.json", "experiment.toml")
LEFT = (
    ".tmp-", ".tmp-epoch_0003-1", ".tmp-deleted-epoch_0001", ".replaced-", ".replaced-.", ".replaced-..",
    ".replaced-latest", ".replaced-epoch_0001", ".replaced-epoch_0003", ".replaced-.tmp-x", "epoch_0003", "latest~",
    "-x", "é", "manifest.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def of_folder(small_experiment: Experiment) -> Any:
    """The experiment of a run's copy, which lies in another folder."""
    text = small_experiment.to_toml()

    def loaded(run: Path) -> Experiment:
        path = run.parent / "again.toml"
        path.write_text(text, encoding="utf-8")
        return Experiment.load(path, [f"experiment.name={run.name}"], run.parent)

    return loaded


def resume(run: Path, experiment: Experiment) -> None:
    """Opens the folder to go on, then the logs, as training does; closes all."""
    folder = RunFolder(run)
    if survives(lambda: folder.open(experiment, "auto")) is None:
        return
    for log in (
        lambda: JsonlTracker(run / "metrics.jsonl", resume_step=1),
        lambda: JsonlTracker(run / "metrics.jsonl"),
    ):
        tracker = survives(log)
        if tracker is not None:
            tracker.log({"a": 1.0}, step=2, epoch=1, phase="full")
            tracker.finish()
    events = survives(lambda: EventLog(run / "events.jsonl"))
    if events is not None:
        events.append("end", "done", step=2, epoch=1)
        events.close()
    folder.close(0, "done")


@few_or_many(25, 600)
def test_damaged_files_of_a_run(copies: Any, of_folder: Any, trained_run: Path, cases: int) -> None:
    def each(case: Any) -> None:
        name, how = case
        run, *checkpoints = copies(trained_run)
        changes = how[1]
        if how[0] == "values" and not name.endswith(".json"):
            how = ("thing", THINGS[changes[0].place % len(THINGS)])
        damage(run / name, how)
        for pointer in ("latest", "best"):
            assert read_pointer(run, pointer) in (*checkpoints, None)
        assert resolve(run) in checkpoints
        resume(run, of_folder(run))
        for checkpoint in checkpoints:
            read_checkpoint(checkpoint)

    run_cases(st.tuples(st.sampled_from(FILES), ways()), each, cases)


@few_or_many(25, 300)
def test_leftovers_of_any_name_and_kind(copies: Any, saved_run: Path, cases: int) -> None:
    def each(case: Any) -> None:
        run, whole, _ = copies(saved_run)
        for name, thing in case:
            left = run / "checkpoints" / name
            if os.path.lexists(left):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            if thing == "checkpoint":
                copy_of(whole, left)
            elif thing == "link":
                left.symlink_to(whole.name)
            else:
                put_thing(left, thing)
        before = {path.name.removeprefix(".replaced-") for path in list_checkpoints(run)}
        survives(lambda: clean_leftovers(run))
        after = {path.name for path in list_checkpoints(run) if not path.name.startswith(".")}
        assert after == before >= {"epoch_0001", "epoch_0002"}
        read_checkpoint(whole)

    left = st.tuples(st.sampled_from(LEFT), st.sampled_from([*THINGS, "checkpoint", "link"]))
    run_cases(st.lists(left, min_size=1, max_size=3), each, cases)


@pytest.mark.parametrize("name", ["exit.json", "environment.json", ".lock", ".experiment.toml.1.partial"])
@pytest.mark.parametrize("thing", ["folder", "full folder", "pipe"])
def test_something_else_where_a_file_is_to_be_written(
    copies: Any, of_folder: Any, trained_run: Path, name: str, thing: str
) -> None:
    run, *_ = copies(trained_run)
    (run / name).touch()
    put_thing(run / name, thing)
    with time_limit():
        resume(run, of_folder(run))


def test_training_is_not_resumed_from_a_state_that_lacks_a_key(copies: Any, of_folder: Any, trained_run: Path) -> None:
    run, _, newest = copies(trained_run)
    state = json.loads((newest / "state.json").read_text())
    del state["guards"]
    put(newest / "state.json", json.dumps(state).encode())
    seal_again(newest)
    with pytest.raises(CheckpointError, match="epoch_0002"):
        Trainer(of_folder(run), "auto").run()
