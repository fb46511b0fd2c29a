"""What part images had in making a model: a score on those that it was trained on, or selected by, flatters it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from camox.errors import DataError
from camox.experiment import Experiment
from camox.inference.loading.loaded_model import LoadedModel, experiment_at
from camox.inference.loading.selection import Identity, identity

TRAINING = "training"
SELECTION_ON_TEST = "selection on test images"
SELECTION = "selection"
UNKNOWN = "unknown"
TEST = "test"
OTHER = "other"
_WORST_FIRST = (TRAINING, SELECTION_ON_TEST, SELECTION, UNKNOWN, TEST, OTHER)

Maker = tuple[Experiment | None, bool]
"""An experiment that had a part in a model, None where it is not at hand; and whether folders that it names are those
it was trained on."""


def part_of_images(specification: Mapping[str, Any], models: Sequence[LoadedModel]) -> str:
    """The worst part that the images of a data source had in making any of the models, or what these began with.

    "training" or "selection" (of a checkpoint and its weights), "selection on test images" (as an experiment allows
    itself), "unknown" (an experiment, or data that it names, are not at hand), "test" (named so by an experiment, used
    for neither) or "other" (not named).
    """
    shown = identity(specification, "test")
    return worst(_part(shown, maker) for maker in _makers(models))


def part_of_held_out(models: Sequence[LoadedModel]) -> str:
    """The same for what the first model's experiment holds out of its training data."""
    (first, _), *others = _makers(models)
    assert first is not None
    parts = [SELECTION]
    for other in others:
        if other[0] is None or _split(other[0]) != _split(first):
            parts += [_part(identity(source.plain()), other) for source in first.data.train]
    return worst(parts)


def worst(parts: Iterable[str]) -> str:
    """The part that most flatters a score."""
    return min(parts, key=_WORST_FIRST.index)


def _makers(models: Sequence[LoadedModel]) -> Iterator[Maker]:
    """The experiments of models, each followed by those whose weights it began with (`experiment.init_from`)."""
    for model in models:
        # An export's experiment names folders of another place, and by their last part alone.
        experiment, is_at_home = model.experiment, model.run is not None
        seen: set[str] = set()
        yield experiment, is_at_home
        while experiment is not None and (start := experiment.experiment.init_from) is not None and start not in seen:
            seen.add(start)
            experiment = experiment_at(start) if is_at_home else None
            yield experiment, is_at_home


def _part(shown: Identity, maker: Maker) -> str:
    experiment, is_at_home = maker
    if experiment is None:
        return UNKNOWN
    data = experiment.data
    (train, all_of_train), (val, all_of_val) = _known(data.train, is_at_home), _known(data.val, is_at_home)
    if shown & train:
        return TRAINING
    if shown & val:
        return SELECTION_ON_TEST if experiment.validation.select_on_test else SELECTION
    if not (all_of_train and all_of_val):
        return UNKNOWN
    return TEST if shown & _known(data.test, is_at_home, "test")[0] else OTHER


def _known(sources: Sequence[Any], is_at_home: bool, split: str = "train") -> tuple[Identity, bool]:
    """What the sources show, as far as they can be found, and whether all of them can."""
    found: Identity = frozenset()
    complete = True
    for source in sources:
        specification = source.plain()
        try:
            if "layout" in specification and not is_at_home:
                raise DataError("a folder of another place")
            found |= identity(specification, split)
        except DataError:
            complete = False
    return found, complete


def _split(experiment: Experiment) -> tuple[Any, ...]:
    data = experiment.data
    return [source.plain() for source in data.train], data.val, data.val_fraction, experiment.experiment.seed
