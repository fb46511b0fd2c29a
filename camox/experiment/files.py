"""TOML files, the files they extend and the overrides of a command line, merged into one document.

Every value keeps its origin through all of it, so that a mistake found later can still name its file and
line.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any

import tomli

from camox.errors import ExperimentError
from camox.experiment.lines import KeyPath, key_lines
from camox.experiment.problems import Origin, Problem, did_you_mean, listed, nearest

_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DEEPEST = 100
"""Levels of nesting; no table of an experiment has more than six, and Python's stack holds a few hundred."""


@dataclass(frozen=True)
class Node:
    """A TOML value that knows where it was written."""

    value: Any
    """A dictionary of nodes, a list of nodes, or a scalar."""
    origin: Origin


def resolve(
    path: str | Path, overrides: Iterable[str] = (), output: str | Path | None = None
) -> tuple[Node, list[Problem]]:
    """Return the merged document of an experiment file, and the mistakes in its overrides and variables.

    Later wins: the file at the root of the `extends` chain, then each file that extends it, then `overrides`
    in their order, then `output` (the `--output` of the command line, which stands for `experiment.output`).

    Raises:
        ExperimentError: if a file is missing or is no TOML, or if files extend each other in a circle.
    """
    document = read_chain(Path(path))
    document, problems = apply_overrides(document, overrides)
    if output is not None:
        origin = Origin(is_override=True, place=f'override "--output {output}"')
        document = merge(document, _nested(("experiment", "output"), _wrap(str(output), origin, {})))
    return expand_variables(document, os.environ, problems), problems


def plain(node: Node) -> Any:
    """Return a node's value without origins; arrays become tuples, because an experiment is immutable."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return tuple(plain(child) for child in node.value)
    return node.value


def origin_of(document: Node, path: KeyPath) -> Origin:
    """Return where the value at `path` was written, or, if it was not, where the innermost table around it
    was."""
    node = document
    for part in path:
        try:
            node = node.value[part]
        except (KeyError, IndexError, TypeError):
            break
    return node.origin


def read_chain(path: Path) -> Node:
    """Read a file and, under it, the files it extends."""
    documents = [_read(path)]
    chain = {os.path.realpath(path): path}
    while (extends := documents[-1].value.pop("extends", None)) is not None:
        base = _extended(extends, chain)
        chain[os.path.realpath(base)] = base
        documents.append(_read(base))
    return reduce(merge, reversed(documents))


def _extended(extends: Node, chain: Mapping[str, Path]) -> Path:
    """Return the file that the last one of a chain extends; `chain` maps real paths to paths as they were given."""
    if not isinstance(extends.value, str) or not extends.value:
        raise ExperimentError(f'{extends.origin}: extends must be the path of one file, such as "base.toml"')
    *_, last = chain.values()
    base = Path(os.path.normpath(last.parent / extends.value))
    if os.path.realpath(base) in chain:
        circle = " -> ".join(str(file) for file in (*chain.values(), base))
        raise ExperimentError(f"{extends.origin}: files extend each other in a circle: {circle}. Remove one extends")
    if not os.path.isfile(base):  # unlike Path.is_file, no error where the system refuses the name
        raise ExperimentError(f'{extends.origin}: extends "{extends.value}": {_missing(base)}')
    return base


def _read(path: Path) -> Node:
    if not os.path.isfile(path):
        raise ExperimentError(f"{path}: {_missing(path)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors put a byte-order mark in front
        data = tomli.loads(text)
        lines = key_lines(text)
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except tomli.TOMLDecodeError as error:
        raise ExperimentError(f"{path}:{error.lineno}:{error.colno}: not valid TOML: {error.msg}") from error
    except RecursionError as error:
        raise ExperimentError(f"{path}: not readable: its arrays or tables are nested too deeply") from error
    except ValueError as error:  # Python converts no more than some thousand digits
        raise ExperimentError(f"{path}: not valid TOML: an integer in it has more than 64 bits: shorten it") from error
    return _wrap(data, Origin(is_override=False, place=str(path)), lines)


def _missing(path: Path) -> str:
    """Return what to say of a file that is not there."""
    if os.path.isdir(path):
        return f'"{path}" is a folder: name a .toml file in it'
    if os.path.lexists(path):
        return "not a file that can be read, but a broken link, a pipe or a device: name a .toml file"
    if not os.path.isdir(path.parent):
        return f'no such file, nor a folder "{path.parent}": check the path'
    names = sorted(file.name for file in path.parent.glob("*.toml"))
    match = nearest(path.name, names)
    if match is not None:
        return f'no such file: did you mean "{path.parent / match}"?'
    return "no such file: " + (f"the folder has {listed(names)}" if names else "the folder has no .toml files")


def _wrap(value: Any, origin: Origin, lines: Mapping[KeyPath, int], path: KeyPath = ()) -> Node:
    origin = replace(origin, line=lines.get(path, origin.line))
    if (defect := _defect(value, path)) is not None:
        raise ExperimentError(f"{origin}: {defect}")
    if isinstance(value, dict):
        return Node({key: _wrap(child, origin, lines, (*path, key)) for key, child in value.items()}, origin)
    if isinstance(value, list):
        return Node([_wrap(child, origin, lines, (*path, index)) for index, child in enumerate(value)], origin)
    return Node(value, origin)


def _defect(value: Any, path: KeyPath) -> str | None:
    """Return what makes a value one that no experiment can hold, write out and read back."""
    if len(path) > _DEEPEST:
        return f"nested too deeply: more than {_DEEPEST} tables or arrays inside each other"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "not valid TOML: an integer has more than 64 bits: shorten it"
    texts = value if isinstance(value, dict) else (value,)
    if any(isinstance(text, str) and not _is_plain_text(text) for text in texts):
        return "a text holds a NUL or a byte that is not UTF-8: remove it"
    return None


def _is_plain_text(text: str) -> bool:
    """Return whether files and the names of files can hold a text; bytes of a command line that are no UTF-8 arrive
    as surrogates."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)


