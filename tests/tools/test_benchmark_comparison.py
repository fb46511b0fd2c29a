"""`tools/benchmark.py compare`: what became worse beyond the noise, and what does not compare."""

import copy
import json
from pathlib import Path

import pytest

from benchmark import SUITES, main
from benchmarking.comparison import MORE_IS_BETTER

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def spread(median, least, most):
    return {"median": median, "least": least, "most": most}


OLD = {
    "command": "python tools/benchmark.py step --json old.json",
    "git_commit": "0123456789abcdef",
    "machine": {"processor": "one", "cores": 2, "system": "Linux", "threads": 1},
    "versions": {"torch": "2.14"},
    "settings": {"device": "cpu", "batch": 4, "rounds": 9},
    "results": {
        "networks": {
            "sparse": {"units_per_image": spread(5, 4.5, 5.5), "process_seconds": spread(1, 0.9, 1.1), "calls": 7}
        }
    },
    "ratios": {
        "step time": {"sparse / dense": spread(0.5, 0.45, 0.55)},
        "times as fast": {"ours / theirs": spread(7, 6.5, 7.5)},
        "saved bytes": {"sparse / dense": 0.7},
    },
    "targets": [{"what": "GMAC", "at_most": 14, "measured": 13, "met": True}],
}


@pytest.fixture
def compared(tmp_path, capsys):
    """Compares OLD with what a function makes of a copy; gives exit code, output and error."""

    def run(change, *options):
        new = copy.deepcopy(OLD)
        change(new)
        files = tmp_path / "old.json", tmp_path / "new.json"
        for file, document in zip(files, (OLD, new), strict=True):
            file.write_text(json.dumps(document))
        code = main(["compare", *map(str, files), *options])
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return run


def ratio(title, name, value):
    return lambda document: document["ratios"].__setitem__(title, {name: value})


UNCHANGED, WORSE, BETTER = (0, ", 0 better", ""), (1, ", 0 better", "worse:"), (0, ", 1 better", "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda document: None, UNCHANGED),
        (ratio("step time", "sparse / dense", spread(0.6, 0.56, 0.65)), WORSE),
        (ratio("step time", "sparse / dense", spread(0.6, 0.51, 0.65)), WORSE),  # ranges meet, medians do not
        (ratio("step time", "sparse / dense", spread(0.6, 0.48, 0.65)), UNCHANGED),  # a new round as good as the old
        (ratio("step time", "sparse / dense", spread(0.54, 0.53, 0.65)), UNCHANGED),  # an old round as bad as the new
        (ratio("step time", "sparse / dense", spread(0.4, 0.38, 0.44)), BETTER),
        (ratio("times as fast", "ours / theirs", spread(6, 5.8, 6.2)), WORSE),
        (ratio("times as fast", "ours / theirs", spread(8, 7.6, 8.2)), BETTER),
        (ratio("saved bytes", "sparse / dense", 0.71), WORSE),
        (ratio("saved bytes", "sparse / dense", 0.70001), UNCHANGED),
        (ratio("saved bytes", "sparse / dense", 0.69), BETTER),
        (
            lambda document: document["results"]["networks"]["sparse"].update(units_per_image=spread(6, 5.7, 6.2)),
            WORSE,
        ),
        (lambda document: document["targets"][0].update(measured=15, met=False), (1, ", 0 better", "lost: at most 14")),
        (lambda document: document["targets"][0].update(measured=13.9), UNCHANGED),
        (
            lambda document: document["results"]["networks"]["sparse"].update(process_seconds=spread(9, 8, 10)),
            UNCHANGED,
        ),
        (lambda document: document["settings"].update(rounds=5), UNCHANGED),
        (lambda document: document["ratios"].pop("saved bytes"), (0, ", 0 better", "gone")),
    ],
)
def test_what_counts_as_worse(compared, change, expected):
    code, output, error = compared(change)
    assert (code, error) == (expected[0], "")
    assert all(text in output for text in expected[1:])
    assert ("worse:" in output or "lost:" in output) == (code == 1)


