import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from camox.experiment import Experiment, ResolvedPhase, json_schema
from camox.experiment.files import escape_variables
from camox.experiment.table import Table

Write = Callable[..., Path]
RECIPES = Path(__file__).parents[2] / "experiments"

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20) | st.sampled_from(
    ["${A}", "$${HOME}", '"', "\r\n", "\\"]
)
NAME = st.from_regex(r"\A[A-Za-z0-9_-]{1,8}\Z")
FRACTION = st.floats(0, 0.99)
SOURCE = st.one_of(
    st.fixed_dictionaries(
        {"layout": st.just("cod10k"), "path": TEXT.filter(bool)},
        optional={
            "split": st.sampled_from(["train", "test"]),
            "non_camouflaged": st.booleans(),
            "name": TEXT.filter(bool),
        },
    ),
    st.fixed_dictionaries({"layout": st.just("folder"), "images": TEXT.filter(bool), "masks": TEXT.filter(bool)}),
    st.fixed_dictionaries(
        {"hub": TEXT.filter(bool)},
        optional={"split": TEXT.filter(bool), "mask": TEXT.filter(bool), "weight": st.floats(0.1, 100)},
    ),
    st.fixed_dictionaries(
        {"synthetic": st.just("habitats"), "count": st.integers(1, 9999)},
        optional={
            "kinds": st.lists(st.sampled_from(["forest", "rock"]), min_size=1, unique=True),
            "empty": st.floats(0, 0.5),
        },
    ),
)
PHASE = st.fixed_dictionaries(
    {"name": NAME, "epochs": st.integers(1, 500)},
    optional={"freeze": st.just(["backbone"]), "lr": st.floats(1e-4, 1), "batch_size": st.integers(1, 64)},
)
IDENTITY = st.fixed_dictionaries(
    {"name": NAME}, optional={"notes": TEXT, "tags": st.lists(TEXT, max_size=3), "seed": st.integers(0, 99)}
)
AUGMENTATION = st.fixed_dictionaries(
    {"name": NAME, "p": FRACTION, "size": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2)}
)
DATA = st.fixed_dictionaries(
    {"train": st.lists(SOURCE, min_size=1, max_size=3)},
    optional={
        "val": st.lists(SOURCE, min_size=1, max_size=2),
        "test": st.lists(SOURCE, max_size=2),
        "augment": st.lists(AUGMENTATION, max_size=2),
    },
)
MODEL = st.fixed_dictionaries(
    {}, optional={"width": st.integers(1, 40).map(lambda n: 8 * n), "weights": TEXT.filter(bool)}
)
OPTIMIZER = st.fixed_dictionaries({}, optional={"lr": st.integers(1, 3) | st.floats(1e-4, 1), "fused": st.booleans()})
REQUIRED: dict[str, st.SearchStrategy] = {
    "experiment": IDENTITY,
    "data": DATA,
    "phases": st.lists(PHASE, min_size=1, max_size=3, unique_by=lambda phase: str(phase["name"])),
}
OPTIONAL: dict[str, st.SearchStrategy] = {
    "model": MODEL,
    "optimizer": OPTIMIZER,
    "ema": st.fixed_dictionaries({}, optional={"decay": FRACTION, "enabled": st.booleans()}),
}
SETTINGS = st.fixed_dictionaries(REQUIRED, optional=OPTIONAL)
with_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [escaped(child) for child in value]
    return escape_variables(value) if isinstance(value, str) else value


def every_table(table: Table) -> list[Table]:
    inner = [value for value in dict(table).values() if isinstance(value, Table)]
    return [table, *(found for value in inner for found in every_table(value))]


@with_files
@given(settings_=SETTINGS)
def test_written_experiment_loads_as_an_equal_one(write: Write, settings_: dict):
    experiment = Experiment.load(write(tomli_w.dumps(escaped(settings_))))
    again = Experiment.load(write(experiment.to_toml(), "again.toml"))
    assert again == experiment
    assert hash(again) == hash(experiment)
    assert again.to_toml() == experiment.to_toml()
    assert again.fingerprint() == experiment.fingerprint()


def test_written_experiment_has_every_key(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal))
    written = tomli.loads(experiment.to_toml())
    for name, table in dict(experiment).items():
        if isinstance(table, Table):
            assert set(written[name]) == {key for key, value in dict(table).items() if value is not None}


