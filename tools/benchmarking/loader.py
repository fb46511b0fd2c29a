"""Suite `loader`: images per second that reach training, against a plain albumentations pipeline.

The files are made from a seed: JPEGs of 640 to 1000 pixels a side, quality 90, with PNG masks. All ways resize, flip
with the same probabilities and collate. The plain one, written out below, gives normalised floats; camox gives bytes,
which the device makes floats of, so one row has that done here too. Per core counts process time, with one thread and
no worker; with workers it is wall time, which a busy machine makes longer.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import Sample, Work, interleaved, ratio, significant, spread, wall_ratio
from camox.data.cache import cached
from camox.data.decoding import read_image
from camox.data.habitats import Habitats
from camox.data.loading import TrainSet, train_loader
from camox.data.samples import Source
from camox.data.sources import open_source
from camox.data.transforms import resize_image

IMAGES = 96
WORKERS = (1, 2)
EPOCHS = 4
"""That a pass with workers goes through: the start of a pass should not count much."""
FLIPS = ({"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5})
PLAIN, FILES, FLOATS, CACHE = "plain albumentations", "camox, files", "camox, files, to float", "camox, cache"
Batches = Callable[[int, int], Iterable[object]]
"""Workers, epochs → so many epochs in batches."""


def measure_loader(settings: Settings) -> Report:
    """Loads the same images by all ways in interleaved rounds."""
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder, _one_thread():
        pairs = write_photographs(Path(folder), IMAGES)
        ways = prepare(settings, Path(folder), pairs)
        cpu = torch.device("cpu")
        alone: dict[str, Work] = {name: _passes(way(0, 1)) for name, way in ways.items()}
        of_core = interleaved(alone, settings.rounds, cpu)
        several = {
            f"{name}, workers: {workers}": _passes(way(workers, EPOCHS))
            for name, way in ways.items()
            for workers in WORKERS
        }
        of_workers = interleaved(several, settings.rounds, cpu)
        differences = grey_levels([image for image, _ in pairs], settings.image_size)
    rows: Rows = {name: {"images per core second": _rate(samples, "process", 1)} for name, samples in of_core.items()}
    for name in ways:
        for workers in WORKERS:
            found = _rate(of_workers[f"{name}, workers: {workers}"], "wall", EPOCHS)
            rows[name][f"images/s, workers: {workers}"] = found
    ratios: Rows = {"time per image": {f"{n} / {PLAIN}": ratio(of_core[n], of_core[PLAIN]) for n in ways if n != PLAIN}}
    for workers in WORKERS:
        plain = of_workers[f"{PLAIN}, workers: {workers}"]
        ratios[f"wall time, workers: {workers}"] = {
            f"{n} / {PLAIN}": wall_ratio(of_workers[f"{n}, workers: {workers}"], plain) for n in ways if n != PLAIN
        }
    # Asked for per core: wall time is shown beside it, and depends on what else the machine does.
    targets = [
        Target(f"time per image, {name} / {PLAIN}", at_most, ratios["time per image"][f"{name} / {PLAIN}"]["median"])
        for name, at_most in ((FILES, 0.8), (CACHE, 0.2))
    ]
    return Report({"loading": rows, "grey levels": differences}, ratios, targets, settings.of_targets)


def write_photographs(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Images and masks as photographs have them: texture of all scales, some noise, sizes of their own."""
    random = np.random.default_rng(0)
    habitats = Habitats(count, seed=0, size=256)
    pairs = []
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(count):
        sample, size = habitats[index], [int(side) for side in random.integers(640, 1001, 2)]
        image = cv2.resize(sample.image, size, interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(image + random.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
        mask = cv2.resize(sample.mask * 255, size, interpolation=cv2.INTER_NEAREST_EXACT)
        paths = folder / "images" / f"{index:03d}.jpg", folder / "masks" / f"{index:03d}.png"
        Image.fromarray(noisy).save(paths[0], quality=90)
        Image.fromarray(mask).save(paths[1])
        pairs.append(paths)
    return pairs


class PlainSet(Dataset[tuple[Tensor, Tensor]]):
    """The pipeline that most programs have: decode, resize, flip, normalise, to a tensor."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], size: int):
        self.pairs = pairs
        flips = [getattr(albumentations, str(flip["name"]))(p=flip["p"]) for flip in FLIPS]
        self.transform = albumentations.Compose(
            [albumentations.Resize(size, size), *flips, albumentations.Normalize(), ToTensorV2()]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.pairs[index]
        pixels, truth = cv2.imread(str(image)), cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        assert truth is not None
        found = self.transform(image=cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), mask=truth)
        return found["image"], (found["mask"] > 128).float()[None]


def prepare(settings: Settings, folder: Path, pairs: Sequence[tuple[Path, Path]]) -> dict[str, Batches]:
    """The ways to load the pairs, which lie in the folder."""
    size, batch = settings.image_size, settings.batch
    source = open_source({"layout": "folder", "images": str(folder / "images"), "masks": str(folder / "masks")})
    kept = cached(source, [size], folder / "cache", 100.0, 0, lambda text: None)

    def plain(workers: int, epochs: int) -> Iterable[object]:
        order = [index for _ in range(epochs) for index in range(len(pairs))]
        return DataLoader(
            PlainSet(pairs, size), batch, sampler=order, num_workers=workers, persistent_workers=workers > 0
        )

    def ours(samples: Source, workers: int, epochs: int) -> Iterable[Any]:
        keys = [(epoch, index) for epoch in range(epochs) for index in range(len(samples))]
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        return train_loader(TrainSet(samples, size, FLIPS), batches, workers, pin_memory=False)

    def floats(workers: int, epochs: int) -> Iterable[object]:
        return _Floats(ours(source, workers, epochs))

    return {PLAIN: plain, FILES: partial(ours, source), FLOATS: floats, CACHE: partial(ours, kept)}


class _Floats:
    """Batches as the device makes them: of what is left to it nothing is forgotten."""

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            yield (batch.images.float() / 255 - self.mean) / self.deviation, batch.masks.float()


def grey_levels(images: Sequence[Path], size: int) -> Rows:
    """How far other ways to the training size are from decoding all of an image and resizing it as camox does: the mean
    difference over pixels in grey levels, and the standard deviation of the pixels over that of camox's."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in images:
        full, reduced = read_image(path), read_image(path, at_least=size)
        if reduced.shape == full.shape:
            continue
        expected = resize_image(full, size).astype(float)
        others = {
            "decoded at reduced scale": resize_image(reduced, size),
            "averaged over areas": cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA),
            "bilinear without antialiasing": cv2.resize(full, (size, size), interpolation=cv2.INTER_LINEAR),
        }
        for name, other in others.items():
            found.setdefault(name, []).append((np.abs(other - expected).mean(), other.std() / expected.std()))
    rows: Rows = {}
    for name, pairs in found.items():
        difference, contrast = np.mean(pairs, axis=0)
        rows[name] = {"images": len(pairs), "difference": significant(difference), "contrast": significant(contrast)}
    return rows


def _passes(loader: Iterable[object]) -> Work:
    """All batches once more, by workers that live on, as those of a run do."""

    def work() -> None:
        for _ in loader:
            pass

    return work


def _rate(samples: Sequence[Sample], clock: str, epochs: int) -> Mapping[str, float]:
    return spread([epochs * IMAGES / getattr(sample, clock) for sample in samples])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Per core: neither library starts threads of its own."""
    of_torch, of_cv2 = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(of_torch)
        cv2.setNumThreads(of_cv2)
