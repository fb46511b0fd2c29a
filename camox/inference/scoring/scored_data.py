"""Which data a checkpoint is scored on, and what part they had in making it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from camox.data.layouts import splits_of
from camox.data.samples import Source
from camox.data.sources import locate_source, open_source, open_sources, open_training_sources
from camox.errors import DataError
from camox.inference.loading.loaded_model import LoadedModel
from camox.inference.scoring.provenance import (
    SELECTION,
    SELECTION_ON_TEST,
    TRAINING,
    part_of_held_out,
    part_of_images,
    worst,
)
from camox.tracking.jsonl import plain

# What is put behind a dataset's name, so that no table can hide it.
_LABELS = {
    TRAINING: " (training images)",
    SELECTION: " (held out, selected on)",
    SELECTION_ON_TEST: " (test images, selected on)",
}


@dataclass(frozen=True)
class ScoredData:
    """A dataset to score on.

    `used_for`: the part that its images had in making what is scored, as `provenance.part_of_images` tells it.
    """

    name: str
    source: Source
    used_for: str
    origin: tuple[Mapping[str, Any], ...]
    """The specifications it was opened from."""

    @property
    def title(self) -> str:
        """The name, with the part that the images had in making the checkpoint."""
        return self.name + _LABELS.get(self.used_for, "")

    def as_dict(self) -> dict[str, Any]:
        """What is stored with a result."""
        return {"used_for": self.used_for, "images": len(self.source), "source": plain(self.origin)}


def named_data(
    folders: Mapping[str, str | Path], models: Sequence[LoadedModel], non_camouflaged: bool = False
) -> list[ScoredData]:
    """Open the folders that a user names; of a folder with several sets each gets its own name.

    `models`: what is scored, together. `non_camouflaged`: with COD10K's images without a camouflaged object. Raises
    DataError for a folder of no known layout.
    """
    kept = {"non_camouflaged": True} if non_camouflaged else {}
    specifications = [{**_recognise(Path(path)), "name": name, **kept} for name, path in folders.items()]
    return _opened(specifications, models)


def default_data(models: Sequence[LoadedModel]) -> list[ScoredData]:
    """The test sources of the first model's experiment, each for itself; without any, what it selects checkpoints on.

    Raises DataError where there is neither.
    """
    experiment = models[0].experiment
    if experiment is None:
        raise DataError(
            "no data to score on: the checkpoint has no experiment.toml two folders above, which would name its test "
            "data; give --data NAME=PATH"
        )
    if not experiment.data.test:
        return [selection_data(models)]
    return _opened([source.plain() for source in experiment.data.test], models)


def _opened(specifications: Iterable[Mapping[str, Any]], models: Sequence[LoadedModel]) -> list[ScoredData]:
    scored = []
    for specification in (part for whole in specifications for part in _sets(whole)):
        source = open_source(specification, split="test")
        scored.append(ScoredData(source.label, source, part_of_images(specification, models), (specification,)))
    return _told_apart(scored)


def _sets(specification: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A collection's test sets each for itself, as tables have them; everything else as it is."""
    located = locate_source(specification, "test") if "layout" in specification else None
    if located is None or len(located.parts) == 1:
        yield specification
        return
    kept = {key: specification[key] for key in ("non_camouflaged", "super_class") if key in specification}
    for part in located.parts:
        yield {"layout": "folder", "images": str(part.images), "masks": str(part.masks), "name": part.name, **kept}


def selection_data(models: Sequence[LoadedModel]) -> ScoredData:
    """What the first model's experiment selects checkpoints on. Raises DataError where it holds nothing out."""
    experiment = models[0].experiment
    assert experiment is not None
    data = experiment.data
    if not data.val and not data.val_fraction:
        raise DataError(
            "no data to score on: the experiment names no test or validation data and held nothing out; "
            "give --data NAME=PATH"
        )
    seed = experiment.experiment.seed
    train = [source.plain() for source in data.train]
    val = [source.plain() for source in data.val]
    # What is trained on may be a stream, and is not looked at here.
    held_out = open_sources(val) if val else open_training_sources(train, val, data.val_fraction, seed)[1]
    if val:
        selection = SELECTION_ON_TEST if experiment.validation.select_on_test else SELECTION
        used_for = worst([selection, *(part_of_images(specification, models) for specification in val)])
    else:
        used_for = part_of_held_out(models)
    return ScoredData(held_out.label, held_out, used_for, tuple(val or train))


def _told_apart(scored: Iterable[ScoredData]) -> list[ScoredData]:
    """The same, where a name that stands twice is numbered."""
    named: dict[str, ScoredData] = {}
    for data in scored:
        name, number = data.name, 2
        while name in named:
            name, number = f"{data.name} {number}", number + 1
        named[name] = replace(data, name=name)
    return list(named.values())


def _recognise(path: Path) -> dict[str, Any]:
    """The specification of the data in a folder: its test part, where it has one."""
    splits = splits_of(path)
    split = "train" if splits == ("train",) else "test"
    return {"layout": "auto", "path": str(path), "split": split}
