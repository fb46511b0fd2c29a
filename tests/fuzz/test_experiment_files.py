"""Damaged experiment files, odd `extends` and any override: an experiment that can be used, or an ExperimentError."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import strategies as st

from camox.experiment import Experiment
from camox.experiment.messages import Vocabulary
from tests.conftest import TINY_EXPERIMENT
from tests.fuzz.cases import few_or_many, run_cases, survives, time_limit
from tests.fuzz.mutations import byte_edits, changed, edited, tree_changes

RECIPES = Path(__file__).resolve().parents[2] / "experiments"
SOURCES = {path.name: path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))} | {
    "tiny.toml": TINY_EXPERIMENT.encode()
}
TOKENS = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\\", b'"', b'"""', b"'''", b"#", b"=", b".",
    b",", b"[", b"]", b"[[", b"]]", b"{", b"}", b"[" * 2000, b"{a=" * 600, b"a." * 999, b"a." * 300, b"9" * 5000,
    b"0x" + b"f" * 5000, b"9" * 19, b"-9223372036854775809", b" = inf\n", b" = nan\n", b" = true\n", b"1e999", b"0x7f",
    b"1979-05-27T07:32:00Z", b"07:32:00", b"${HOME}", b"${CAMOX_UNSET}", b"$${A}", b"\\u0000", b"\\ud800",
    b'\nextends = "base.toml"\n', b'\nextends = "tiny.toml"\n', b"\n[phases]\n", b"\n[[phases]]\n", b"\n[data]\n",
    b"\n[[data.augment]]\n", b"\n[model.moe.router]\n",
)  # fmt: skip
VOCABULARY = Vocabulary(Experiment)
KEYS = sorted(
    {key for table in VOCABULARY.tables.values() for key in table.model_fields} | {"extends", "layout", "path"}
)
WORDS = ("", "auto", "none", "image", "cod10k", "habitats", "iou", "mae", "texture", "backbone", "${HOME}", "a/b", "é")
SCALARS = (
    st.sampled_from(WORDS)
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**400])
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.datetimes()
    | st.dates()
    | st.times()
)
NAMES = st.sampled_from(KEYS) | st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
HEADERS = [*sorted(".".join(path) for path in VOCABULARY.tables if path), "phases.full", "data.train", "a.b"]
PLACES = [".".join((*path, key)) for path, table in VOCABULARY.tables.items() for key in table.model_fields if path]
TEXTS = st.sampled_from(
    [
        "",
        "1",
        "-1",
        "0.5",
        "true",
        "inf",
        "nan",
        "[]",
        "[1,2]",
        "{}",
        "{a=1}",
        '""',
        "'",
        "word",
        "[word",
        "\n",
        "1\nb=2",
    ]
)
OVERRIDES = (
    st.builds("{}={}".format, st.sampled_from(PLACES), TEXTS)
    | st.builds(
        "{}.{}={}".format,
        st.sampled_from(HEADERS),
        NAMES,
        TEXTS | st.text(max_size=8) | VALUES.map(lambda value: tomli_w.dumps({"v": value}).removeprefix("v = ")),
    )
    | st.text(max_size=20)
    | st.sampled_from(["=", "a", "a=", "=1", "." * 50 + "=1", "a." * 2000 + "b=1", "a." * 90 + "b=1", "x\udcff=\udcff"])
    | st.sampled_from(["9" * 5000, "0x" + "f" * 5000, "[" * 3000, "\udcff", "\0"]).map("data.image_size={}".format)
)
OTHERS = (
    ".", "..", "/", "", "~", "/dev/null", "/dev/zero", "missing.toml", "x.toml", "./x.toml", "tiny.toml", "tiny.toml/",
    "tiny.toml/x", "sub/../tiny.toml", "circle.toml", "loop.toml", "dangling.toml", "link.toml", "pipe.toml", "folder",
    "folder.toml", "binary.toml", "a" * 300, "a/" * 3000, "a\0b", "\n", "file:///x.toml", "*.toml", "tiny.toml\n",
)  # fmt: skip


