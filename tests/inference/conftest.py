"""A run's folder as training leaves it, with a tiny untrained network."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from camox.checkpoints.store import set_pointer, write_checkpoint
from camox.experiment import Experiment
from camox.models.camoxpert import CamoXpert

SIZE = 64
EXPERIMENT = """
[experiment]
name = "tiny"

[data]
train = [{ synthetic = "habitats", count = 20, size = 64, empty = 0.0 }]
val_fraction = 0.2
image_size = 64

[model]
backbone = "resnet10t"
pretrained = false
width = 8

[[phases]]
name = "full"
epochs = 2
"""
# EMA is better by the monitor in the first epoch, raw weights in the second.
MEASURES = {
    "epoch_0001": {"val/s_measure": 0.5, "val_ema/s_measure": 0.6, "val/mae": 0.1, "val_ema/mae": 0.2},
    "epoch_0002": {"val/s_measure": 0.7, "val_ema/s_measure": 0.6, "val/threshold": 0.3, "val_ema/threshold": 0.6},
}


@pytest.fixture(scope="session")
def template_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    folder.mkdir()
    source = folder / "source.toml"
    source.write_text(EXPERIMENT)
    experiment = Experiment.load(source)
    source.unlink()
    (folder / "experiment.toml").write_text(experiment.to_toml())
    torch.manual_seed(0)
    model = CamoXpert.from_experiment(experiment)
    other = CamoXpert.from_experiment(experiment)
    for step, (name, measures) in enumerate(MEASURES.items(), start=1):
        write_checkpoint(
            folder,
            name,
            {"model": model.state_dict(), "ema": other.state_dict()},
            state={"step": step, "epoch": step},
            config=model.config,
            measures=measures,
            experiment_fingerprint=experiment.fingerprint(),
            step=step,
            epoch=step,
        )
    set_pointer(folder, "latest", "epoch_0002")
    set_pointer(folder, "best", "epoch_0001")
    return folder


@pytest.fixture
def run_folder(template_run, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(template_run, tmp_path / "runs" / "tiny")


@pytest.fixture
def override(run_folder):
    """Changes the experiment of the run as overrides on the command line would."""

    def override(*overrides):
        file = run_folder / "experiment.toml"
        file.write_text(Experiment.load(file, overrides).to_toml())

    return override


@pytest.fixture
def save():
    """Saves an array as an image file, with Pillow's options; makes the folder."""

    def save(path, pixels, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return save


@pytest.fixture
def photographs(tmp_path, save):
    """Eight images of different sizes."""
    rng = np.random.default_rng(0)
    for i in range(8):
        coarse = rng.integers(0, 256, (4 + i, 5, 3), np.uint8)
        save(tmp_path / "photographs" / f"{i}.png", coarse.repeat(11, axis=0).repeat(9 + i, axis=1))
    return tmp_path / "photographs"


@pytest.fixture
def pairs(tmp_path, save):
    """A folder in the {Imgs, GT} layout with six pairs."""
    rng = np.random.default_rng(1)
    for i in range(6):
        image = rng.integers(0, 256, (40 + i, 50, 3), np.uint8)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[10:25, 12 : 20 + 3 * i] = 255
        save(tmp_path / "pairs" / "Imgs" / f"{i}.jpg", image)
        save(tmp_path / "pairs" / "GT" / f"{i}.png", mask)
    return tmp_path / "pairs"


@pytest.fixture
def read_scores():
    def read(folder):
        return json.loads((folder / "measures.json").read_text())

    return read
