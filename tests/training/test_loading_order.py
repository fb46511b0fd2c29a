"""What is trained on: the same for any number of workers, after a resume, and from a cache; with several sizes too."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camox.checkpoints.store import list_checkpoints
from camox.data.cache import cached
from camox.data.habitats import Habitats
from camox.data.loading import TrainBatch, TrainSet, train_loader
from camox.data.samples import Source
from camox.data.sources import Subset, open_source
from camox.errors import DataError, TrainingPaused, TrainingStopped
from camox.training.sampler import EpochBatches
from camox.training.step import TrainingStep
from tests.training.test_trainer import bits, numbers, read_events, stopped_after, train

SIZE, SIZES = 48, (32, 48, 64)
AUGMENT = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "scale": [0.7, 1.3], "rotate": [-20, 20], "p": 0.7},
    {"name": "ColorJitter", "p": 0.5},
    {"name": "CoarseDropout", "p": 0.5},
]


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Fifteen JPEGs with their masks."""
    folder = tmp_path / "photographs"
    habitats = Habitats(count=15, size=128, seed=5)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(15):
        Image.fromarray(habitats[i].image).save(folder / f"images/{i:02d}.jpg", quality=90)
        Image.fromarray(habitats[i].mask * 255).save(folder / f"masks/{i:02d}.png")
    return folder


def source_of(folder: Path) -> Subset:
    whole = open_source({"layout": "folder", "images": str(folder / "images"), "masks": str(folder / "masks")})
    return Subset(whole, [i for i in range(15) if i != 3])


def digest(batch: TrainBatch) -> str:
    found = hashlib.sha256(str((batch.images.shape, batch.indices.tolist(), batch.problems)).encode())
    for tensor in (batch.images, batch.masks):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def epoch_of(
    source: Source | Subset, workers: int, sizes: tuple[int, ...], start: int = 0, ranks: int = 1
) -> list[str]:
    """What every batch of an epoch holds, of the first rank."""
    sampler = EpochBatches(source.weights, 2, seed=11, ranks=ranks, sizes=sizes)
    loader = train_loader(TrainSet(source, SIZE, AUGMENT, 11, sizes), sampler, workers, pin_memory=False)
    sampler.set_position(0)
    for _ in loader:  # persistent workers have an epoch behind them
        break
    sampler.set_position(4, start=start)
    return [digest(batch) for batch in loader]


@pytest.mark.parametrize("sizes", [(), SIZES], ids=["one size", "several sizes"])
@pytest.mark.parametrize("from_cache", [False, True], ids=["files", "cache"])
def test_an_epoch_is_the_same_for_any_number_of_workers_and_after_a_resume(photographs, tmp_path, sizes, from_cache):
    source: Any = source_of(photographs)
    expected = epoch_of(source, 0, sizes)
    assert len(set(expected)) == 7
    if from_cache:
        source = cached(source, sizes or [SIZE], tmp_path / "cache", 1.0, 0, lambda text: None)
        shutil.rmtree(photographs)  # not one file is read
    for workers in (0, 1, 2, 4):
        assert epoch_of(source, workers, sizes) == expected, workers
    for start in range(1, 7):
        assert epoch_of(source, 0, sizes, start) == expected[start:]
    assert epoch_of(source, 2, sizes, 5) == expected[5:]


def experiment_of(tiny_experiment: Any, folder: Path, *overrides: str, output: Path | None = None) -> Any:
    train_data = f'data.train=[{{layout="folder",images="{folder}/images",masks="{folder}/masks"}}]'
    return tiny_experiment(train_data, "data.val_fraction=0.2", *overrides, output=output)


def checkpoints(run: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: bits(path) for path in list_checkpoints(run)}


@pytest.mark.slow
def test_a_run_of_several_sizes_from_a_cache_and_stopped_within_an_epoch_is_that_from_files(
    tiny_experiment, photographs, tmp_path
):
    """With a sample that cannot be read, which the second epoch meets."""
    (photographs / "images/04.jpg").write_bytes((photographs / "images/04.jpg").read_bytes()[:-100])
    overrides = ("data.image_size=64", "data.multi_scale=[1.0, 1.5]", "stability.max_bad_samples=0.5")
    plain = train(experiment_of(tiny_experiment, photographs, *overrides, output=tmp_path / "plain"))
    cache = (f"data.cache={tmp_path / 'cache'}", "data.workers=2")
    parts = experiment_of(tiny_experiment, photographs, *overrides, *cache, output=tmp_path / "parts")
    with stopped_after(2), pytest.raises(TrainingPaused):
        train(parts)
    run = train(parts, resume="auto")
    assert sorted(path.name.split("_")[0] for path in (tmp_path / "cache").glob("*.camox-cache")) == ["64px", "96px"]
    assert numbers(run) == numbers(plain)
    assert checkpoints(run)["epoch_0002"] == checkpoints(plain)["epoch_0002"]
    told = [[event["message"] for event in read_events(of) if event["kind"] == "bad_sample"] for of in (run, plain)]
    assert "04.jpg" in told[0][0]
    assert told[0] == told[1]


def test_the_cache_of_a_run_that_is_too_large_is_refused_before_it(tiny_experiment, photographs, tmp_path):
    experiment = experiment_of(
        tiny_experiment,
        photographs,
        f"data.cache={tmp_path / 'cache'}",
        "data.cache_gib=1e-5",
        output=tmp_path / "runs",
    )
    with pytest.raises(DataError, match=r"15 samples at 32².*data\.cache_gib"):
        train(experiment)
    assert json.loads((experiment.run_folder / "exit.json").read_text())["code"] == 2


def test_a_folder_that_vanishes_in_mid_run_ends_it_with_one_message(tiny_experiment, photographs, monkeypatch):
    take, taken = TrainingStep.__call__, []

    def take_and_unmount(step: TrainingStep, *arguments: Any) -> None:
        taken.append(1)
        if len(taken) == 4:  # the second epoch's first
            (photographs / "images").rename(photographs / "unmounted")
        take(step, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", take_and_unmount)
    overrides = ("data.workers=1", "phases.full.epochs=9", "validation.every_epochs=10")
    experiment = experiment_of(tiny_experiment, photographs, *overrides)
    with pytest.raises(TrainingStopped) as caught:
        train(experiment)
    message = str(caught.value)
    assert f"its folder {photographs / 'images'} is gone; is the disk or share" in message
    assert "samples of an epoch are bad, more than stability.max_bad_samples" in message
    assert message.count("\n") == 0
    assert json.loads((experiment.run_folder / "exit.json").read_text()) == {
        "code": 3, "reason": message, "last_clean_checkpoint": str(list_checkpoints(experiment.run_folder)[-1]),
        "time": pytest.approx(0, abs=1e12),
    }  # fmt: skip
    assert len(taken) < 10  # it does not train on without them
