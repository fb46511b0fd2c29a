"""What pydantic finds wrong, said in the words of an experiment file."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from camox.experiment.lines import KeyPath
from camox.experiment.problems import Problem, described, did_you_mean, listed, nearest, quoted
from camox.experiment.sources import SOURCES, source_kind
from camox.experiment.table import Table

SYNONYMS = {
    "amp": "dtype", "encoder": "backbone", "grad_clip": "clip", "gradient_accumulation_steps": "accumulate",
    "img_size": "image_size", "learning_rate": "lr", "mixed_precision": "dtype", "num_epochs": "epochs",
    "num_experts": "experts", "num_workers": "workers", "random_seed": "seed", "wd": "weight_decay",
}  # fmt: skip
"""What other trainers call a key, where spelling alone would not lead to ours."""

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_TYPES = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "an integer",
    "model_type": "a table",
    "string_type": "a string",
    "tuple_type": "a list",
}
_SOURCE_FORMS = (
    '{ layout = "auto", path = "…" }, { layout = "folder", images = "…", masks = "…" }, '
    '{ hub = "owner/name" } or { synthetic = "habitats", count = … }'
)


class Vocabulary:
    """Which tables there are and which keys each has."""

    def __init__(self, experiment: type[Table]):
        self.tables: dict[tuple[str, ...], type[Table]] = dict(_tables(experiment))

    def keys(self, path: KeyPath, data: Any) -> list[str]:
        """Return the valid keys of the table at `path`."""
        if _is_source(path):
            kind = source_kind(_at(data, path))
            return list(SOURCES[kind].model_fields) if kind else []
        return list(self.tables[_names(path)].model_fields)

    def header(self, table: tuple[str, ...]) -> str:
        """Return a table's header as it stands in a file."""
        return f"[[{'.'.join(table)}]]" if table in (("phases",), ("data", "augment")) else f"[{'.'.join(table)}]"

    def tables_with(self, key: str) -> list[str]:
        """Return the headers of the tables that have `key`."""
        return [self.header(path) for path, table in self.tables.items() if path and key in table.model_fields]


def _tables(table: type[Table], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Table]]]:
    yield path, table
    for name, field in table.model_fields.items():
        candidates = (field.annotation, *get_args(field.annotation))
        for inner in candidates:
            if isinstance(inner, type) and issubclass(inner, Table):
                yield from _tables(inner, (*path, name))


def located(problem: Problem, vocabulary: Vocabulary, data: Any) -> str:
    """Return a problem's message after the header of the table it is about."""
    path = problem.path
    if path in vocabulary.tables and not isinstance(_found(data, path), dict | tuple):
        path = path[:-1]  # a table that is not there has no header
    if path[:1] == ("phases",) and len(path) > 1:
        return f"[[phases]] {_item_name(data, path[:2])}: {problem.message}"
    if path[:2] == ("data", "augment") and len(path) > 2:
        return f"[[data.augment]] {_item_name(data, path[:3])}: {problem.message}"
    if _is_source(path[:3]):
        return f"[data] {path[1]}[{path[2]}]: {problem.message}"
    for depth in range(len(path), 0, -1):
        if path[:depth] in vocabulary.tables:
            return f"{vocabulary.header(_names(path[:depth]))} {problem.message}"
    return problem.message


def _item_name(data: Any, path: KeyPath) -> str:
    item = _at(data, path)
    name = item.get("name") if isinstance(item, dict) else None
    return quoted(name) if isinstance(name, str) else f"number {int(path[-1]) + 1}"


def problems_of(error: ValidationError, vocabulary: Vocabulary, data: Any) -> list[Problem]:
    """Return every mistake that pydantic found in `data`."""
    found = error.errors(include_url=False, include_context=True)
    # A list whose elements are wrong also counts as too short, because only its valid elements are counted.
    found = [details for details in found if details["type"] != "too_short" or not details["input"]]
    return [_problem(details, vocabulary, data) for details in found]


def _problem(details: Mapping[str, Any], vocabulary: Vocabulary, data: Any) -> Problem:
    path = _data_path(details["loc"])
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(path, _unknown(path, vocabulary, data))
    if kind == "missing":
        return Problem(path, _missing(path, vocabulary))
    if kind == "union_tag_not_found":
        return Problem(path, _unknown_source(value))
    name = _key_text(path)
    if kind in _TYPES:
        remedy = (
            ": lower case and without quotes" if kind == "bool_type" and str(value).lower() in ("true", "false") else ""
        )
        return Problem(path, f"{name} must be {_TYPES[kind]}, not {described(value)}{remedy}")
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Problem(path, f"{name} must be {words} {context[key]}, not {value}{_next_multiple(value, context)}")
    if kind == "literal_error":
        return Problem(path, _not_one_of(name, value, context["expected"]))
    return Problem(path, f"{name} {_other(kind, value, context, details['msg'])}")


