"""Mistakes in an experiment and how one reads on a line: where, in which table, what, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from camox.errors import ExperimentError
from camox.experiment.lines import KeyPath


@dataclass(frozen=True, order=True)
class Origin:
    """Where a value was written: a file and a line, or an override of the command line."""

    is_override: bool
    """Overrides are listed after files."""
    place: str
    """Path of the file as the user would type it, or the override as he typed it."""
    line: int = 0
    """Counted from 1; 0 where no line can be named."""

    def __str__(self) -> str:
        return f"{self.place}:{self.line}" if self.line else self.place


@dataclass(frozen=True)
class Problem:
    """One mistake."""

    path: KeyPath
    """The key it is about; the empty path for the whole experiment."""
    message: str
    """What is wrong and what to do, without the place."""
    origin: Origin | None = None
    """Where, if it is not simply where the key at `path` was written."""
    reads: tuple[KeyPath, ...] = ()
    """All keys the judgement depends on; if one of them is itself wrong, the judgement is not made."""


def raise_all(problems: Iterable[tuple[Origin, str]]) -> None:
    """Raise one ExperimentError with a line for each problem, in the order of files and lines."""
    lines = [f"{origin}: {text}" for origin, text in sorted(problems, key=lambda problem: problem[0])]
    if lines:
        raise ExperimentError("\n".join(dict.fromkeys(lines)))


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate most like `word`, if it is more alike than `cutoff` (difflib's ratio, 0 to 1)."""
    matches = get_close_matches(word.lower(), list(candidates), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(word: str, candidates: Iterable[str], what: str) -> str:
    """Return the remedy for an unknown name: the nearest valid one, or all of them."""
    candidates = list(candidates)
    match = nearest(word, candidates)
    if match is not None:
        return f'did you mean "{match}"?'
    return f"valid {what} are {listed(candidates)}"


def listed(names: Iterable[Any]) -> str:
    """Return names, quoted, as a list for a sentence."""
    return ", ".join(quoted(name) for name in names)


def quoted(value: Any) -> str:
    """Return a value as it would stand in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def described(value: Any) -> str:
    """Return a value with the name of its type, for a sentence like "must be a number, not …"."""
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, bool):
        return quoted(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return f"the {type(value).__name__} {value}"
