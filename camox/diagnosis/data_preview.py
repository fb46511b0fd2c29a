"""`camox data preview`: a sheet of training samples as the network gets them."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from camox.data.loading import TrainSet
from camox.data.samples import Samples
from camox.data.sources import open_training_sources
from camox.diagnosis.contact_sheet import draw_sheet
from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.inference.pictures import outlined
from camox.tracking.console import Console, counted

_EPOCHS = 5

Captioned = tuple[np.ndarray, str, str, bool]
"""A picture uint8 [S, S, 3] RGB, two lines of caption, and whether the second is a warning."""


def preview(
    experiment: Experiment, out: Path | None = None, epoch: int = 1, count: int = 8, console: Console | None = None
) -> Path:
    """Write a PNG of training samples: a row for each, first only resized, then as five epochs show it.

    Samples are those of the run itself, augmented by its seed, with their masks outlined.

    Args:
        out: the PNG, by default `<name>_preview.png` in the current folder.
        epoch: the first of the epochs, counted from 1 over all phases.
        count: samples, spread evenly over the training set.

    Returns:
        Where the sheet is.

    Raises:
        CamoxError: the data cannot be opened or are streamed, the run has no such epoch, or the file cannot be written.
    """
    console = console or Console()
    path = out or Path(f"{experiment.experiment.name}_preview.png")
    if not path.resolve().parent.is_dir() or path.is_dir():
        raise ExperimentError(f"{path} cannot be written: give a file in a folder that exists as --out")
    sizes = _sizes_by_epoch(experiment)
    if not 1 <= epoch <= len(sizes):
        raise ExperimentError(f"--epoch {epoch}: the experiment has {counted(len(sizes), 'epoch')}: give one of these")
    data = experiment.data
    if data.is_streamed:
        raise ExperimentError("a streamed set has no samples to choose from: preview it with streaming = false")
    source, _ = open_training_sources(
        [one.plain() for one in data.train],
        [one.plain() for one in data.val],
        data.val_fraction,
        experiment.experiment.seed,
    )
    for notice in source.notices:
        console.warning(notice)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)).tolist()
    epochs = range(epoch, min(epoch + _EPOCHS, len(sizes) + 1))
    tiles = list(_tiles(experiment, source, chosen, epochs, sizes))
    augmented = ", ".join(transform.name for transform in data.augment) or "no augmentation"
    subtitle = f"{len(chosen)} of {counted(len(source), 'training sample')}, masks outlined; {augmented}"
    title = f"{experiment.experiment.name}: what the network gets"
    try:
        draw_sheet(tiles, title, subtitle, columns=len(epochs) + 1).save(path, format="PNG")
    except OSError as error:
        raise ExperimentError(f"{path} cannot be written ({error}): give another --out") from error
    console.notice(f"{subtitle}\n{path}")
    return path


def _sizes_by_epoch(experiment: Experiment) -> list[int]:
    """Height and width of images in every epoch, in pixels."""
    phases = experiment.phases_resolved()
    ends = list(accumulate(phase.epochs for phase in phases))
    sizes: list[int] = []
    for phase, end in zip(phases, ends, strict=True):
        sizes += [phase.image_size] * (end - len(sizes))
    return sizes


def _tiles(
    experiment: Experiment, source: Samples, chosen: list[int], epochs: range, sizes: list[int]
) -> Iterator[Captioned]:
    """Each sample without augmentation, then as each of the epochs shows it."""
    seed = experiment.experiment.seed
    augment = [transform.specification() for transform in experiment.data.augment]
    first = sizes[epochs[0] - 1]
    resized = TrainSet(source, first)
    augmented = {size: TrainSet(source, size, augment, seed) for size in {sizes[epoch - 1] for epoch in epochs}}
    for index in chosen:
        yield _tile(resized, 0, index, source.names[index], f"resized to {first}x{first}")
        for epoch in epochs:
            size = sizes[epoch - 1]
            yield _tile(augmented[size], epoch - 1, index, f"epoch {epoch}", f"{size}x{size}")


def _tile(samples: TrainSet, epoch: int, index: int, name: str, about: str) -> Captioned:
    item = samples[epoch, index]
    if item.problem is not None:
        return item.image, name, item.problem, True
    return outlined(item.image, item.mask), name, about, False
