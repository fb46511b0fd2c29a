import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.experiment.files import (
    Node,
    escape_variables,
    expand_variables,
    merge,
    parse_override,
    plain,
    resolve,
)
from camox.experiment.problems import Origin

HERE = Origin(is_override=False, place="x.toml")
Write = Callable[..., Path]


def node(value: object) -> Node:
    if isinstance(value, dict):
        return Node({key: node(child) for key, child in value.items()}, HERE)
    if isinstance(value, list):
        return Node([node(child) for child in value], HERE)
    return Node(value, HERE)


def tables_of(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=dict.fromkeys("abc", values))


PHASES = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["warm", "full", "last"])},
        optional={"lr": st.integers(), "epochs": st.integers()},
    ),
    unique_by=lambda phase: phase["name"],
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "t": tables_of(st.integers()),
        "u": st.fixed_dictionaries({}, optional={"v": tables_of(st.lists(st.integers()))}),
        "phases": PHASES,
    },
)


@given(DOCUMENTS)
def test_merging_is_idempotent_and_has_a_neutral_element(document: dict):
    expected = plain(node(document))
    assert plain(merge(node(document), node(document))) == expected
    assert plain(merge(node({}), node(document))) == expected
    assert plain(merge(node(document), node({}))) == expected


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_merging_is_associative(a: dict, b: dict, c: dict):
    left = merge(merge(node(a), node(b)), node(c))
    right = merge(node(a), merge(node(b), node(c)))
    assert plain(left) == plain(right)


@given(DOCUMENTS, DOCUMENTS)
def test_the_later_document_wins_and_nothing_else_changes(base: dict, top: dict):
    merged = plain(merge(node(base), node(top)))
    for table in ("t",):
        expected = {**base.get(table, {}), **top.get(table, {})}
        assert merged.get(table, {}) == expected
    names = [phase["name"] for phase in merged.get("phases", ())]
    first = [phase["name"] for phase in base.get("phases", ())]
    assert names[: len(first)] == first
    assert sorted(names) == sorted({*first, *(phase["name"] for phase in top.get("phases", ()))})


@given(st.text(), st.dictionaries(st.from_regex(r"\A[A-Z_]{1,3}\Z"), st.text()))
def test_escaped_text_survives_expansion(text: str, environment: dict[str, str]):
    problems: list = []
    assert expand_variables(node(escape_variables(text)), environment, problems).value == text
    assert not problems


@pytest.mark.parametrize("text", ["${A}", "$${A}", "x${A}${B_1}$", "$$${A}"])
def test_escaped_variables_survive_expansion(text: str):
    assert expand_variables(node(escape_variables(text)), {}, []).value == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1),
        ("a.b = 6e-4", 6e-4),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b="1"', "1"),
        ("a.b=runs/x", "runs/x"),
        ("a.b=cpu", "cpu"),
        ("a.b=x=y", "x=y"),
        ("a.b=1\nc = 2", "1\nc = 2"),
        ('a.b=[{synthetic="habitats",count=10}]', [{"synthetic": "habitats", "count": 10}]),
    ],
)
def test_override_value(text: str, value: object):
    path, parsed = parse_override(text)
    assert path == ("a", "b")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["", "a.b", "=1", "a.b=", "a..b=1", "a b=1", "[a]=1", "a={}\nb=1", "a.b=[1", 'a.b="x', "a.b={"]
)
def test_malformed_override(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse_override(text)


@given(st.text())
def test_override_is_parsed_or_refused(text: str):
    with contextlib.suppress(ValueError):
        path, _ = parse_override(text)
        assert path


def test_extends_chains_relative_to_each_file(write: Write, minimal: str):
    write(minimal, "bases/root.toml")
    write('extends = "root.toml"\n[experiment]\nname = "middle"\nseed = 1\n', "bases/middle.toml")
    path = write('extends = "bases/middle.toml"\n[experiment]\nname = "leaf"\n[[phases]]\nname = "full"\nlr = 1e-4\n')
    experiment = Experiment.load(path)
    assert (experiment.experiment.name, experiment.experiment.seed) == ("leaf", 1)
    assert [(phase.name, phase.epochs, phase.lr) for phase in experiment.phases] == [("full", 2, 1e-4)]


def test_override_beats_file_and_later_override_beats_earlier(write: Write, minimal: str):
    experiment = Experiment.load(
        write(minimal),
        [
            "optimizer.lr=1e-3",
            "optimizer.lr=2e-3",
            "phases.full.lr=6e-4",
            'data.train=[{synthetic="habitats",count=10}]',
        ],
        output="elsewhere",
    )
    assert experiment.optimizer.lr == 2e-3
    assert experiment.phases[0].lr == 6e-4
    assert experiment.data.train[0].count == 10  # type: ignore[union-attr]
    assert experiment.run_folder == Path("elsewhere/minimal")


def test_variables_come_from_the_environment(write: Write, minimal: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLACE", "/mnt/d")
    experiment = Experiment.load(write(minimal), ["experiment.output=${PLACE}/runs"])
    assert experiment.experiment.output == "/mnt/d/runs"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "x.toml: no such file: the folder has no .toml files"),
        ({"xx.toml": ""}, 'x.toml: no such file: did you mean "xx.toml"?'),
        ({"x.toml": "[a]\nb = \n"}, "x.toml:2:5: not valid TOML: Invalid value"),
        (
            {"x.toml": 'extends = "y.toml"'},
            'x.toml:1: extends "y.toml": no such file: did you mean "x.toml"?',
        ),
        ({"x.toml": "\nextends = 3"}, 'x.toml:2: extends must be the path of one file, such as "base.toml"'),
        (
            {"x.toml": 'extends = "y.toml"', "y.toml": '\nextends = "x.toml"'},
            "y.toml:2: files extend each other in a circle: x.toml -> y.toml -> x.toml. Remove one extends",
        ),
    ],
)
def test_unreadable_files(write: Write, files: dict[str, str], message: str):
    for name, text in files.items():
        write(text, name)
    write("", "unrelated.txt")
    with pytest.raises(ExperimentError) as caught:
        resolve("x.toml")
    assert str(caught.value) == message