@pytest.fixture(autouse=True)
def open_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe reads where its data are from the environment."""
    monkeypatch.setenv("CAMOX_OPEN_PAIRS", "pairs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, and beside them everything that `extends` may meet but should not."""
    folder = tmp_path_factory.mktemp("experiments")
    for name, content in SOURCES.items():
        (folder / name).write_bytes(content)
    (folder / "circle.toml").write_text('extends = "x.toml"\n')
    (folder / "folder.toml").mkdir()
    (folder / "binary.toml").write_bytes(bytes(range(256)))
    (folder / "loop.toml").symlink_to("loop.toml")
    (folder / "dangling.toml").symlink_to("gone.toml")
    (folder / "link.toml").symlink_to("x.toml")
    os.mkfifo(folder / "pipe.toml")
    return folder


def check(path: Path, *overrides: str) -> None:
    """Whatever loads can be shown, written, and read back as the same."""
    experiment = survives(lambda: Experiment.load(path, overrides))
    if experiment is None:
        return
    json.dumps(experiment.plain(), default=str)
    experiment.fingerprint()
    experiment.phases_resolved()
    assert all(isinstance(warning, str) for warning in experiment.warnings)
    text = experiment.to_toml()
    written = path.with_name("written.toml")
    written.write_text(text, encoding="utf-8")
    again = Experiment.load(written)
    assert again.to_toml() == text  # not `==` of the objects: a NaN among a transform's arguments equals nothing
    assert again.fingerprint() == experiment.fingerprint()


@few_or_many(400, 3000)
def test_damaged_bytes(folder: Path, cases: int) -> None:
    def each(case: Any) -> None:
        name, edits = case
        (folder / "x.toml").write_bytes(edited(SOURCES[name], edits))
        check(folder / "x.toml")

    run_cases(st.tuples(st.sampled_from(sorted(SOURCES)), byte_edits(TOKENS)), each, cases)


@few_or_many(200, 2000)
def test_any_values(folder: Path, cases: int) -> None:
    trees = {name: tomli.loads(content.decode()) for name, content in SOURCES.items()}

    def each(case: Any) -> None:
        name, changes, arguments = case
        tree = changed(trees[name], changes)
        if arguments:  # of a transform: the one table that takes any key and any value
            tree = dict(trees[name])
            tree["data"] = tree.get("data", {}) | {"augment": [arguments | {"name": "Any"}]}
        (folder / "x.toml").write_text(tomli_w.dumps(tree) if isinstance(tree, dict) else str(tree), encoding="utf-8")
        check(folder / "x.toml")

    arguments = st.just({}) | st.dictionaries(NAMES, VALUES, max_size=4)
    run_cases(st.tuples(st.sampled_from(sorted(trees)), tree_changes(VALUES, NAMES), arguments), each, cases)


@few_or_many(200, 2000)
def test_any_override(folder: Path, cases: int) -> None:
    def each(case: Any) -> None:
        name, overrides = case
        check(folder / name, *overrides)

    run_cases(st.tuples(st.sampled_from(sorted(SOURCES)), st.lists(OVERRIDES, min_size=1, max_size=3)), each, cases)


@few_or_many(60, 400)
def test_any_file_to_extend(folder: Path, cases: int) -> None:
    def each(case: Any) -> None:
        extends, as_value = case
        value = tomli_w.dumps({"extends": extends})
        (folder / "x.toml").write_text(value + TINY_EXPERIMENT if as_value else value, encoding="utf-8")
        check(folder / "x.toml")

    odd = st.sampled_from(OTHERS) | st.sampled_from([str(folder / name) for name in OTHERS if "\0" not in name])
    run_cases(st.tuples(odd | VALUES, st.booleans()), each, cases)


@pytest.mark.parametrize("name", OTHERS)
def test_any_file_as_the_experiment(folder: Path, name: str) -> None:
    (folder / "x.toml").write_text(TINY_EXPERIMENT, encoding="utf-8")
    with time_limit():
        check(folder / name)
