"""What data a checkpoint is selected on, and whether these are the data it is tested on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from camox.data.hub_access import HubAddress
from camox.data.sources import locate_source
from camox.errors import ExperimentError
from camox.experiment import Experiment

_TEST_FOLDERS = ("test", "testdataset")
_TEST_SETS = ("chameleon", "nc4k")
"""Sets of the field without a training part."""

Identity = frozenset[Any]


def identity(specification: Mapping[str, Any], split: str = "train") -> Identity:
    """What a data source shows; two of them share images if and only if they have a common member.

    The folders of the images; of a set of the hub its place and the hundredths of its splits; for what has neither the
    specification without what changes no image. `split` holds where the specification has none. Raises DataError where
    there is no such data.
    """
    if "layout" in specification:
        return frozenset(part.images.resolve() for part in locate_source(specification, split).parts)
    if "hub" in specification:
        # Whichever columns are read, and whether they are streamed, the images are those of the split.
        address = HubAddress(specification["hub"], specification.get("split") or split)
        place = (address.folder or Path(address.hub)).resolve(), specification.get("config")
        return frozenset((*place, *part) for part in _hundredths(address.split))
    # Image i of a seed does not depend on how many there are.
    ignored = ("count", "name", "weight")
    return frozenset([tuple(sorted((key, str(value)) for key, value in specification.items() if key not in ignored))])


def _hundredths(split: str) -> Iterator[tuple[str, int]]:
    """Name and number of each hundredth that "train", "train[:80%]" or "train+test[5%:]" takes of a split. One that is
    cut by numbers of rows counts as whole: how many there are, nobody has asked yet."""
    for part in split.split("+"):
        match = re.fullmatch(r"(?:(-?\d+)%)?:(?:(-?\d+)%)?", part.partition("[")[2].rstrip("] "))
        cut = slice(*(None if bound is None else int(bound) for bound in match.groups())) if match else slice(None)
        for number in range(100)[cut]:
            yield _split_name(part), number


def _split_name(part: str) -> str:
    return part.partition("[")[0].strip()


def identities(sources: Sequence[Any], split: str = "train") -> Identity:
    """Of all sources of an experiment's list."""
    return frozenset[Any]().union(*(identity(source.plain(), split) for source in sources))


def selects_on_test(experiment: Experiment) -> str | None:
    """Why checkpoints are selected on test images, as part of a sentence; None where they are not.

    They are where `data.val` names images that `data.test` names too, the test part of a dataset, or one of the field's
    sets that are all test. Raises DataError where data are missing.
    """
    data = experiment.data
    if identities(data.val) & identities(data.test, "test"):
        return "data.val names images that data.test names too"
    for position, source in enumerate(data.val):
        if _is_test_part(source.plain()):
            return f"data.val[{position}] is a test set, or the test part of a dataset"
    return None


def require_declared_selection(experiment: Experiment) -> None:
    """Raise ExperimentError where checkpoints would be selected on test images without `validation.select_on_test`.

    Raises DataError where data are missing.
    """
    reason = selects_on_test(experiment)
    if reason and not experiment.validation.select_on_test:
        raise ExperimentError(
            f"{reason}: the best checkpoint would be selected on test images, and its scores on them would say little "
            "about others. Remove data.val to hold out a part of data.train (data.val_fraction), or set "
            "validation.select_on_test = true, which labels every result"
        )


def selection_warnings(experiment: Experiment) -> Iterator[str]:
    """What an experiment's results will suffer from, to be said before it runs. Raises DataError as above."""
    data = experiment.data
    reason = selects_on_test(experiment)
    if reason:
        yield f"{reason}: checkpoints are selected on test images (validation.select_on_test), every result says so"
    elif experiment.validation.select_on_test:
        if data.val:
            known = "labels every result, though data.val names no images that are known to be test images"
            yield f"validation.select_on_test {known}: remove it if they are none"
        else:
            yield "validation.select_on_test has no effect: data.val names no test images; remove it"
    train = identities(data.train)
    for name, shown in (("val", identities(data.val)), ("test", identities(data.test, "test"))):
        if train & shown:
            yield f"data.{name} names images that data.train names too: scores on them say nothing about others"


def what_held_out(experiment: Experiment) -> str:
    """What the images of validation are, in two words: a part of the training data, or images of their own."""
    return "to validate on" if experiment.data.val else "held out"


def selected_on(experiment: Experiment) -> str:
    """What data the experiment selects checkpoints on, in words."""
    data = experiment.data
    if data.val and experiment.validation.select_on_test:
        return "test images named by data.val (validation.select_on_test)"
    if data.val:
        return "validation data named by the experiment"
    if data.val_fraction:
        return f"held-out {data.val_fraction:.0%} of the training data, seed {experiment.experiment.seed}"
    return "nothing: no data were held out"


def _is_test_part(specification: Mapping[str, Any]) -> bool:
    """Whether the folder of the images, or the one around it, is called so, or as a set that is all test; of SINet's
    collection also the next folder. Sets of the hub go by their split and name."""
    if "test" in map(_split_name, str(specification.get("split")).split("+")):
        return True
    if Path(specification.get("hub", "")).name.casefold() in _TEST_SETS:
        return True
    if "layout" not in specification:
        return False
    return any(
        any(name in _TEST_FOLDERS + _TEST_SETS for name in names[-2:]) or names[-3:-2] == ["testdataset"]
        for part in locate_source(specification).parts
        if (names := [name.casefold() for name in part.images.resolve().parts])
    )
