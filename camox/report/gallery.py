"""Which of the images that a model was run on are shown, worst first, and what is said of them. Needs no torch."""

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from camox.measures.routing import kind_information

WORST, MIDDLE, BEST, EMPTY = 12, 3, 3, 3
"""Images shown: with the least IoU, around the median, with the greatest; and of those without an object, the ones in
which most is called object."""
SCORES = ("iou", "s_measure", "mae")
_QUALITY = 82


class Key(NamedTuple):
    """An image: title of its dataset, and its name there."""

    dataset: str
    name: str


@dataclass(frozen=True)
class Seen:
    """One image as the model saw it. Pictures are uint8 [h, w, 3] RGB of at most 176 pixels a side."""

    key: Key
    group: str
    scores: Mapping[str, float]
    """`SCORES` where the truth has an object, `false_positive_area` where it has none."""
    pictures: Mapping[str, np.ndarray]
    """"image", "truth", "prediction" and "boundary uncertainty"."""
    shares: Mapping[int, np.ndarray]
    """Stride → share of each expert, float [E]: of the choices, or of the weight where all experts are taken."""
    weights: Mapping[int, np.ndarray]
    """Stride → weight of each expert, float [E], the mean over the regions of the image."""


@dataclass(frozen=True)
class Examined:
    """A run's model on its images, or why there is none."""

    images: Sequence[Seen] = ()
    trouble: str = ""
    total: int = 0
    """How many images the data have; more than `images` where they are many."""
    weights: str = ""
    """Which weights, and why."""
    checkpoint: str = ""
    ranked: Sequence[Key] = ()
    """Images with an object, worst IoU first: all where the run's evaluation has scored them, else those seen."""
    experts: Sequence[str] = ()
    is_choice: bool = False
    """Whether a router selects some of the experts, or weighs all of them."""


def chosen(examined: Sequence[Examined]) -> dict[str, list[Key]]:
    """Which images to show, under their headings; of several runs on the same images those worst on average."""
    scores: dict[Key, list[Mapping[str, float]]] = {}
    for one in examined:
        for seen in one.images:
            scores.setdefault(seen.key, []).append(seen.scores)
    common = {key: of for key, of in scores.items() if len(of) == len(examined)}
    means = {
        key: {name: float(np.mean([one[name] for one in of if name in one])) for name in of[0]}
        for key, of in common.items()
    }
    ranked = [key for key in examined[0].ranked if key in common] if len(examined) == 1 else ranked_keys(means)
    worst, middle, best = picks(ranked)
    empty = sorted(
        (key for key, of in means.items() if of.get("false_positive_area", 0) > 0),
        key=lambda key: -means[key]["false_positive_area"],
    )[:EMPTY]
    shown = {"Worst": worst, "In the middle": middle, "Best": best, "No object, but one was seen": empty}
    return {heading: keys for heading, keys in shown.items() if keys}


def experts_of(seen: Seen, experts: Sequence[str], most: int = 2) -> list[tuple[int, str]]:
    """Stride and the experts with most weight, for people."""
    told = []
    for stride, weights in seen.weights.items():
        order = np.argsort(-weights, kind="stable")[:most]
        told.append((stride, " + ".join(f"{experts[e]} {weights[e]:.0%}" for e in order if weights[e] > 0.005)))
    return told


class GroupShares(NamedTuple):
    """How one router spreads the images of each group over the experts."""

    stride: int
    groups: list[str]
    shares: np.ndarray
    """Mean share of each expert, float [E, groups]."""
    information: float
    """Of the group on the expert, in nat."""
    by_chance: float
    """What of that groups drawn at random would show."""


def shares_by_group(examined: Examined) -> Iterator[GroupShares]:
    """For each router; nothing where there is one group only."""
    kinds = [seen.group for seen in examined.images]
    groups = sorted(set(kinds))
    for stride in examined.images[0].shares if len(groups) > 1 else ():
        shares = np.stack([seen.shares[stride] for seen in examined.images])
        means = [shares[[kind == group for kind in kinds]].mean(axis=0) for group in groups]
        yield GroupShares(stride, groups, np.stack(means, axis=1), *kind_information(shares, kinds))


def card_id(key: Key) -> str:
    """The id of an image's card on the page."""
    # Names that differ in other signs alone have one slug.
    return f"{slug(f'image {key.dataset} {key.name}')}-{zlib.crc32(repr(key).encode('utf-8', 'backslashreplace')):08x}"


def slug(text: str) -> str:
    """A text as part of an id."""
    return "".join(character if character.isalnum() else "-" for character in text.casefold())


def embedded(picture: np.ndarray) -> str:
    """A picture uint8 [h, w, 3] RGB as the source of an <img>."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def ranked_keys(scores: Mapping[Key, Mapping[str, float]]) -> list[Key]:
    """The images that have an IoU, the worst first."""
    return sorted((key for key, of in scores.items() if "iou" in of), key=lambda key: (scores[key]["iou"], key))


def picks(ranked: Sequence[Key]) -> tuple[list[Key], list[Key], list[Key]]:
    """The worst, those around the median, the best; none is in two of them."""
    worst, rest = list(ranked[:WORST]), list(ranked[WORST:])
    best = rest[max(0, len(rest) - BEST) :]
    between = rest[: len(rest) - len(best)]
    start = min(max(0, len(ranked) // 2 - WORST - MIDDLE // 2), max(0, len(between) - MIDDLE))
    return worst, between[start : start + MIDDLE], best
