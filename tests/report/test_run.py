import json
import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camox.errors import ExperimentError
from camox.report.gallery import Examined
from camox.report.page import render
from camox.report.run import MOST_FILES, read_run
from camox.report.verdict import best_of, judge, state_of
from tests.report.conftest import event

ROW = {"step": 10, "epoch": 0, "phase": "full", "train/loss": 0.5}
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_a_torn_last_line_is_left_out_without_a_word(write_run):
    folder = write_run(rows=[ROW], events=[event("start")])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "epo')
    run = read_run(folder)
    assert [row.step for row in run.rows] == [10]
    assert run.notes == []


def test_damaged_lines_are_counted(write_run):
    folder = write_run(rows=[ROW])
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n[1]\n" + json.dumps(ROW).encode() + b"\n")
    run = read_run(folder)
    assert len(run.rows) == 1
    assert run.notes == ["metrics.jsonl: 2 of 3 lines are damaged and left out"]


def test_what_was_not_finite_is_nan(write_run):
    run = read_run(write_run(rows=[{**ROW, "train/loss": None, "non_finite": ["train/loss"]}]))
    assert math.isnan(run.series("train/loss")[1][0])
    assert "not finite: train/loss" in judge(run).stability


def test_files_that_are_not_listed_are_counted(write_run):
    run = write_run()
    known = dict(read_run(run).files)
    for number in range(MOST_FILES + 9):
        (run / f".hidden_{number}").touch()
        (run / f"zz_{number:03}").write_text("12")
    files = dict(read_run(run).files)
    assert len(files) == MOST_FILES + 1
    assert files[f"and {len(known) + 9} others"] == 2 * (len(known) + 9)


def test_rows_come_by_step(write_run):
    """A checkpoint is logged when it is safe, after steps that came later."""
    late = {"step": 10, "epoch": 0, "phase": "full", "checkpoint/seconds": 1.0}
    run = read_run(write_run(rows=[{**ROW, "step": 20}, late]))
    assert [row.step for row in run.rows] == [10, 20]


@pytest.mark.parametrize("there", [True, False])
def test_what_is_no_run_is_refused(tmp_path, there):
    if there:
        (tmp_path / "nowhere").mkdir()
    with pytest.raises(ExperimentError, match=r"nowhere: .*give the folder that training wrote"):
        read_run(tmp_path / "nowhere")


def test_a_run_whose_folder_is_held_is_still_running(write_run):
    folder = write_run(rows=[ROW], events=[event("start")])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert state_of(read_run(folder)) == "running"
    finally:
        holder.communicate(b"\n")
    assert state_of(read_run(folder)) == "gone"


@pytest.mark.parametrize(
    ("code", "state"), [(0, "finished"), (3, "stopped"), (4, "paused"), (130, "interrupted"), (1, "failed")]
)
def test_the_state_is_that_of_exit_json_else_of_the_end_event(write_run, code, state):
    assert state_of(read_run(write_run(exit_code=code, name="with"))) == state
    end = event("end", details={"code": code})
    assert state_of(read_run(write_run(events=[event("start"), end], name="without"))) == state
    resumed = [event("start"), end, event("resume")]
    assert state_of(read_run(write_run(events=resumed, name="resumed"))) == "gone"


def test_a_stop_names_its_guard(write_run):
    stop = event("explosion", 40, severity="error", message="stopped at step 40")
    end = event("end", 40, severity="error", details={"code": 3}, message="iou fell")
    outcome = judge(read_run(write_run(events=[event("start"), stop, end]))).outcome
    assert "guard, “Scores fell apart” (explosion)" in outcome
    assert "iou fell" in outcome
    assert "step 40" in outcome


FILES = (
    "experiment.toml",
    "environment.json",
    "metrics.jsonl",
    "events.jsonl",
    "exit.json",
    "evaluation/measures.json",
)
_NAMES = st.sampled_from(
    ["step", "epoch", "phase", "time", "kind", "details", "code", "stride", "datasets", "protocol", "a", "intervals",
     "val/iou", "val/count", "val/router/stride_4/entropy", "val/router/collapsed", "non_finite", "iou", "groups"]
)  # fmt: skip
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=8,
)


@given(file=st.sampled_from(FILES), content=st.binary(max_size=60) | ODD, lines=st.integers(1, 3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_there_is_a_page(tmp_path_factory, file, content, lines):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "evaluation").mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    text = content if isinstance(content, bytes) else (json.dumps(content) + "\n").encode() * lines
    (folder / file).write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("camox.report.page._plotly", str)  # five megabytes for each example
        assert "Verdict" in render([read_run(folder)], [Examined(trouble="none")])


@pytest.mark.parametrize(("raw", "ema", "weights"), [(0.5, 0.625, "EMA"), (0.625, 0.5, "raw")])
def test_the_best_score_is_told_with_the_weights_that_have_it(write_run, raw, ema, weights):
    rows = [{"step": 5, "epoch": 0, "phase": "full", "val/iou": raw, "val_ema/iou": ema}]
    best = best_of(read_run(write_run(rows=rows)))
    assert (best.score, best.weights) == (0.625, weights)
