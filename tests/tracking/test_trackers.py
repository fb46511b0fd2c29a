import json
import math

import pytest

from camox.tracking.trackers import JsonlTracker


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_row(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log({"train/loss": 0.1}, step=20, epoch=1, phase="full")
    tracker.finish()
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 20, "epoch": 1, "phase": "full", "train/loss": 0.1}]


def test_non_finite_values_become_null_and_are_named(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log({"a": math.nan, "b": -math.inf, "c": 1.0}, step=1, epoch=0, phase="full")
    tracker.finish()
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert (row["a"], row["b"], row["c"], row["non_finite"]) == (None, None, 1.0, ["a", "b"])


@pytest.mark.parametrize("resume_step", [0, 1, 20, 39, 40, 80])
def test_resume_doubles_no_step(tmp_path, resume_step):
    path = tmp_path / "metrics.jsonl"
    first = JsonlTracker(path)
    for step in range(0, 100, 20):
        first.log({"x": step}, step=step, epoch=0, phase="full")
    first.finish()
    second = JsonlTracker(path, resume_step=resume_step)
    for step in range(0, 120, 20):
        if step > resume_step:
            second.log({"x": step}, step=step, epoch=0, phase="full")
    second.finish()
    assert [row["step"] for row in rows(path)] == list(range(0, 120, 20))


def test_reserved_name_is_a_bug(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with pytest.raises(AssertionError, match="reserved"):
        tracker.log({"step": 1}, step=1, epoch=0, phase="full")
    tracker.finish()
