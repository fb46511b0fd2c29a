"""From records of incidents to the results, the table and the plots."""

import json

import cv2
import pytest

import stability_page
from pages import read_block
from tests.incidents.records import Outcome, write_record


def outcome(*scores: float, error: str = "", kinds: tuple[str, ...] = ()) -> Outcome:
    validations = [{"step": 7.0 * number, "iou": score} for number, score in enumerate(scores, start=1)]
    events = [{"kind": kind, "step": 7, "severity": "warning", "message": f"{kind}!"} for kind in kinds]
    events.append({"kind": "end", "step": 9, "severity": "info", "message": "done"})
    return Outcome(0.0 if error else scores[-1], error, events, validations)


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    clean = outcome(0.4, 0.8)
    ended, helped = outcome(0.4, error="NaN; look here"), outcome(0.4, 0.1, 0.79, kinds=("spike", "spike", "rollback"))
    write_record(folder, "test_b[1]", 4, "A rate", without=ended, with_guards=helped, clean=clean)
    for seed in range(3):
        write_record(folder, f"test_a[{seed}]", 11, "A kill", with_guards="the same bits")
    return folder


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- incidents -->\nold\n<!-- /incidents -->\nafter\n")
    return file


def run_tool(folder, *arguments):
    return stability_page.main([*arguments, "--json", str(folder / "results.json"), "--page", str(folder / "page.md")])


def test_records_become_results_a_table_and_plots(records, page):
    assert run_tool(page.parent, "--records", str(records)) == 0
    results = json.loads((page.parent / "results.json").read_text())
    assert [record["number"] for record in results["incidents"]] == [4, 11, 11, 11]
    assert {"machine", "versions", "command"} <= results.keys()
    assert read_block(page, "incidents").splitlines()[2:] == [
        "| 4 | A rate | NaN; look here | IoU 0.790 | 2 × spike, 1 × rollback | 0.800 |",
        "| 11 | A kill | not tried: cannot be switched off | 3 × the same bits | – | – |",
    ]
    assert cv2.imread(str(page.parent / "incidents.png")) is not None


def test_records_of_a_few_tests_replace_theirs_and_keep_the_others(records, page):
    run_tool(page.parent, "--records", str(records))
    few = page.parent / "few"
    write_record(few, "test_b[1]", 4, "A rate", without="lost", with_guards=outcome(0.7), clean=outcome(0.7))
    assert run_tool(page.parent, "--records", str(few)) == 0
    rows = read_block(page, "incidents").splitlines()[2:]
    assert rows[0] == "| 4 | A rate | lost | IoU 0.700 | – | 0.700 |"
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no record"), ('{"number": 1}', "has no test, title"), ("{", "cannot be read")],
)
def test_a_folder_that_holds_no_records_is_one_message(page, capsys, content, message):
    folder = page.parent / "none"
    folder.mkdir()
    if content is not None:
        (folder / "01_x.json").write_text(content)
    assert run_tool(page.parent, "--records", str(folder)) == 2
    assert message in capsys.readouterr().err
    assert "old" in page.read_text()
