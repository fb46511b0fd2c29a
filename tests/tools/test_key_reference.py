"""docs/recipes.md: every key is there, as the schema and the recipes of today have it."""

import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from camox.experiment import json_schema
from key_reference import BLOCK, main, read_recipes, reference
from pages import read_block

ROOT = Path(__file__).parents[2]
PAGE, RECIPES = ROOT / "docs" / "recipes.md", ROOT / "experiments"


def test_the_page_is_that_of_the_schema_and_the_recipes():
    """After a change: python tools/key_reference.py docs/recipes.md experiments"""
    assert read_block(PAGE, BLOCK) == reference(read_recipes(RECIPES))


def test_every_key_has_its_line_with_type_and_default():
    page = reference({})
    for table in json_schema()["$defs"].values():
        for key, value in table["properties"].items():
            if "$ref" in value or "$ref" in value.get("items", {}):
                assert re.search(rf"^### `\[+[a-z.]*{key}\]+`$", page, re.MULTILINE), key
            else:
                assert re.search(
                    rf"^\* \*\*`{key}`\*\*: .+; (default `.*`|unset|\*\*required\*\*)\.", page, re.MULTILINE
                ), key


def test_values_are_told_with_the_recipes_and_phases_that_set_them():
    recipes = {
        "a": {"extends": "b.toml", "optimizer": {"lr": 0.5}, "phases": [{"name": "full", "epochs": 7}]},
        "b": {"optimizer": {"lr": 0.5}, "data": {"train": [{"synthetic": "habitats", "count": 3}]}},
    }
    page = reference(recipes)
    assert '*`"b.toml"` in a.*' in page
    assert "*`0.5` in a, b.*" in page
    assert "*`7` in a (full).*" in page
    assert "*`3` in b.*" in page.partition('Source `{ synthetic = "habitats"')[2]


def test_the_tour_is_the_main_recipe():
    tour = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(tour) == tomllib.loads((RECIPES / "sparse_moe_416.toml").read_text(encoding="utf-8"))


def test_a_page_without_a_place_for_it_is_an_error(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# no block\n")
    assert main([str(page), str(RECIPES)]) == 2
    assert "has no place" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_an_editor_finds_nothing_wrong_in_a_recipe(recipe):
    jsonschema.validate(tomllib.loads(recipe.read_text(encoding="utf-8")), json_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": {"learning_rate": 1e-3}},
        {"model": {"moe": {"top_k": 0}}},
        {"schedule": {"name": "cosin"}},
        {"data": {"augment": [{"p": 0.5}]}},
        {"data": {"train": [{"layout": "folder", "path": "data"}]}},
    ],
    ids=str,
)
def test_an_editor_marks_what_is_wrong(wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())
