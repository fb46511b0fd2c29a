"""Pickles of other programs, damaged or meant to harm: tensors or a CheckpointError, and never code that ran."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from camox.checkpoints.legacy import read_legacy
from camox.checkpoints.scan import scan
from tests.fuzz.cases import few_or_many, run_cases, survives, time_limit
from tests.fuzz.mutations import byte_edits, edited

CANARY = "canary"
"""A folder's name in the working folder; no pickle may get it made."""
CALLS = (
    ("os", "mkdir", (CANARY,)),
    ("posix", "mkdir", (CANARY,)),
    ("os", "system", (f"mkdir {CANARY}",)),
    ("builtins", "eval", (f"__import__('os').mkdir('{CANARY}')",)),
    ("builtins", "exec", (f"import os; os.mkdir('{CANARY}')",)),
    ("subprocess", "check_call", (["mkdir", CANARY],)),
    ("torch.hub", "load", (CANARY, CANARY)),
    ("torch", "load", (CANARY,)),
    ("torch.serialization", "load", (CANARY,)),
    ("pickle", "loads", (pickle.dumps(os.getcwd),)),
    ("builtins", "getattr", (1, "real")),
    ("collections", "OrderedDict", ([("a", 1)],)),
    ("torch._utils", "_rebuild_tensor_v2", (1, 2, 3, 4, 5, 6)),
    ("numpy.core.multiarray", "scalar", ("O8", b"x")),
    ("numpy", "dtype", ("O8",)),
    ("builtins", "bytearray", (1 << 62,)),
    ("builtins", "complex", ("x",)),
    ("torch", "Size", ([1 << 70],)),
    ("torch", "device", (CANARY,)),
)
TOKENS = (
    b"cos\nmkdir\n(X\x06\x00\x00\x00canarytR.", b"cposix\nmkdir\n(X\x06\x00\x00\x00canarytR", b"\x80\x02", b".", b"(",
    b"]", b"}", b"0", b"2", b"h\x00", b"q\x00", b"R", b"t", b"u", b"s", b"e", b"b", b"\x81", b"\x92", b"Q", b"\x8a\xff",
    b"PK\x03\x04", b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\xff" * 8, b"cbuiltins\neval\n", b"ctorch\nload\n",
)  # fmt: skip


class Calls:
    """Asks the unpickler to call something."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...]):
        self.call = (module, name, arguments)


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one written in Python, whose output can be composed
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Calls):
            super().save(obj, save_persistent_id)
            return
        module, name, arguments = obj.call
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        super().save(arguments)
        self.write(pickle.REDUCE)


def pickled(content: Any) -> bytes:
    """Content with `Calls` anywhere inside, as a bare pickle."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(content)
    return file.getvalue()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A checkpoint in both formats of torch, and a bare pickle."""
    folder = tmp_path_factory.mktemp("legacy")
    content = {"model": {"w": torch.ones(2, 3), "b": torch.zeros(3).half()}, "epoch": 3, "list": [torch.ones(1)]}
    torch.save(content, folder / "new.pth")
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
    bare = pickled({"epoch": 3, "name": "x", "list": [1, 2.5, None]})
    return [(folder / "new.pth").read_bytes(), (folder / "old.pth").read_bytes(), bare]


def check(path: Path) -> None:
    survives(lambda: read_legacy(path))
    survives(lambda: scan(path))
    assert not Path(CANARY).exists(), "code in the file has run"


@few_or_many(60, 800)
def test_damaged_files(samples: list[bytes], cases: int) -> None:
    def each(case: Any) -> None:
        number, suffix, edits = case
        path = Path(f"damaged{suffix}")
        path.write_bytes(edited(samples[number], edits))
        check(path)

    suffixes = st.sampled_from([".pth", ".pt", ".bin", ".ckpt", "", ".unknown"])
    run_cases(st.tuples(st.integers(0, 2), suffixes, byte_edits(TOKENS)), each, cases)


@few_or_many(60, 600)
def test_calls_anywhere(samples: list[bytes], cases: int) -> None:
    """In place of a value of a bare pickle, and of the pickle inside torch's old format, of which it is the third."""
    magic, protocol = pickled(0x1950A86A20F9469CFC6C), pickled(1001)

    def each(case: Any) -> None:
        content, is_torch = case
        body = pickled(content)
        Path("evil.pth").write_bytes(magic + protocol + pickled({}) + body + pickled([]) if is_torch else body)
        check(Path("evil.pth"))

    calls = st.sampled_from(CALLS).map(lambda call: Calls(*call))
    keys = st.text(max_size=3) | st.integers() | st.booleans() | calls
    values = st.recursive(
        calls | st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3) | st.tuples(inner, calls),
        max_leaves=6,
    )
    run_cases(st.tuples(values, st.booleans()), each, cases)


def test_the_canary_dies_where_nothing_protects_it() -> None:
    """The calls above are real ones."""
    pickle.loads(pickled([Calls("os", "mkdir", (CANARY,))]))
    assert Path(CANARY).is_dir()


def nested(levels: int, width: int) -> list[Any]:
    inside: list[Any] = [torch.ones(1)]
    for _ in range(levels):
        inside = [inside] * width
    return inside


def holding_itself() -> list[Any]:
    inside: list[Any] = [torch.ones(1)]
    inside.append(inside)
    return inside


BOMBS = {
    "lists of lists of lists": nested(60, 2),
    "too deep": nested(150, 1),
    "a list in itself": holding_itself(),
    "a terabyte of one number": {"w": torch.ones(1).expand(10**12)},
    "no numbers at all": {"w": torch.empty(3, device="meta")},
    "a tensor of tensors": {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)},
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_costs_a_file_nothing_costs_its_reader_nothing(kind: str) -> None:
    torch.save(BOMBS[kind], "bomb.pth")
    with time_limit():
        report = survives(lambda: scan("bomb.pth"))
    assert report is None