def test_seconds_are_shown_on_one_machine_and_not_of_two(compared):
    assert "seconds, not judged" in compared(lambda document: None, "--all")[1]
    code, output, _ = compared(lambda document: document["machine"].update(processor="another"), "--all")
    assert code == 0
    assert "different machines: their seconds are not compared, the ratios are" in output
    assert "seconds, not judged" not in output
    assert "another" in output
    assert "sparse / dense" in output


def test_what_did_not_change_is_left_out_and_counted(compared, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, output, _ = compared(ratio("step time", "sparse / dense", spread(0.6, 0.56, 0.65)))
    assert "sparse / dense 0.5" in output
    assert "GMAC" in output
    assert "ours" not in output
    assert "seconds" not in output
    # two ratios, a figure in units, one in seconds
    assert "4 figures that did not change beyond the noise, or are not judged: see --all" in output
    assert "--all" not in compared(lambda document: None, "--all")[1]


def counted(document):
    """Of a suite that counts and times nothing."""
    del document["settings"]["rounds"]
    document.update(ratios={}, results={"step": {"416²": {"needed GiB": 6.5, "reserved GiB": 5.0, "remark": ""}}})


@pytest.mark.parametrize(
    ("figure", "value", "expected"),
    [
        ("needed GiB", 6.5, UNCHANGED),
        ("needed GiB", 6.6, WORSE),
        ("needed GiB", 6.4, BETTER),
        ("reserved GiB", 9.0, UNCHANGED),
    ],
)
def test_what_is_only_counted_compares_figure_by_figure(tmp_path, capsys, figure, value, expected):
    old = copy.deepcopy(OLD)
    counted(old)
    new = copy.deepcopy(old)
    new["results"]["step"]["416²"][figure] = value
    files = tmp_path / "old.json", tmp_path / "new.json"
    for file, document in zip(files, (old, new), strict=True):
        file.write_text(json.dumps(document))
    assert main(["compare", *map(str, files)]) == expected[0]
    output = capsys.readouterr().out
    assert all(text in output for text in expected[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["settings"].update(batch=8), "do not compare: measured with batch 4 and 8"),
        (lambda document: document["machine"].update(threads=2), "measured with threads 1 and 2"),
        (lambda document: document.update(command="python tools/benchmark.py moe"), "holds results of step, "),
        (lambda document: document.update(command="something"), "holds no results of tools/benchmark.py"),
        (lambda document: document["settings"].update(rounds=1), "measured in 1 rounds, which tell no noise"),
        (lambda document: document.pop("ratios"), "cannot be read as results of a benchmark"),
        (lambda document: document["ratios"].update({"step time": {"sparse / dense": {"median": 1}}}), "cannot be"),
        (lambda document: document.update(ratios={}, results={}, targets=[]), "have no figure in common"),
    ],
)
def test_what_does_not_compare_is_one_message(compared, change, message):
    code, output, error = compared(change)
    assert (code, output) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_is_missing_is_one_message(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'a.json'}: cannot be read as results")


def test_a_setting_that_only_one_has_is_told(compared):
    code, output, _ = compared(lambda document: document["settings"].update(layout="nhwc"))
    assert code == 0
    assert "layout = nhwc is a setting of one of them only" in output


COMMITTED = [
    path
    for path in sorted(RESULTS.glob("*.json"))
    if any(f"tools/benchmark.py {suite}" in str(json.loads(path.read_text()).get("command")) for suite in SUITES)
]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_results_are_as_good_as_themselves(path, capsys):
    assert main(["compare", str(path), str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 worse, 0 better")


def test_only_speedups_and_shares_are_gains():
    titles = {title for path in COMMITTED for title in json.loads(path.read_text())["ratios"]}
    gains = {title for title in titles if any(word in title for word in MORE_IS_BETTER)}
    assert gains == {"times as fast", "validation, times as fast", "images per second"}
