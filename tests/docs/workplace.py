"""A folder in which the commands of the docs can be typed: everything that they presume, but small."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from camox.data.sources import open_source
from tests.docs.commands import ROOT

_SOURCES = """
train = [{ layout = "folder", images = "photos/images", masks = "photos/masks" }]
test = [{ layout = "folder", images = "data/leaves/images", masks = "data/leaves/masks", name = "leaves" }]
"""
_EXPERIMENT = """
[experiment]
name = "{name}"

[data]
{sources}
val_fraction = 0.34
image_size = 64
batch_size = 2
workers = 0

[model]
backbone = "resnet10t"
pretrained = false
width = 8

[schedule]
warmup_epochs = 0

[[phases]]
name = "frozen"
epochs = 1
freeze = ["backbone"]

[[phases]]
name = "full"
epochs = 1

[checkpoints]
every_epochs = 1

[tracking]
log_every = 1
wandb = "disabled"
"""
RUNS = ("mine", "other", "sparse_moe_416")
IMAGES = 6


def furnish(folder: Path) -> None:
    """Write images, masks and maps, experiments by the names of the recipes, and finished runs: the quickstart, a dense
    one, and the quickstart's once more for each of `RUNS`."""
    from camox.experiment import Experiment
    from camox.training.trainer import Trainer

    for images, masks, seed in (
        ("photos/images", "photos/masks", 0),
        ("photos", None, 1),
        ("data/leaves/images", "data/leaves/masks", 2),
        ("data/NC4K/Imgs", "data/NC4K/GT", 3),
        ("data/COD10K-v3/Train/Image", "data/COD10K-v3/Train/GT_Object", 4),
        ("data/COD10K-v3/Test/Image", "data/COD10K-v3/Test/GT_Object", 5),
        (None, "truths", 3),
        (None, "maps", 3),
        (None, "maps/a", 3),
        (None, "maps/b", 3),
    ):
        _paint(folder, images, masks, seed)
    for name in ("a.jpg", "b.png"):
        Image.open(folder / "photos" / "moth_10.jpg").save(folder / name)
    (folder / "experiments").mkdir()
    for recipe in (ROOT / "experiments").glob("*.toml"):
        text = recipe.read_text() if recipe.stem == "base" else _EXPERIMENT.format(name=recipe.stem, sources=_SOURCES)
        (folder / "experiments" / recipe.name).write_text(text)
    (folder / "mine.toml").write_text(_EXPERIMENT.format(name="mine", sources=_SOURCES))
    for name in ("tools", "accelerate_configs", "camox"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("benchmarks", "docs"):  # which some commands write to
        copy(ROOT / name, folder / name)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        Trainer(Experiment.load("experiments/quickstart.toml")).run()
        dense = ["experiment.name=dense_416", "model.moe.mode=dense"]
        Trainer(Experiment.load("experiments/quickstart.toml", dense)).run()
    for name in RUNS:
        copy(folder / "runs" / "quickstart", folder / "runs" / name)


def copy(folder: Path, to: Path) -> Path:
    """The folder once more; weights, which nothing changes, are the same files."""

    def link_or_copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(folder, to, symlinks=True, copy_function=link_or_copy)
    return to


def _paint(folder: Path, images: str | None, masks: str | None, seed: int) -> None:
    habitats = open_source(
        {"synthetic": "habitats", "count": IMAGES, "size": 64, "seed": seed, "empty": 0.0, "tiny": 0.0}
    )
    for number in range(IMAGES):
        sample = habitats[number]
        for place, pixels, suffix in ((images, sample.image, "jpg"), (masks, 255 * sample.mask, "png")):
            if place is not None:
                (folder / place).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / place / f"moth_{seed}{number}.{suffix}")