def merge(base: Node, top: Node) -> Node:
    """Lay one document over another: tables merge key by key, arrays replace, `phases` merge by name."""
    merged = _merge_values(base, top)
    both = [document.value.get("phases") for document in (base, top)]
    if all(isinstance(phases, Node) and isinstance(phases.value, list) for phases in both):
        merged.value["phases"] = _merge_phases(*both)
    return merged


def _merge_values(base: Node, top: Node) -> Node:
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, child in top.value.items():
        merged[key] = _merge_values(merged[key], child) if key in merged else child
    # A table stays where a file opened it: a key that it lacks is to be added there, not to an override.
    return Node(merged, base.origin if top.origin.is_override else top.origin)


def _merge_phases(base: Node, top: Node) -> Node:
    phases = list(base.value)
    places = {name: index for index, name in reversed(list(enumerate(phase_names(base)))) if name is not None}
    for name, phase in zip(phase_names(top), top.value, strict=True):
        # Matched once: the second of two equal names in one file stays, to be reported as a duplicate.
        index = places.pop(name, None) if name is not None else None
        if index is None:
            phases.append(phase)
        else:
            phases[index] = _merge_values(phases[index], phase)
    return Node(phases, top.origin)


def phase_names(phases: Node) -> list[str | None]:
    """Return the name of each phase in an unvalidated list of phases; None where there is no usable one."""
    names = [phase.value.get("name") if isinstance(phase.value, dict) else None for phase in phases.value]
    return [name.value if name is not None and isinstance(name.value, str) else None for name in names]


def apply_overrides(document: Node, overrides: Iterable[str]) -> tuple[Node, list[Problem]]:
    """Lay overrides such as `optimizer.lr=1e-4` or `phases.full.epochs=10` over a document, one after the
    other."""
    problems: list[Problem] = []
    for text in overrides:
        origin = Origin(is_override=True, place=f'override "{text}"')
        try:
            path, value = parse_override(text)
            document = merge(document, _as_document(document, path, _wrap(value, origin, {})))
        except ValueError as error:
            problems.append(Problem((), str(error), origin))
    return document, problems


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split `table.key=value` into the path of its key and its value.

    The value is read as TOML. What is no TOML value is taken as a string, so that `experiment.output=runs/x`
    and `tracking.wandb=offline` need no quotes inside those of the shell; but not if it starts like a string,
    an array or a table: then it is one with a mistake in it.

    Raises:
        ValueError: if there is no key, no value, or such a mistake.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ValueError("not of the form table.key=value, such as optimizer.lr=1e-4")
    if not value:
        raise ValueError(f'no value after "=": write {key}=VALUE, or {key}=\'""\' for an empty string')
    return _override_path(key), _override_value(value)