def test_fingerprint_depends_on_settings_not_on_how_they_are_written(write: Write, minimal: str):
    path = write(minimal)
    reference = Experiment.load(path).fingerprint()
    assert Experiment.load(path, ["optimizer.weight_decay=0.0001"]).fingerprint() == reference
    assert Experiment.load(write("# note\n" + minimal)).fingerprint() == reference
    assert (
        Experiment.load(path, ["optimizer.lr=1"]).fingerprint()
        == Experiment.load(path, ["optimizer.lr=1.0"]).fingerprint()
    )
    assert Experiment.load(path, ["optimizer.lr=1e-3"]).fingerprint() != reference


def test_experiment_is_frozen(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal))
    for table in every_table(experiment):
        key = next(iter(type(table).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, key, None)


def test_phases_take_what_they_leave_open_from_the_experiment(write: Write, minimal: str):
    text = (
        minimal + '[[phases]]\nname = "large"\nepochs = 3\nbatch_size = 4\naccumulate = 2\nlr = 1e-4\nimage_size = 64\n'
    )
    experiment = Experiment.load(write(text), ["data.image_size=96", "optimizer.lr=1e-3"])
    assert experiment.phases_resolved() == (
        ResolvedPhase("full", 2, (), batch_size=8, accumulate=1, lr=1e-3, image_size=96),
        ResolvedPhase("large", 3, (), batch_size=4, accumulate=2, lr=1e-4, image_size=64),
    )
    assert experiment.epochs == 5


def test_split_follows_the_list_a_source_stands_in(write: Write, minimal: str):
    source = '[{layout="cod10k",path="x"}]'
    data = Experiment.load(write(minimal), [f"data.{name}={source}" for name in ("train", "val", "test")]).data
    assert [sources[0].split for sources in (data.train, data.val, data.test)] == ["train", "train", "test"]  # type: ignore[union-attr]
    assert data.val_fraction == 0


def test_a_set_of_the_hub_never_validates_on_what_it_trains_on_by_default(write: Write, minimal: str):
    source = '[{hub="nobg/COD10K"}]'
    data = Experiment.load(write(minimal), [f"data.{name}={source}" for name in ("train", "val", "test")]).data
    splits = [sources[0].split for sources in (data.train, data.val, data.test)]  # type: ignore[union-attr]
    assert splits == ["train", "validation", "test"]


def test_plain_tables_hold_no_none(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal), ['data.augment=[{name="Blur",blur_limit=[3,5]}]'])
    assert "weights" not in experiment.model.plain()
    assert experiment.data.augment[0].specification() == {"name": "Blur", "blur_limit": (3, 5)}


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.toml") if path.name != "base.toml"))
def test_recipe_loads_without_remarks(recipe: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAMOX_OPEN_PAIRS", "open_pairs")
    experiment = Experiment.load(RECIPES / recipe)
    assert experiment.experiment.name == Path(recipe).stem
    assert experiment.warnings == ()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_recipe_names_its_schema(recipe: Path):
    assert recipe.read_text(encoding="utf-8").startswith("#:schema schema.json\n")


def test_main_recipe_has_the_agreed_numbers():
    experiment = Experiment.load(RECIPES / "sparse_moe_416.toml")
    frozen, full = experiment.phases_resolved()
    assert frozen == ResolvedPhase("frozen", 40, ("backbone",), batch_size=12, accumulate=2, lr=8e-4, image_size=416)
    assert full == ResolvedPhase("full", 160, (), batch_size=8, accumulate=2, lr=6e-4, image_size=416)
    assert (experiment.schedule.name, experiment.schedule.warmup_epochs, experiment.schedule.min_lr) == (
        "cosine",
        5,
        1e-5,
    )
    assert (len(experiment.model.moe.experts), experiment.model.moe.top_k) == (6, 2)
    assert experiment.model.deep_supervision
    assert experiment.model.gradient_checkpointing
    assert experiment.precision.dtype == "fp16"
    assert experiment.data.workers == 4


def test_committed_schema_is_the_generated_one():
    assert json.loads((RECIPES / "schema.json").read_text(encoding="utf-8")) == json_schema()


def test_schema_describes_every_key():
    schema = json_schema()
    for table in (schema, *schema["$defs"].values()):
        for key, value in table["properties"].items():
            assert value.get("description"), key
    assert '"null"' not in json.dumps(schema)


def test_schema_tells_every_default_that_a_file_can_have():
    schema = json_schema()
    for table in Experiment.model_json_schema()["$defs"].values():
        for key, value in table["properties"].items():
            if value.get("default") is not None and "$ref" not in value:
                assert schema["$defs"][table["title"]]["properties"][key]["default"] == value["default"], key


def test_experiment_is_imported_without_torch():
    code = "import sys, camox.experiment; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
