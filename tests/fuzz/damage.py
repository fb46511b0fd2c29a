"""Ways to damage the files of a run's copy, and to hide it from the hashes."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from camox.checkpoints.manifest import MANIFEST, record_file
from tests.fuzz.mutations import byte_edits, changed, edited, tree_changes

TOKENS = (
    b"\0", b"\xff" * 8, b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"[" * 5000,
    b'{"a":' * 5000, b"9" * 5000, b"9" * 400, b"-1", b"NaN", b"Infinity", b"1e999", b"null", b"true", b"\\ud800",
    b"\\u0000", b"../x", b"9" * 300, b"a" * 300, b"[]", b"{}", b'""', b"\x00" * 8, b"\xff\xff\xff\xff\xff\xff\xff\x7f",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.sampled_from([2**31, 2**63, 10**400, -(10**30), 0.5, -0.0, 1e308, 5e-324])
    | st.sampled_from(
        ["", "0", "a", "..", "/", "é", "\ud800", "\x1b[31m", "a" * 300, "F32", "F64", "I64", "BOOL", "F4"]
    )
    | st.sampled_from(
        ["sparse", "dense", "static", "masked", "image", "linear", "edge", "hybrid", "test_convnext", "resnet10t"]
    )
)
KEYS = st.sampled_from(["", "a", "model", "step", "width", "compile", "pretrained", "files", "dtype", "x.safetensors"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
CHANGES = tree_changes(VALUES, KEYS, most=3)
EDITS = byte_edits(TOKENS)
THINGS = ("gone", "empty", "folder", "full folder", "pipe", "link to itself", "link to nothing", "endless device")


def copy_of(run: Path, folder: Path) -> Path:
    """A copy that shares its files: never write into one, put another in its place."""
    return Path(shutil.copytree(run, folder, copy_function=os.link))


def put(path: Path, content: bytes) -> None:
    """A new file with this content in place of what is there."""
    path.unlink()
    path.write_bytes(content)


def put_thing(path: Path, thing: str) -> None:
    """Something that is no file, or nothing, in place of what is there."""
    path.unlink(missing_ok=True)
    match thing:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "full folder":
            path.mkdir()
            (path / "file").write_text("x")
        case "pipe":
            os.mkfifo(path)
        case "link to itself":
            path.symlink_to(path.name)
        case "link to nothing":
            path.symlink_to("gone")
        case "endless device":
            path.symlink_to("/dev/zero")


def damage(path: Path, how: Any) -> None:
    """What a case of `ways` says, done to the file."""
    kind, changes = how
    if kind == "thing":
        put_thing(path, changes)
    elif kind == "bytes":
        put(path, edited(path.read_bytes(), changes))
    elif path.suffix == ".safetensors":
        put(path, _with_header(path.read_bytes(), changes))
    else:
        put(path, json.dumps(changed(json.loads(path.read_text()), changes)).encode())


def ways(early: float = 0.0) -> st.SearchStrategy[Any]:
    """Kinds of damage; bytes are changed mostly within the first `early` share of the file, if that is given."""
    edits = byte_edits(TOKENS, early=early) if early else EDITS
    return (
        st.tuples(st.just("bytes"), edits)
        | st.tuples(st.just("values"), CHANGES)
        | st.tuples(st.just("thing"), st.sampled_from(THINGS))
    )


def seal_again(checkpoint: Path) -> None:
    """Gives the manifest the sizes and hashes of the files as they are now, as far as it can be read."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name in manifest["files"]:
        if (checkpoint / name).is_file() and not (checkpoint / name).is_char_device():
            record = record_file(checkpoint / name)
            manifest["files"][name] = {"sha256": record.sha256, "size": record.size}
        elif (checkpoint / name).exists():  # as a pipe has it
            manifest["files"][name]["size"] = (checkpoint / name).stat().st_size
    put(checkpoint / MANIFEST, json.dumps(manifest).encode())


def _with_header(content: bytes, changes: Sequence[Any]) -> bytes:
    """A safetensors file whose header, a tree too, is changed; the tensors' bytes stay."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8:end]), changes)).encode()
    return len(header).to_bytes(8, "little") + header + content[end:]
