"""Damage for files: of their bytes, and of the values in a tree of JSON or TOML."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Edit:
    """One change of some bytes; `place` and `other` are positions as shares of the length."""

    kind: str
    place: float
    other: float
    size: int
    token: bytes

    def __call__(self, content: bytes) -> bytes:
        start, end = round(self.place * len(content)), round(self.place * len(content)) + self.size
        if self.kind == "flip":
            return (
                content[:start]
                + bytes(byte ^ (1 << self.size % 8) for byte in content[start : start + 1])
                + (content[start + 1 :])
            )
        if self.kind == "insert":
            return content[:start] + self.token + content[start:]
        if self.kind == "overwrite":
            return content[:start] + self.token + content[start + len(self.token) :]
        if self.kind == "delete":
            return content[:start] + content[end:]
        if self.kind == "truncate":
            return content[:start]
        if self.kind == "splice":
            target = round(self.other * len(content))
            return content[:target] + content[start:end] + content[target:]
        lines = content.splitlines(keepends=True)
        line = min(round(self.place * len(lines)), len(lines) - 1)
        before, chosen, after = lines[:line], lines[line : line + 1], lines[line + 1 :]
        if self.kind == "repeat line":
            return b"".join([*before, *chosen * (1 + self.size), *after])
        assert self.kind == "new value", self.kind
        key, separator, _ = b"".join(chosen).partition(b"=" if b"=" in b"".join(chosen) else b":")
        return b"".join([*before, key, separator, self.token, b"\n", *after])


def byte_edits(tokens: Sequence[bytes], most: int = 4, early: float = 0.0) -> st.SearchStrategy[list[Edit]]:
    """Up to `most` edits that insert any of `tokens`; half of them within the first `early` share, if that is given."""
    kinds = ("flip", "insert", "overwrite", "delete", "truncate", "splice", "repeat line", "new value")
    places = st.floats(0, 1)
    return st.lists(
        st.builds(
            Edit,
            kind=st.sampled_from(kinds),
            place=st.floats(0, early) | places if early else places,
            other=places,
            size=st.integers(0, 64),
            token=st.sampled_from(tokens) | st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=most,
    )


def edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The bytes after all edits, in their order."""
    for edit in edits:
        content = edit(content)
    return content


def paths(tree: Any, path: Path = ()) -> Iterator[Path]:
    """The place of every value in nested dictionaries and lists, the root's own, `()`, too."""
    yield path
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


@dataclass(frozen=True)
class Change:
    """One change of a tree: the value at the place-th path is replaced, removed, or gets a new neighbour."""

    kind: str
    place: int
    key: str
    value: Any

    def __call__(self, tree: Any) -> Any:
        places = list(paths(tree))
        path = places[self.place % len(places)]
        if not path:
            return deepcopy(self.value) if self.kind == "replace" and self.place % 7 == 0 else tree
        parent = tree
        for part in path[:-1]:
            parent = parent[part]
        if self.kind == "replace":
            parent[path[-1]] = deepcopy(self.value)
        elif self.kind == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[self.key] = deepcopy(self.value)
        else:
            parent.insert(int(path[-1]), deepcopy(self.value))
        return tree


def tree_changes(
    values: st.SearchStrategy[Any], keys: st.SearchStrategy[str], most: int = 4
) -> st.SearchStrategy[list[Change]]:
    """Up to `most` changes that put in any of `values`, under any of `keys`."""
    change = st.builds(
        Change, kind=st.sampled_from(("replace", "remove", "add")), place=st.integers(0, 10_000), key=keys, value=values
    )
    return st.lists(change, min_size=1, max_size=most)


def changed(tree: Any, changes: Sequence[Change]) -> Any:
    """A copy of the tree after all changes, in their order."""
    tree = deepcopy(tree)
    for change in changes:
        tree = change(tree)
    return tree
