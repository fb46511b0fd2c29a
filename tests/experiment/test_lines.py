import string
from itertools import pairwise

import tomli
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from camox.experiment.lines import key_lines

SCALARS = (
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
DOCUMENTS = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), VALUES, max_size=5)
BRACKETS = ("[", "]", "[[", "]]", "{", "}", ",", ".", "=", " = ", "[t]\n", "[[p]]\n")
BLANKS = (" ", "\n", "\n\n", "\r\n", "# [c]\n")
STRINGS = ('"s#]"', "'l}'", '"""m\n"q\\""""""', "'''\n#'''", '"', "\\")
ATOMS = ("a", "b.c", '"q k"', "'#'", "1", "1.5", "true", "1979-05-27 07:32:00")
FRAGMENTS = st.sampled_from((*BRACKETS, *BLANKS, *STRINGS, *ATOMS))


def paths(value: object, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [inner for key, child in children for inner in paths(child, (*path, key))]
    return ([path] if path else []) + below


def assert_complete(text: str) -> None:
    data = tomli.loads(text)
    lines = key_lines(text)
    assert set(lines) == set(paths(data))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@given(DOCUMENTS, st.booleans())
def test_finds_every_key_of_a_written_document(document: dict, multiline: bool):
    assert_complete(tomli_w.dumps(document, multiline_strings=multiline))


@given(st.lists(FRAGMENTS, max_size=14).map("".join))
@example("a=[1,#]\n2,\n]\nb.c = {d={e=1}}\n[t.'#'.\"x\\u0041\"]\n[[p]]\n[p.q]\n[[p]]\nr='''\n]'''")
@example('a = """"""\nb = """x"""""\nc = 1')
def test_never_fails_where_tomli_does_not(text: str):
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert_complete(text)


@given(
    st.lists(
        st.text(string.ascii_letters + "-_" + string.digits, min_size=1, max_size=5),
        unique=True,
        min_size=1,
        max_size=6,
    ),
    st.lists(st.sampled_from(["", "# note = 1", "\n", '# """', "\n# [x]\n"]), min_size=6, max_size=6),
    st.lists(
        st.sampled_from(["1", '"a"', "[1,\n 2, # ]\n 3]", '"""\n[no]\n\n"""', "{ a = 1 }", "'''\n'''"]),
        min_size=6,
        max_size=6,
    ),
)
def test_line_is_where_the_key_was_written(keys: list[str], gaps: list[str], values: list[str]):
    text, expected = "", {}
    for key, gap, value in zip(keys, gaps, values, strict=False):
        text += f"{gap}\n"
        expected[key] = text.count("\n") + 1
        text += f"{key} = {value}\n"
    lines = key_lines(text)
    assert {key: lines[key,] for key in keys} == expected
    assert all(lines[one,] < lines[two,] for one, two in pairwise(keys))


def test_own_header_beats_the_first_mention():
    assert key_lines("[a.b]\nx = 1\n\n[a]\n") == {("a",): 4, ("a", "b"): 1, ("a", "b", "x"): 2}


def test_elements_of_lists_have_lines():
    lines = key_lines("[[p]]\nn = 1\n[[p]]\nn = [\n  {\n  k = 2 } ]\n")
    assert lines["p", 0] == 1
    assert lines["p", 1] == 3
    assert lines["p", 1, "n", 0] == 5
    assert lines["p", 1, "n", 0, "k"] == 6
