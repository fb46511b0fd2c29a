"""The measurement of the options, of a tiny run in the place of all three."""

import json

import numpy as np
import pytest
import torch

import inference_options
from camox.checkpoints.store import set_pointer, write_checkpoint
from camox.experiment import Experiment
from camox.inference.loading.loaded_model import load_model
from camox.models.camoxpert import CamoXpert

EXPERIMENT = """
[experiment]
name = "tiny"
[data]
train = [{ synthetic = "habitats", count = 20, size = 64, empty = 0.0 }]
test = [{ synthetic = "habitats", count = 4, size = 48, seed = 1, empty = 0.0 }]
val_fraction = 0.2
image_size = 64
[model]
backbone = "resnet10t"
pretrained = false
width = 8
[[phases]]
name = "full"
epochs = 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    folder.mkdir()
    (folder / "experiment.toml").write_text(EXPERIMENT)
    experiment = Experiment.load(folder / "experiment.toml")
    torch.manual_seed(0)
    model = CamoXpert.from_experiment(experiment)
    write_checkpoint(
        folder, "epoch_0001", {"model": model.state_dict()}, state={"step": 1, "epoch": 1}, config=model.config,
        measures={}, experiment_fingerprint=experiment.fingerprint(), step=1, epoch=1,
    )  # fmt: skip
    set_pointer(folder, "latest", "epoch_0001")
    return folder


def test_bytes_that_were_seen_are_not_computed_again(run):
    model = load_model(run).model
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    remembering = inference_options.Remembering(model)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, again, other = (remembering(one).logits for one in (images, images.clone(), images.flip(-1)))
        assert torch.equal(first, model(images).logits)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(calls) == 3


@pytest.mark.slow
def test_every_option_is_scored_and_timed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_options, "ROUNDS", 1)
    monkeypatch.setattr(inference_options, "TIMED_IMAGES", 1)
    monkeypatch.setitem(inference_options.LARGE, "size", 128)
    document = inference_options.measure([run] * 3, "command", most=2)
    assert document["test"].keys() == inference_options.OPTIONS.keys()
    passes = {name: row["passes"] for name, row in document["test"].items()}
    assert (passes["plain"], passes["--tta hflip,vflip,scales"], passes["--with both --tta hflip"]) == (1, 8, 6)
    plain, seed = document["test"]["plain"], document["test"]["--with another seed"]
    assert plain["differences"] is None
    assert plain["time"]["median"] == 1
    assert seed["iou"] == plain["iou"]  # the same model twice
    assert all(np.isfinite(row[name]) for row in document["test"].values() for name in inference_options.MEASURES)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    page = tmp_path / "page.md"
    page.write_text("<!-- inference_options -->\n<!-- /inference_options -->\n")
    assert inference_options.main(["--from", str(path), "--markdown", str(page)]) == 0
    assert all(f"| {name} |" in page.read_text() for name in inference_options.OPTIONS)


def test_another_file_is_refused(tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"test": []}')
    arguments = ["--from", str(tmp_path / "other.json"), "--markdown", str(tmp_path / "page.md")]
    assert inference_options.main(arguments) != 0
    assert "no results of tools/inference_options.py" in capsys.readouterr().err