def _next_multiple(value: int, context: Mapping[str, Any]) -> str:
    step = context.get("multiple_of")
    return f": take {max(step, -(-value // step) * step)}" if step else ""


def _other(kind: str, value: Any, context: Mapping[str, Any], otherwise: str) -> str:
    if kind == "string_pattern_mismatch":
        dots = " and, behind the first character, dots" if "." in context["pattern"] else ""
        return f"may hold only letters, digits, underscores, hyphens{dots}, not {quoted(value)}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind == "too_long":
        return f"must have {context['max_length']} values, not {len(value)}"
    if kind == "choice":
        return f"{otherwise}, not {described(value)}"
    if kind == "finite_number":
        return f"must be a finite number, not {value}"
    return f"is wrong: {otherwise}"


def _data_path(location: tuple[str | int, ...]) -> KeyPath:
    """Return pydantic's location as a path in the data: it names the form of a source as if that were a
    key."""
    return location[:3] + location[4:] if _is_source(location[:3]) else location


def _is_source(path: KeyPath) -> bool:
    return len(path) == 3 and path[0] == "data" and path[1] in ("train", "val", "test")


def _names(path: KeyPath) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


def _found(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _key_text(path: KeyPath) -> str:
    """Return the key at the end of a path, with the index of an element of a list."""
    *_, last = path
    return f"{path[-2]}[{last}]" if isinstance(last, int) else str(last)


def _missing(path: KeyPath, vocabulary: Vocabulary) -> str:
    *_, last = path
    if isinstance(last, int):
        return f"{path[-2]} must have two values"
    if len(path) == 1:
        return f"missing table {vocabulary.header((str(last),))}: add it"
    return f'missing key "{last}": add {last} = …'


def _unknown(path: KeyPath, vocabulary: Vocabulary, data: Any) -> str:
    *parents, last = path
    key = str(last)
    siblings = vocabulary.keys(tuple(parents), data)
    if not parents:
        return _unknown_at_top(key, siblings, _at(data, path), vocabulary)

    synonym = SYNONYMS.get(key, key)
    close = synonym if synonym in siblings else nearest(key, siblings)
    elsewhere = vocabulary.tables_with(synonym) if synonym not in siblings else []
    remedies = [f'did you mean "{close}"?'] if close else []
    if elsewhere:
        remedies.append(f'"{synonym}" is a key of {" and ".join(elsewhere)}')
    return f'unknown key "{key}": ' + (" ".join(remedies) or f"valid keys are {listed(siblings)}")


def _unknown_at_top(key: str, tables: list[str], value: Any, vocabulary: Vocabulary) -> str:
    nested = [path for path in vocabulary.tables if len(path) > 1 and path[-1] == key]
    if isinstance(value, dict | tuple):
        match = nearest(key, tables)
        if not nested and match is None:
            return f"unknown table [{key}]: valid tables are {listed(tables)}"
        close = nested[0] if nested else (str(match),)
        return f"unknown table [{key}]: did you mean {vocabulary.header(close)}?"
    homes = vocabulary.tables_with(SYNONYMS.get(key, key))
    if homes:
        return f'unknown key "{key}" outside of all tables: it belongs below {" or ".join(homes)}'
    return f'unknown key "{key}" outside of all tables: {did_you_mean(key, [*tables, "extends"], "names here")}'


def _unknown_source(value: Any) -> str:
    if not isinstance(value, dict):
        return f"must be a table, not {described(value)}: write {_SOURCE_FORMS}"
    for key in ("layout", "synthetic"):
        if key in value:
            valid = [kind for kind, table in SOURCES.items() if key in table.model_fields]
            return _not_one_of(key, value[key], listed(valid)) if len(valid) else ""
    return f"says neither layout nor hub nor synthetic: write {_SOURCE_FORMS}"


def _not_one_of(name: str, value: Any, expected: str) -> str:
    """`expected` lists the valid values in any quotes."""
    valid = re.findall(r"[\w-]+", re.sub(r"(?<=['\d]) or (?=['\d])", ", ", expected))
    if isinstance(value, str):
        match = nearest(value, valid)
        if match is not None:
            return f'{name} has no choice "{value}": did you mean "{match}"?'
    choices = ", ".join(word if word.isdigit() else quoted(word) for word in valid)
    return f"{name} must be one of {choices}, not {described(value)}"
