import io
import re

import numpy as np
import pytest

from camox.errors import DataError
from camox.inference.scoring.results import report
from camox.measures.breakdown import summarise
from camox.measures.evaluator import Evaluator
from camox.tracking.console import Console

NAME = "a dataset of a long name (held out, selected on)"


@pytest.fixture
def datasets():
    evaluator = Evaluator()
    truth = np.zeros((8, 8), np.uint8)
    evaluator.add(0, "empty", "", np.zeros((8, 8)), truth)
    truth = truth.copy()
    truth[2:5, 2:5] = 1
    evaluator.add(1, "perfect", "", truth.astype(float), truth)
    scores = summarise(evaluator, {0: 0.0, 1: 9 / 64})
    return {NAME: scores, "other": scores}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_numbers_stay_whole_on_any_terminal(datasets, width):
    stream = io.StringIO()
    report(datasets, {"name": "camox"}, None, Console(stream=stream, width=width))
    row = next(line for line in stream.getvalue().splitlines() if "MAE" in line)
    assert row.split() == ["MAE", "0.0000", "0.0000"]


@pytest.mark.parametrize("width", [40, 80])
def test_half_an_interval_stands_beside_a_score_or_below_it(width):
    evaluator, shares = Evaluator(), {}
    for index in range(12):
        truth = np.zeros((16, 16), np.uint8)
        truth[2 : 4 + index, 2:9] = 1
        evaluator.add(index, str(index), "", 0.9 * truth.astype(float) + 0.05, truth)
        shares[index] = float(truth.mean())
    scores, stream = summarise(evaluator, shares), io.StringIO()
    report({NAME: scores, "NC4K": scores}, {"name": "camox"}, None, Console(stream=stream, terminal=True, width=width))
    low, high = scores.summary["intervals"]["s_measure"]
    value, half = f"{scores.summary['s_measure']:.4f}", f"±{(high - low) / 2:.3f}"
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()]
    at = next(i for i, words in enumerate(lines) if words[:1] == ["S"])
    beside = ["S", value, half, value, half]
    assert lines[at] == beside if width == 80 else lines[at] + lines[at + 1] == ["S", value, value, half, half]


def test_published_numbers_are_printed_as_such_and_never_for_other_data(datasets):
    stream = io.StringIO()
    report({**datasets, "CAMO": datasets["other"]}, {"name": "camox"}, None, Console(stream=stream, width=80))
    printed = stream.getvalue()
    assert printed.count("SINet-V2") == 1
    assert "CAMO: published" in printed
    assert printed.count("Protocols differ") == 1


def test_images_without_an_object_are_told_apart(datasets):
    stream = io.StringIO()
    report(datasets, {"name": "camox"}, None, Console(stream=stream))
    assert "1 image without an object; 0.00% of their area is called object" in stream.getvalue()


def test_the_document_is_returned(datasets):
    document = report(datasets, {"name": "camox"}, None, Console(active=False))
    assert document["protocol"]["name"] == "camox"
    assert document["datasets"][NAME]["s_measure"] == 1


def test_a_place_that_cannot_be_written_is_an_error(datasets, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        report(datasets, {"name": "camox"}, tmp_path / "file", Console(active=False))
