"""Models on the same images: what differs, by how much, and what is published."""

import json

import numpy as np
import pytest

from camox.measures.breakdown import summarise
from camox.measures.comparison import compare, comparison_tables, difference_cell
from camox.measures.evaluator import Evaluator
from camox.measures.published import MEASURES, published_on, warning
from camox.measures.tables import finite, published_table


def scores(noise, count=16, names="image"):
    evaluator, shares = Evaluator(), {}
    for index in range(count):
        truth = np.zeros((24, 24), np.uint8)
        truth[4 : 8 + index % 9, 6:18] = 1
        made = np.random.default_rng(index).random(truth.shape)
        evaluator.add(index, f"{names} {index}", "", (1 - noise) * truth + noise * made, truth)
        shares[index] = float(truth.mean())
    return summarise(evaluator, shares)


def test_each_model_is_compared_with_the_first():
    document = compare({"set": {"a": scores(0.7), "b": scores(0.2), "c": scores(0.7)}})["set"]
    assert list(document["scores"]) == ["a", "b", "c"]
    assert list(document["differences"]) == ["b", "c"]
    better = document["differences"]["b"]["s_measure"]
    assert better["value"] == pytest.approx(document["scores"]["b"]["s_measure"] - document["scores"]["a"]["s_measure"])
    assert 0 < better["interval"][0] < better["value"] < better["interval"][1]
    assert document["differences"]["c"]["s_measure"] == {"value": 0.0, "interval": [0.0, 0.0]}
    json.dumps(finite(document), allow_nan=False)


def test_models_scored_on_other_images_are_not_compared():
    with pytest.raises(ValueError, match="a and b were scored on different images"):
        compare({"set": {"a": scores(0.5), "b": scores(0.5, names="other")}})


def test_the_tables_have_every_model_on_every_dataset_and_the_differences():
    document = compare({"one": {"a": scores(0.7), "b": scores(0.2)}, "NC4K": {"a": scores(0.7), "b": scores(0.2)}})
    tables = {table.title: table for table in comparison_tables(document)}
    assert [row[:3] for row in tables["Comparison"].rows] == [
        [dataset, model, "16"] for dataset in ("one", "NC4K") for model in ("a", "b")
    ]
    assert tables["one: difference from a"].header == ["measure", "b"]
    beside = tables["NC4K: beside published numbers"]
    assert [row[0] for row in beside.rows[:3]] == ["a", "b", "FOCUS-G"]
    assert beside.notes == [warning(), "Published are means over 4121 images, here over 16: another set of images."]
    assert "one: beside published numbers" not in tables


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.0123, [0.0041, 0.0205], "+0.0123 [+0.0041, +0.0205]*"),
        (-0.02, [-0.03, 0.0001], "-0.0200 [-0.0300, +0.0001]"),
        (-0.02, [-0.03, -0.01], "-0.0200 [-0.0300, -0.0100]*"),
        (0.5, None, "+0.5000"),
        (None, None, "–"),
    ],
)
def test_an_asterisk_says_that_the_interval_leaves_out_zero(value, interval, text):
    assert difference_cell({"value": value, "interval": interval}) == text


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("COD10K", True),
        ("cod10k-v3", True),
        ("CAMO_test", True),
        ("NC4K (test images, selected on)", True),
        ("COD10K (training images)", False),
        ("CAMOUFLAGE", False),
        ("my COD10K", False),
        ("habitats", False),
    ],
)
def test_published_numbers_are_shown_for_the_fields_sets_alone(name, known):
    assert bool(published_on(name)) is known


def test_a_whole_test_set_is_no_other_set_of_images():
    (table,) = published_table("NC4K", {"ours": {"count": 4121, "s_measure": 0.9, "f_weighted": 0.8, "mae": 0.1}})
    assert table.notes == [warning()]


def test_published_numbers_are_scores():
    for dataset in ("COD10K", "NC4K", "CAMO"):
        methods = published_on(dataset)
        assert len(methods) == 8
        assert [one.scores[0] for one in methods] == sorted((one.scores[0] for one in methods), reverse=True)
        for one in methods:
            s_measure, weighted_f, mae = one.scores
            assert len(MEASURES) == len(one.scores)
            assert 0.6 < weighted_f < s_measure < 1
            assert 0 < mae < 0.1
    assert "rotocols differ" in warning()
