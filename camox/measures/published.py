"""What other methods report on the field's test sets, to stand beside our own scores, labelled."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

MEASURES = ("s_measure", "f_weighted", "mae")


class Published(NamedTuple):
    """A method's scores on one dataset, as published; `scores` in the order of `MEASURES`."""

    method: str
    backbone: str
    source: str
    scores: tuple[float, float, float]


def published_on(dataset: str) -> Sequence[Published]:
    """Methods with scores on the dataset of that name (COD10K, NC4K or CAMO, in capitals or not, also as
    "COD10K-v3"), best S first; none for other names, and for training images."""
    column = _column(dataset)
    if column is None:
        return ()
    methods = [
        Published(one["method"], one["backbone"], one["source"], tuple(one[column])) for one in _table()["methods"]
    ]
    return sorted(methods, key=lambda one: -one.scores[0])


def warning() -> str:
    """What has to be said beside published numbers."""
    return str(_table()["note"])


def images_of(dataset: str) -> int | None:
    """How many images the published numbers of a dataset are means over; None where nothing is published."""
    column = _column(dataset)
    return None if column is None else int(_table()["images"][column])


def _column(dataset: str) -> str | None:
    match = re.match(r"(cod10k|nc4k|camo)(?:[-_ ]?(?:v3|test))?(?! *\(training)(?: \(|$)", dataset.casefold())
    return None if match is None else match[1].upper()


@cache
def _table() -> Mapping[str, Any]:
    table = json.loads(files("camox.measures").joinpath("published.json").read_text(encoding="utf-8"))
    assert tuple(table["measures"]) == MEASURES, table["measures"]
    return dict(table)