def _override_path(key: str) -> tuple[str, ...]:
    try:
        nested = tomli.loads(f"{key} = 0")
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f'"{key}" is not a key: write names joined by dots, such as optimizer.lr=1e-4') from error
    path: list[str] = []
    while isinstance(nested, dict) and len(nested) == 1:
        [(part, nested)] = nested.items()
        path.append(part)
    if nested != 0 or len(path) > _DEEPEST:
        raise ValueError(f'"{key}" is not a key: write names joined by dots, such as optimizer.lr=1e-4')
    return tuple(path)


def _override_value(text: str) -> Any:
    try:
        parsed = tomli.loads(f"value = {text}")
        reason = "there is more than one value"
    except tomli.TOMLDecodeError as error:
        parsed, reason = {}, error.msg
    except RecursionError:
        parsed, reason = {}, "it is nested too deeply"
    except ValueError as error:  # Python converts no more than some thousand digits
        raise ValueError("the value has more than 64 bits: shorten it") from error
    # A line break in the text can smuggle in further keys; it is then no single TOML value either.
    if len(parsed) == 1:
        return parsed["value"]
    if text[0] in "\"'[{":
        remedy = "a shell removes quotes, so put the whole override between single quotes"
        raise ValueError(f"the value is not valid TOML: {reason}; {remedy}")
    return text


def _as_document(document: Node, path: tuple[str, ...], value: Node) -> Node:
    """Return a document that holds nothing but `value` at `path`, where that can be laid over `document`."""
    if path[0] == "extends":
        raise ValueError("extends cannot be overridden: pass the other file itself")
    if path[0] == "phases" and len(path) > 1:
        return _phase_document(document, path, value)
    around = document
    for depth, part in enumerate(path[:-1], start=1):
        around = around.value.get(part, Node({}, value.origin))
        if not isinstance(around.value, dict):
            outer = ".".join(path[:depth])
            is_list = isinstance(around.value, list)
            what = f"a list: give all of it, {outer}=[…]" if is_list else f"a single value: write {outer}=…"
            raise ValueError(f"{outer} is {what}")
    return _nested(path, value)


def _phase_document(document: Node, path: tuple[str, ...], value: Node) -> Node:
    _, name, *keys = path
    phases = document.value.get("phases")
    is_list = phases is not None and isinstance(phases.value, list)
    names = [name for name in phase_names(phases) if name is not None] if is_list else []
    if name not in names:
        remedy = did_you_mean(name, names, "phases") if names else "the experiment has no phases"
        raise ValueError(f'no phase named "{name}": {remedy}')
    if not keys:
        raise ValueError(f"name a key of the phase, such as phases.{name}.epochs=10")
    phase = _nested(tuple(keys), value)
    named = Node({"name": Node(name, origin_of(document, ("phases", names.index(name), "name")))}, value.origin)
    return Node({"phases": Node([_merge_values(named, phase)], value.origin)}, value.origin)


def _nested(path: tuple[str, ...], value: Node) -> Node:
    for part in reversed(path):
        value = Node({part: value}, value.origin)
    return value


def expand_variables(node: Node, environment: Mapping[str, str], problems: list[Problem], path: KeyPath = ()) -> Node:
    """Replace `${NAME}` in every string by that environment variable; `$${NAME}` stands for the text
    `${NAME}`.

    A variable that is not set, or no text, is added to `problems` and its text left as it is.
    """
    if isinstance(node.value, dict):
        return replace(
            node,
            value={k: expand_variables(v, environment, problems, (*path, k)) for k, v in node.value.items()},
        )
    if isinstance(node.value, list):
        return replace(
            node,
            value=[expand_variables(v, environment, problems, (*path, i)) for i, v in enumerate(node.value)],
        )
    if not isinstance(node.value, str):
        return node

    def expanded(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return match.group()[1:]
        if name in environment and _is_plain_text(environment[name]):
            return environment[name]
        state = "not UTF-8 text" if name in environment else "not set"
        problems.append(Problem(path, _unset_message(name, state, path)))
        return match.group()

    return replace(node, value=_VARIABLE.sub(expanded, node.value))


def _unset_message(name: str, state: str, path: KeyPath) -> str:
    key = [part for part in path if isinstance(part, str)][-1]
    whole = ".".join(str(part) for part in takewhile(lambda part: isinstance(part, str), path))
    what = f"{key} needs the environment variable {name}, which is {state}"
    return f"{what}: export {name}=…, or pass {whole}=… on the command line"


def escape_variables(text: str) -> str:
    """Return a string that `expand_variables` turns back into `text`."""
    return _VARIABLE.sub(lambda match: f"{match.group(1)}$${{{match.group(2)}}}", text)
