"""A small run, trained once and never written to: each case damages a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from camox.checkpoints.store import set_pointer, write_checkpoint
from camox.experiment import Experiment
from tests.conftest import TINY_EXPERIMENT
from tests.fuzz.damage import copy_of

SMALL = (
    "model.backbone=test_efficientnet",
    "model.refinement_steps=1",
    "model.moe.scales=[32]",
    'model.moe.experts=["edge", "texture", "contrast"]',
    "data.augment=[]",
    "checkpoints.keep_last=2",
)


@pytest.fixture(scope="session")
def small_experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Two epochs on a network of 0.2 million weights."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(TINY_EXPERIMENT, encoding="utf-8")
    return Experiment.load(folder / "small.toml", SMALL, folder / "runs")


@pytest.fixture(scope="session")
def trained_run(small_experiment: Experiment) -> Path:
    """The finished run's folder with the checkpoints epoch_0001 and epoch_0002."""
    from camox.training.trainer import Trainer

    Trainer(small_experiment).run()
    return small_experiment.run_folder


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the same two checkpoints, of a few numbers: to read all of it takes a moment."""
    run = tmp_path_factory.mktemp("saved") / "run"
    model = {
        "a.weight": torch.ones(4, 3),
        "a.half": torch.ones(3).half(),
        "a.count": torch.tensor(2),
        "a.none": torch.ones(0),
    }
    groups = {
        "model": model,
        "ema": model,
        "optimizer": {"a.weight/step": torch.tensor(1.0)},
        "rng_0": {"cpu": torch.ones(9)},
    }
    for epoch in (1, 2):
        state = {"step": epoch, "epoch": epoch, "ranks": 1, "guards": {"skipped_steps": {"total": 0.5}}, "best": {}}
        config = {"width": 8, "experts": ["edge", "texture"], "band": [0.5, 2.0]}
        write_checkpoint(
            run, f"epoch_{epoch:04d}", groups, state=state, config=config, measures={"iou": epoch / 10},
            experiment_fingerprint="f" * 64, step=epoch, epoch=epoch,
        )  # fmt: skip
        set_pointer(run, "latest", f"epoch_{epoch:04d}")
    set_pointer(run, "best", "epoch_0002")
    return run


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[Path], tuple[Path, Path, Path]]:
    """`copies(run)` gives a fresh copy of a run, its first checkpoint, and its second, which is to be damaged."""

    def fresh(run: Path) -> tuple[Path, Path, Path]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        copy = copy_of(run, tmp_path / "run")
        return copy, copy / "checkpoints" / "epoch_0001", copy / "checkpoints" / "epoch_0002"

    return fresh
