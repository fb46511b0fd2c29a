"""Scores flatter where images had a part in any of the models, or in what these began with."""

from dataclasses import replace

import pytest

from camox.inference.loading.loaded_model import experiment_at, load_model
from camox.inference.scoring.provenance import part_of_held_out, part_of_images
from camox.inference.scoring.scored_data import default_data, named_data

HABITATS = '{ synthetic = "habitats", count = 20, size = 64, seed = 7 }'


@pytest.fixture
def model(run_folder):
    """A run that was trained on habitats."""
    return load_model(run_folder, device="cpu")


@pytest.fixture
def remade(model, override, run_folder):
    """The model as if its run had been another experiment."""

    def remade(*overrides, run=run_folder):
        override(*overrides)
        return replace(model, experiment=experiment_at(run_folder), run=run)

    return remade


@pytest.fixture
def on_pairs(pairs):
    """The override that trains on the folder of pairs."""
    return f'data.train=[{{ layout = "folder", images = "{pairs / "Imgs"}", masks = "{pairs / "GT"}" }}]'


@pytest.fixture
def shown(pairs):
    return {"layout": "auto", "path": str(pairs)}


def test_the_part_is_that_in_the_training_of_any_model(model, remade, on_pairs, shown, pairs):
    trained = remade(on_pairs)
    assert part_of_images(shown, [model]) == "other"
    for together in ([trained], [trained, model], [model, trained]):
        assert part_of_images(shown, together) == "training"
        (data,) = named_data({"p": pairs}, together)
        assert data.title == "p (training images)"


def test_the_part_in_what_the_weights_began_with_counts(model, remade, on_pairs, shown, tmp_path, run_folder):
    remade(on_pairs)
    first = run_folder.rename(tmp_path / "runs" / "first")
    second = model.experiment.experiment.model_copy(update={"init_from": str(first)})
    began = replace(model, experiment=model.experiment.model_copy(update={"experiment": second}))
    assert part_of_images(shown, [began]) == "training"
    first.rename(tmp_path / "elsewhere")
    assert part_of_images(shown, [began]) == "unknown"


def test_training_data_that_are_gone_leave_it_unknown(remade, on_pairs, pairs, tmp_path, shown):
    trained = remade(on_pairs)
    moved = {"layout": "auto", "path": str(pairs.rename(tmp_path / "moved"))}
    assert part_of_images(moved, [trained]) == "unknown"


def test_folders_that_an_export_names_are_not_looked_for(remade, on_pairs, shown):
    assert part_of_images(shown, [remade(on_pairs, run=None)]) == "unknown"
    painting = remade(f"data.train=[{HABITATS}]", run=None)
    assert part_of_images(painting.experiment.data.train[0].plain(), [painting]) == "training"


def test_what_is_held_out_is_so_for_runs_of_the_same_split_alone(model, remade):
    assert part_of_held_out([model]) == part_of_held_out([model, model]) == "selection"
    other = remade("experiment.seed=43")
    assert part_of_held_out([model, other]) == "training"
    assert default_data([model, other])[0].title.endswith("(training images)")


def test_validation_images_that_were_trained_on_are_training_images(remade):
    selected = remade(f"data.val=[{HABITATS}]", "data.val_fraction=0.0")
    assert default_data([selected])[0].used_for == "selection"
    trained = remade(f"data.val=[{HABITATS}]", f"data.train=[{HABITATS}]")
    assert default_data([trained])[0].used_for == "training"
    on_test = remade('data.train=[{ synthetic = "habitats", count = 20, size = 64 }]', "validation.select_on_test=true")
    assert default_data([on_test])[0].used_for == "selection on test images"
