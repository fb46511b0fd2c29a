import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from camox.errors import ExperimentError, TrainingStopped
from camox.tracking.jsonl import JsonLines, plain


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_on_disk_at_once(tmp_path):
    lines = JsonLines(tmp_path / "new" / "x.jsonl")
    lines.append({"step": 1})
    assert records(tmp_path / "new" / "x.jsonl") == [{"step": 1}]
    lines.close()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_line_that_the_disk_has_no_room_for_leaves_no_trace(tmp_path, is_told):
    """A disk may refuse, or take a part and say how much."""
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append({"step": 1})
    file = lines._file

    class Full:
        fileno, close = file.fileno, file.close

        def write(self, line):
            written = file.write(line[:5])
            if is_told:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written

    lines._file = Full()
    with pytest.raises(TrainingStopped, match=r"x\.jsonl: cannot be written \(No space left"):
        lines.append({"step": 2})
    lines._file = file
    lines.append({"step": 3})
    assert records(tmp_path / "x.jsonl") == [{"step": 1}, {"step": 3}]
    lines.close()


def test_every_torn_end_is_removed(tmp_path):
    whole = b'{"step": 1}\n{"step": 2}\n'
    for length in range(len(whole) + 1):
        path = tmp_path / "x.jsonl"
        path.write_bytes(whole[:length])
        lines = JsonLines(path)
        lines.append({"step": 3})
        lines.close()
        complete = whole[:length].count(b"\n")
        assert records(path) == [{"step": step} for step in [*range(1, complete + 1), 3]]


def test_non_finite_number_is_refused_and_leaves_no_trace(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.append({"x": float("nan")})
    lines.close()
    assert records(tmp_path / "x.jsonl") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([1, 2]), [1, 2]),
        ((1, "a", None), [1, "a", None]),
        ({"b", "a"}, ["a", "b"]),
        (Path("runs/x"), "runs/x"),
        ({1: {"x": (True,)}}, {"1": {"x": [True]}}),
    ],
)
def test_plain(value, expected):
    assert json.loads(json.dumps(plain(value))) == expected


def test_plain_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize(
    "line", ['{"step": "1"}', '{"step": []}', '{"step": NaN}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_a_line_that_is_no_record_is_removed_on_resume(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    JsonLines(path, last_step=2).close()
    assert records(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("gone", path)])
def test_what_is_no_file_is_an_error(tmp_path, make):
    make(tmp_path / "x.jsonl")
    with pytest.raises(ExperimentError, match="no file that lines can be added to"):
        JsonLines(tmp_path / "x.jsonl")
