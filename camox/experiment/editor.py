"""The JSON schema of an experiment file, with which editors complete and check it."""

from typing import Any

from camox.experiment.experiment import Experiment


def json_schema() -> dict[str, Any]:
    """Return the JSON schema that `camox schema` prints and `experiments/schema.json` holds.

    It is looser than `Experiment.load` where one file alone cannot be judged: with `extends`, another file
    may hold any required key.
    """
    schema = Experiment.model_json_schema()
    for name, table in {**schema["$defs"], "Experiment": schema}.items():
        if not name.endswith(("Source", "Augmentation")):
            table.pop("required", None)
    for table in (schema, *schema["$defs"].values()):
        _describe_tables(table["properties"], schema["$defs"])
    extends = {
        "type": "string",
        "title": "Extends",
        "description": "Path, relative to this file, of the file that this one is laid over.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_without_null(schema)}


def _describe_tables(keys: dict[str, Any], tables: dict[str, Any]) -> None:
    """Gives each key that is a table the table's description, where it has none of its own."""
    for value in keys.values():
        if "$ref" in value and "description" not in value:
            value["description"] = tables[value["$ref"].rpartition("/")[2]]["description"]


def _without_null(schema: Any) -> Any:
    """Return a schema without null, which TOML cannot write: a key that is None is one that is not there."""
    if isinstance(schema, list):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_null(value) for key, value in schema.items() if not _is_idle_default(key, value)}
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    choices = [choice for choice in kept.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) != 1:
        return kept
    del kept["anyOf"]
    return {**choices[0], **kept}


def _is_idle_default(key: str, value: Any) -> bool:
    """The default of a table only repeats the defaults of its keys."""
    return key == "default" and (value is None or isinstance(value, dict))
