"""A dataset examined file by file, by several threads, and what shows only over all of its files."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from camox.data.audit.files import Examined, examine
from camox.data.audit.findings import Finding, Severity
from camox.data.audit.listing import Listing
from camox.data.audit.similarity import near_duplicates
from camox.data.audit.statistics import Measured
from camox.data.layouts import Located


@dataclass(frozen=True)
class Dataset:
    """One dataset to examine, or one split of it.

    `role` is what it is used for: "train", "val", "test", or "" where nothing says so.
    """

    name: str
    role: str
    located: Located
    listing: Listing

    @property
    def title(self) -> str:
        """Name and role, as tables show them."""
        return f"{self.name} ({self.role})" if self.role and self.role != self.name else self.name


@dataclass(frozen=True)
class Audited:
    """A dataset with what its files showed, in order of their names."""

    dataset: Dataset
    examined: tuple[Examined, ...]

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All of them: those of names, of files, and of the dataset as a whole."""
        of_files = [finding for one in self.examined for finding in one.findings]
        return (*self.dataset.listing.findings, *of_files, *_looks_inverted(self))

    @property
    def measured(self) -> list[Measured]:
        """Numbers of every pair that could be read."""
        return [one.measured for one in self.examined if one.measured is not None]


@dataclass(frozen=True)
class Duplicate:
    """Two images that show nearly the same, each as (position of its dataset, position in that).

    It is a problem where the two datasets have different roles: scores on the one then flatter, or what is selected
    on is trained on. Within one role it is a note.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    distance: int
    correlation: float
    mirrored: bool
    severity: Severity


def examine_dataset(dataset: Dataset, workers: int | None = None, advance: Callable[[], None] | None = None) -> Audited:
    """Examine every file of a dataset; decoding is shared by threads, which leave Python's lock most of the time.

    Args:
        workers: threads; None takes one for each core.
        advance: called after each image, in order.
    """
    examined = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            for one in pool.map(examine, dataset.listing.entries):
                examined.append(one)
                if advance:
                    advance()
        except BaseException:  # whoever presses Ctrl-C does not want to wait for thousands of files
            pool.shutdown(cancel_futures=True)
            raise
    return Audited(dataset, tuple(examined))


def find_duplicates(audited: Sequence[Audited]) -> list[Duplicate]:
    """Find near-duplicates within and among datasets, those among roles first. See `similarity.near_duplicates`.

    The same file in two datasets counts; in one role it does not.
    """
    places = [(i, j) for i, one in enumerate(audited) for j, file in enumerate(one.examined) if file.grey is not None]
    greys = [grey for i, j in places if (grey := audited[i].examined[j].grey) is not None]
    found = []
    for pair in near_duplicates(greys):
        first, second = places[pair.first], places[pair.second]
        across = audited[first[0]].dataset.role != audited[second[0]].dataset.role
        if not across and _file(audited, first) == _file(audited, second):
            continue
        severity: Severity = "problem" if across else "note"
        found.append(Duplicate(first, second, pair.distance, pair.correlation, pair.mirrored, severity))
    return sorted(found, key=lambda duplicate: duplicate.severity != "problem")


def _file(audited: Sequence[Audited], place: tuple[int, int]) -> str:
    return str(audited[place[0]].examined[place[1]].entry.image.resolve())


def count_findings(audited: Iterable[Audited], duplicates: Iterable[Duplicate], severity: Severity) -> int:
    """How many problems or notes there are. What two datasets share, such as a folder of masks, counts once."""
    findings = {finding for one in audited for finding in one.findings}
    return sum(item.severity == severity for items in (findings, duplicates) for item in items)


def _looks_inverted(audited: Audited) -> list[Finding]:
    """A finding where more than half of all masks cover more than half of the image and of its border."""
    covering = [one.area > 0.5 and one.border > 0.5 for one in audited.measured]
    if len(covering) < 4 or np.mean(covering) <= 0.5:
        return []
    detail = f"{sum(covering)} of {len(covering)} masks cover most of the image and of its border"
    return [Finding("inverted_dataset", part.masks, detail) for part in audited.dataset.located.parts[:1]]
