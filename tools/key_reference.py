"""Writes the reference of all keys into docs/recipes.md, from the schema and the recipes.

python tools/key_reference.py docs/recipes.md experiments
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from camox.errors import ArgumentParser, CamoxError, ExperimentError
from camox.experiment import Experiment, json_schema
from pages import fill_block

BLOCK = "keys"
_LISTED = 6
"""Names and paths that are told one by one: of more it says nothing that each is another."""
Schema = Mapping[str, Any]
Setting = tuple[str, Any]
"""Where a key is set, a recipe with the phase it is for, and the value."""

# Of the forms of a source, the key that tells each from the others.
_SOURCE_MARKS = {"HubSource": "hub", "HabitatsSource": "synthetic"}
_SOURCE_TITLES = {
    "LayoutSource": '`{ layout = "auto", path = "…" }`',
    "FolderSource": '`{ layout = "folder", images = "…", masks = "…" }`',
    "HubSource": '`{ hub = "…" }`',
    "HabitatsSource": '`{ synthetic = "habitats", count = … }`',
}


def reference(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown that tells, for every table of an experiment file, each of its keys.

    Args:
        recipes: name → what its file itself sets, without the files that it extends.
    """
    schema = json_schema()
    settings: dict[tuple[str, str], list[Setting]] = {}
    for recipe, document in recipes.items():
        _collect(schema, schema, "Experiment", document, recipe, settings)
    return "\n".join(_sections(schema, settings)).strip()


def _sections(schema: Schema, settings: Mapping[tuple[str, str], Sequence[Setting]]) -> Iterator[str]:
    extends = schema["properties"]["extends"]
    yield f"### `extends`\n\n{extends['description']} *{_set_by(settings.get(('Experiment', 'extends'), ()))}.*\n"
    # What editors are told leaves out what another file may hold.
    required = {name: table.get("required", ()) for name, table in Experiment.model_json_schema()["$defs"].items()}
    for heading, name, table in _tables(schema):
        yield f"### {heading}\n\n{_text(table['description'])}\n"
        for key, value in table["properties"].items():
            if len(_tables_below(value)) != 1:
                yield _key(key, value, key in required[name], settings.get((name, key), ()))
        yield ""


def _tables(schema: Schema) -> Iterator[tuple[str, str, Schema]]:
    """Heading, name in the schema and schema of each table, in the order of the schema, inner ones behind theirs."""

    def below(path: str, value: Schema) -> Iterator[tuple[str, str, Schema]]:
        names = _tables_below(value)
        is_list = value.get("type") == "array"
        for name in names:
            table = schema["$defs"][name]
            if len(names) > 1:
                heading = f"Source {_SOURCE_TITLES[name]}"
            else:
                heading = f"`[[{path}]]`" if is_list else f"`[{path}]`"
            yield heading, name, table
            for key, inner in table["properties"].items():
                if not (name == "Data" and key in ("val", "test")):  # sources are told of once
                    yield from below(f"{path}.{key}", inner)

    for key, value in schema["properties"].items():
        yield from below(key, value)


def _tables_below(value: Schema) -> list[str]:
    """Names of the tables that a key holds: one, one of several forms, or none where it holds a value."""
    items = value.get("items", value)
    forms = items.get("oneOf", [items])
    return [form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form]


# ---- a key


def _key(key: str, value: Schema, is_required: bool, settings: Sequence[Setting]) -> str:
    default = "**required**" if is_required else f"default {_code(value['default'])}" if "default" in value else "unset"
    parts = [f"* **`{key}`**: {_type(value)}; {default}.", _text(value["description"])]
    if settings:
        parts.append(f"*{_set_by(settings)}.*")
    return "  \n  ".join(parts)


def _type(value: Schema) -> str:
    """A value's type with what it is held to: "integer ≥ 1", "one of `a`, `b`"."""
    if "enum" in value:
        return f"one of {', '.join(_code(choice) for choice in value['enum'])}"
    if "const" in value:
        return _code(value["const"])
    if "anyOf" in value:
        forms = [_type(choice) for choice in value["anyOf"]]
        return "string" if value.get("type") == "string" else " or ".join(forms)
    if value["type"] == "array":
        if "prefixItems" in value:
            return f"array of {' and '.join(_type(item) for item in value['prefixItems'])}"
        least = ", at least one" if value.get("minItems") else ""
        if _tables_below(value):
            return f"array{least}, of sources"
        return f"array{least}, of {_type(value['items'])}"
    low = (
        f" ≥ {value['minimum']}" if "minimum" in value
        else f" > {value['exclusiveMinimum']}" if "exclusiveMinimum" in value
        else ""
    )  # fmt: skip
    high = (
        f" ≤ {value['maximum']}" if "maximum" in value
        else f" < {value['exclusiveMaximum']}" if "exclusiveMaximum" in value
        else ""
    )  # fmt: skip
    pattern = f" that matches `{value['pattern']}`" if "pattern" in value else ""
    is_filled = value["type"] == "string" and value.get("minLength")
    return f"{value['type']}{low}{' and' if low and high else ''}{high}{pattern}{', not empty' if is_filled else ''}"


def _code(value: Any) -> str:
    """A value as TOML has it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _text(description: str) -> str:
    return " ".join(description.split())


# ---- what recipes set


def _collect(
    schema: Schema,
    table: Schema,
    name: str,
    given: Mapping[str, Any],
    where: str,
    settings: dict[tuple[str, str], list[Setting]],
) -> None:
    for key, value in given.items():
        names = _tables_below(table["properties"].get(key, {}))
        if not names:
            settings.setdefault((name, key), []).append((where, value))
            continue
        for inner in value if isinstance(value, list) else [value]:
            form = names[0] if len(names) == 1 else _form(inner)
            place = f"{where} ({inner['name']})" if form == "Phase" else where
            _collect(schema, schema["$defs"][form], form, inner, place, settings)


def _form(source: Mapping[str, Any]) -> str:
    for form, mark in _SOURCE_MARKS.items():
        if mark in source:
            return form
    return "FolderSource" if source.get("layout") == "folder" else "LayoutSource"


def _set_by(settings: Sequence[Setting]) -> str:
    """Each value once with the places that set it."""
    of_value: dict[str, list[str]] = {}
    for where, value in settings:
        places = of_value.setdefault(_code(value), [])
        if where not in places:
            places.append(where)
    if len(of_value) > _LISTED and all(isinstance(value, str) for _, value in settings):
        return f"Set in {', '.join(dict.fromkeys(where for where, _ in settings))}"
    return "; ".join(f"{value} in {', '.join(places)}" for value, places in of_value.items())


def read_recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """What each recipe of a folder sets itself, by its name. Raises ExperimentError where one cannot be read."""
    try:
        return {path.stem: tomli.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.toml"))}
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{folder}: its recipes cannot be read: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the page's block."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help=f"page with the lines <!-- {BLOCK} --> and <!-- /{BLOCK} -->")
    parser.add_argument("recipes", type=Path, help="folder of recipes")
    options = parser.parse_args(arguments)
    try:
        fill_block(options.page, BLOCK, reference(read_recipes(options.recipes)))
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
