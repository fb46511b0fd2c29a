"""What is written for others to read: it reads back to the last bit, and holds no NaN."""

import csv
import json
from importlib.metadata import version

import cv2
import numpy as np
import pytest

from camox.measures.breakdown import summarise
from camox.measures.evaluator import Evaluator
from camox.measures.protocol import ALL_MEASURES, CAMOX, PYSOD
from camox.measures.tables import write_scores


def scored(protocol="camox", count=4, empty=0, measures=ALL_MEASURES):
    evaluator, shares = Evaluator(protocol, measures), {}
    for index in range(count + empty):
        truth = np.zeros((40, 50), np.uint8)
        if index < count:
            cv2.circle(truth, (20, 20), 5 + index, 1, -1)
        noise = np.random.default_rng(index).random(truth.shape, np.float32)
        evaluator.add(index, f"image, {index}", "crab" if index % 2 else "", 0.6 * truth + 0.4 * noise, truth)
        shares[index] = truth.mean()
    return summarise(evaluator, shares)


def labels(text, title):
    """First cells of the rows below a title, up to the next title."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line in (f"## {title}", f"% {title}"))
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith(("## ", "\\end"))), len(lines))
    rows = [line.replace("&", "|").strip("| ") for line in lines[start + 1 : end] if "|" in line or "&" in line]
    cells = [row.split("|")[0].strip() for row in rows]
    return [cell for cell in cells if cell not in ("dataset", "---")]


def test_measures_json_reads_back_equal(tmp_path):
    scores = scored(count=12, empty=1)
    write_scores(tmp_path / "new" / "folder", {"A & B": scores}, CAMOX.as_dict())
    document = json.loads((tmp_path / "new/folder/measures.json").read_text())
    assert document == {"protocol": CAMOX.as_dict(), "datasets": {"A & B": scores.summary}}


def test_the_protocol_names_what_computes_and_what_it_equals():
    assert CAMOX.as_dict()["library"] == f"camox {version('camox')}"
    assert PYSOD.as_dict()["reference"] == f"pysodmetrics {version('pysodmetrics')}"
    assert PYSOD.as_dict()["min_max"] is True


def test_per_image_csv_reads_back_equal(tmp_path):
    scores = scored(empty=1)
    write_scores(tmp_path, {"set": scores}, CAMOX.as_dict())
    with (tmp_path / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [record.name for record in scores.records]
    assert [row["group"] for row in rows] == [record.group for record in scores.records]
    assert [float(row["object_share"]) for row in rows] == list(scores.object_shares)
    for row, record in zip(rows, scores.records, strict=True):
        other = {"dataset", "name", "group", "object_share"}
        cells = {name: float(row[name]) for name in row.keys() - other if row[name]}
        assert cells == record.result.scalars


def test_an_undefined_value_is_null_and_an_empty_cell(tmp_path):
    # The library's S is NaN for an object centred on the last row.
    evaluator = Evaluator("pysod")
    truth = np.zeros((9, 9), np.uint8)
    truth[8, 8] = 1
    evaluator.add(0, "corner", "", truth.astype(np.float32), truth)
    write_scores(tmp_path, {"set": summarise(evaluator, {0: 1 / 81})}, PYSOD.as_dict())
    assert json.loads((tmp_path / "measures.json").read_text())["datasets"]["set"]["s_measure"] is None
    with (tmp_path / "per_image.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["s_measure"] == ""
    for path in tmp_path.iterdir():
        assert "nan" not in path.read_text().lower()


def test_only_measures_that_were_asked_for_have_columns(tmp_path):
    write_scores(tmp_path, {"set": scored(measures=["iou", "mae"])}, CAMOX.as_dict())
    header = (tmp_path / "per_image.csv").read_text().splitlines()[0]
    assert header == "dataset,name,group,object_share,mae,iou"


@pytest.mark.parametrize("file", ["table.md", "table.tex"])
def test_tables_have_a_row_per_dataset_and_group(tmp_path, file):
    first = scored(empty=1)
    write_scores(tmp_path, {"first": first, "second": scored()}, CAMOX.as_dict())
    text = (tmp_path / file).read_text()
    assert labels(text, "Scores") == ["first", "first / crab", "second", "second / crab"]
    sizes = ("tiny", "small", "medium", "large")
    assert labels(text, "Scores by object size") == [
        f"{name} / {size}" for name in ("first", "second") for size in sizes
    ]
    assert labels(text, "Images without an object") == ["first"]
    assert f"{first.summary['s_measure']:.4f}" in text
    assert "rotocol: camox" in text


def test_latex_escapes_names(tmp_path):
    write_scores(tmp_path, {"100%_a&b": scored()}, CAMOX.as_dict())
    assert "100\\%\\_a\\&b &" in (tmp_path / "table.tex").read_text()


def test_an_earlier_result_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    write_scores(tmp_path, {"old": scored()}, CAMOX.as_dict())
    write_scores(tmp_path, {"new": scored()}, CAMOX.as_dict())
    assert json.loads((tmp_path / "measures.json").read_text())["datasets"].keys() == {"new"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"measures.json", "per_image.csv", "curves.csv", "table.md", "table.tex"}