def test_file_that_is_not_utf8(tmp_path: Path):
    path = tmp_path / "x.toml"
    path.write_bytes(b'a = "\xff"')
    with pytest.raises(ExperimentError, match="not UTF-8"):
        resolve(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 9223372036854775808", r"x\.toml:2: .*more than 64 bits"),
        ("seed = 0x" + "f" * 5000, r"x\.toml:2: .*more than 64 bits"),
        ("seed = " + "9" * 5000, r"x\.toml: .*more than 64 bits"),
        ('notes = "a\\u0000b"', r"x\.toml:2: .*NUL"),
        ("notes" + ".a" * 200 + " = 1", r"x\.toml:2: nested too deeply"),
    ],
)
def test_what_no_file_could_hold_again_is_an_error_with_its_line(write: Write, text: str, message: str):
    with pytest.raises(ExperimentError, match=message):
        Experiment.load(write(f"[experiment]\n{text}\n"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment.notes=\udcff", "not UTF-8"),
        ("experiment.seed=" + "9" * 5000, "more than 64 bits"),
        ("a." * 2000 + "b=1", "is not a key"),
        ("a." * 500 + "b=1", "is not a key"),
    ],
)
def test_nor_can_an_override(write: Write, minimal: str, override: str, message: str):
    with pytest.raises(ExperimentError, match=message):
        Experiment.load(write(minimal), [override])


def test_nor_a_variable(write: Write, minimal: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAMOX_ODD", "\udcff")
    with pytest.raises(ExperimentError, match="CAMOX_ODD, which is not UTF-8 text"):
        Experiment.load(write(minimal), ["experiment.notes=${CAMOX_ODD}"])


def test_a_byte_order_mark_is_passed_over(write: Write, minimal: str):
    assert Experiment.load(write("\ufeff" + minimal)).experiment.name == "minimal"


@pytest.mark.parametrize("extended", ["a" * 300 + ".toml", "loop.toml"])
def test_a_path_that_the_system_refuses_is_an_error(write: Write, minimal: str, extended: str):
    path = write(f'extends = "{extended}"\n{minimal}')
    Path("loop.toml").symlink_to("loop.toml")
    for wrong in (path, Path(extended)):
        with pytest.raises(ExperimentError, match=r"no such file|a broken link"):
            Experiment.load(wrong)


def test_a_chain_may_be_longer_than_the_stack(write: Write, minimal: str):
    write(minimal, "0.toml")
    for number in range(1, 1200):
        write(f'extends = "{number - 1}.toml"\n', f"{number}.toml")
    assert Experiment.load(Path("1199.toml")).experiment.name == "minimal"
