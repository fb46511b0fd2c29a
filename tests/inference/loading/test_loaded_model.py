import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from camox.checkpoints.folders import set_pointer
from camox.checkpoints.manifest import record_file
from camox.errors import CheckpointError, ExperimentError
from camox.inference.loading.loaded_model import load_model


def edit_manifest(checkpoint, change):
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_of_a_run_the_best_checkpoint_is_taken(run_folder):
    assert load_model(run_folder).checkpoint.name == "epoch_0001"


def test_without_a_best_the_latest_is_taken(run_folder):
    (run_folder / "checkpoints" / "best").unlink()
    assert load_model(run_folder).checkpoint.name == "epoch_0002"


@pytest.mark.parametrize(("epoch", "expected"), [("epoch_0001", "ema"), ("epoch_0002", "raw")])
def test_auto_takes_the_weights_that_scored_better(run_folder, epoch, expected):
    loaded = load_model(run_folder / "checkpoints" / epoch)
    assert loaded.weights == expected


def test_auto_follows_the_monitor_of_the_experiment(run_folder, override):
    # A lower MAE is better, and raw weights have it, while EMA has the better S.
    override("checkpoints.monitor=mae")
    assert load_model(run_folder).weights == "raw"


def test_the_reason_names_both_scores(run_folder):
    reason = load_model(run_folder).reason
    assert "0.5000 raw" in reason
    assert "0.6000 EMA" in reason


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_weights_asked_for_are_loaded(run_folder, weights):
    loaded = load_model(run_folder, weights)
    file = {"raw": "model", "ema": "ema"}[weights]
    stored = load_file(loaded.checkpoint / f"{file}.safetensors")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())


def test_the_threshold_is_that_of_the_chosen_weights(run_folder):
    found = {"val/threshold": 0.25, "val_ema/threshold": 0.75}
    edit_manifest(run_folder / "checkpoints" / "epoch_0001", lambda manifest: manifest["measures"].update(found))
    raw, ema = load_model(run_folder, "raw"), load_model(run_folder, "ema")
    assert (raw.threshold, ema.threshold) == (0.25, 0.75)
    assert "0.7500: the best mean IoU of held-out images" in ema.threshold_reason


def test_without_a_validation_the_threshold_is_one_half(run_folder):
    loaded = load_model(run_folder)
    assert loaded.threshold == 0.5
    assert "none was chosen" in loaded.threshold_reason


def test_without_scores_raw_weights_are_taken_and_it_is_said(run_folder):
    checkpoint = run_folder / "checkpoints" / "epoch_0001"
    edit_manifest(checkpoint, lambda manifest: manifest.update(measures={}))
    loaded = load_model(checkpoint)
    assert loaded.weights == "raw"
    assert "neither" in loaded.reason


def test_ema_that_does_not_exist_is_an_error(run_folder):
    checkpoint = run_folder / "checkpoints" / "epoch_0001"
    (checkpoint / "ema.safetensors").unlink()
    edit_manifest(checkpoint, lambda manifest: manifest["files"].pop("ema.safetensors"))
    with pytest.raises(CheckpointError, match="no EMA"):
        load_model(checkpoint, "ema")


def test_a_changed_file_is_refused(run_folder):
    file = run_folder / "checkpoints" / "epoch_0001" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*sha256"):
        load_model(run_folder)


def seal_again(file: Path) -> None:
    """Makes the manifest agree with a changed file, so that only the change itself can be objected to."""
    record = record_file(file)
    entry = {"sha256": record.sha256, "size": record.size}
    edit_manifest(file.parent, lambda manifest: manifest["files"].update({file.name: entry}))


def test_nan_is_refused(run_folder):
    checkpoint = run_folder / "checkpoints" / "epoch_0001"
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name][:] = float("nan")
    save_file(tensors, file)
    seal_again(file)
    with pytest.raises(CheckpointError, match="NaN"):
        load_model(run_folder)


def test_weights_of_another_network_are_refused(run_folder):
    checkpoint = run_folder / "checkpoints" / "epoch_0001"
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"width": 16}))
    seal_again(file)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(run_folder)


def test_a_damaged_experiment_is_an_error(run_folder):
    (run_folder / "experiment.toml").write_text("no toml at all")
    with pytest.raises(ExperimentError, match=r"experiment\.toml"):
        load_model(run_folder)


def test_image_size_is_the_one_of_the_experiment(run_folder):
    assert load_model(run_folder).image_size == 64


def test_a_copied_checkpoint_needs_an_image_size(run_folder, tmp_path):
    copy = shutil.copytree(run_folder / "checkpoints" / "epoch_0001", tmp_path / "copy")
    with pytest.raises(CheckpointError, match="--image-size"):
        load_model(copy)
    assert load_model(copy, image_size=96).image_size == 96


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_nothing_to_load_is_an_error(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match="run"):
        load_model(tmp_path / "run")


def test_the_model_is_ready_to_predict(run_folder):
    loaded = load_model(run_folder)
    assert not loaded.model.training
    assert next(loaded.model.parameters()).device.type == loaded.device.type


def test_a_checkpoint_is_found_from_inside_its_own_folder(run_folder, monkeypatch):
    set_pointer(run_folder, "best", "epoch_0002")
    monkeypatch.chdir(run_folder / "checkpoints" / "epoch_0001")
    loaded = load_model(".")
    assert loaded.experiment is not None
    assert loaded.epoch == 1
