"""Which data a checkpoint is scored on, and what part they had in making it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from camox.data.layouts import splits_of
from camox.data.samples import Source
from camox.data.sources import locate_source, open_source, open_training_sources
from camox.errors import DataError
from camox.experiment import Experiment
from camox.tracking.jsonl import plain

TRAINING = "training"
SELECTION = "selection"
TEST = "test"
OTHER = "other"
UNKNOWN = "unknown"

# What is put behind a dataset's name, so that no table can hide it.
_LABELS = {TRAINING: " (training images)", SELECTION: " (held out, selected on)"}


@dataclass(frozen=True)
class ScoredData:
    """A dataset to score on.

    `used_for`: "training" or "selection" (of the checkpoint and its weights), "test" (named so by the experiment,
    used for neither), "other" (not named by the experiment) or "unknown" (no experiment to ask).
    """

    name: str
    source: Source
    used_for: str
    origin: tuple[Mapping[str, Any], ...]
    """The specifications it was opened from."""

    def as_dict(self) -> dict[str, Any]:
        """What is stored with a result."""
        return {"used_for": self.used_for, "images": len(self.source), "source": plain(self.origin)}


def named_data(folders: Mapping[str, str | Path], experiment: Experiment | None) -> list[ScoredData]:
    """Open the folders that a user names. Raises DataError for one that has no known layout."""
    scored = []
    for name, path in folders.items():
        specification = {**_recognise(Path(path)), "name": name}
        used_for = _used_for(specification, experiment)
        source = open_source(specification, split="test")
        scored.append(ScoredData(_labelled(name, used_for), source, used_for, (specification,)))
    return scored


def default_data(experiment: Experiment | None) -> list[ScoredData]:
    """The experiment's test sources, each for itself; without any, what its checkpoints were selected on.

    Raises DataError where there is neither.
    """
    if experiment is None:
        raise DataError(
            "no data to score on: the checkpoint has no experiment.toml two folders above, which would name its test "
            "data; give --data NAME=PATH"
        )
    tests = [source.plain() for source in experiment.data.test]
    if not tests:
        return [_selection_data(experiment)]
    scored = []
    for specification in tests:
        source = open_source(specification, split="test")
        used_for = _used_for(specification, experiment)
        scored.append(ScoredData(_labelled(source.label, used_for), source, used_for, (specification,)))
    return _told_apart(scored)


def selected_on(experiment: Experiment) -> str:
    """What data the experiment selects checkpoints on, in words."""
    data = experiment.data
    if data.val:
        return "validation data named by the experiment"
    if data.val_fraction:
        return f"held-out {data.val_fraction:.0%} of the training data, seed {experiment.experiment.seed}"
    return "nothing: no data were held out"


def _selection_data(experiment: Experiment) -> ScoredData:
    data = experiment.data
    if not data.val and not data.val_fraction:
        raise DataError(
            "no data to score on: the experiment names no test or validation data and held nothing out; "
            "give --data NAME=PATH"
        )
    train = [source.plain() for source in data.train]
    val = [source.plain() for source in data.val]
    _, held_out = open_training_sources(train, val, data.val_fraction, experiment.experiment.seed)
    seen = any(_used_for(specification, experiment) == TRAINING for specification in val)
    used_for = TRAINING if seen else SELECTION
    return ScoredData(_labelled(held_out.label, used_for), held_out, used_for, tuple(val or train))


def _labelled(name: str, used_for: str) -> str:
    return name + _LABELS.get(used_for, "")


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


def _used_for(specification: Mapping[str, Any], experiment: Experiment | None) -> str:
    if experiment is None:
        return UNKNOWN
    data = experiment.data
    for used_for, sources in ((TRAINING, data.train), (SELECTION, data.val), (TEST, data.test)):
        if _identity(specification) in [_identity(source.plain()) for source in sources]:
            return used_for
    return OTHER


def _identity(specification: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for two specifications that show the same images: the folders of the images, or the painter's seed."""
    if "layout" in specification:
        parts = locate_source(specification).parts
        return ("files", *(part.images.resolve() for part in parts))
    # Image i of a seed does not depend on how many there are.
    return tuple(sorted((k, str(v)) for k, v in specification.items() if k not in ("count", "name", "weight")))
