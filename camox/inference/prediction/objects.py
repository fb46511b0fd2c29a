"""What is found in images, as numbers: area, box and score of the whole mask and of each connected object."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from camox.measures.protocol import FALSE_POSITIVE_SHARE

VERSION = 1
"""Of the schema of objects.json; a change in the meaning of a key is a new one."""
LEAST_SHARE = FALSE_POSITIVE_SHARE
"""Connected regions of no more than this share of the image are no objects; they stay in the mask and in its area."""

Box = tuple[int, int, int, int]
"""(left, top, width, height) in pixels of the image."""


@dataclass(frozen=True)
class Region:
    """Pixels of a mask. `area` in pixels, `share` of the image in [0, 1], `score`: their mean probability."""

    area: int
    share: float
    box: Box
    score: float


@dataclass(frozen=True)
class Found:
    """What one image's map shows at a threshold.

    width, height: of the image, upright. whole: all pixels of the mask, None where there is none. objects: its
    connected regions (of 8 neighbours) above `LEAST_SHARE`, largest first. highest: the highest probability.
    """

    width: int
    height: int
    whole: Region | None
    objects: tuple[Region, ...]
    highest: float


def find_objects(probability: np.ndarray, threshold: float) -> Found:
    """Of a probability map, float32 [H, W] in [0, 1]; a pixel from `threshold` on is object."""
    height, width = probability.shape
    mask = (probability >= threshold).astype(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sums = np.bincount(labels.ravel(), weights=probability.ravel(), minlength=count)
    regions = [_region(row, total, mask.size) for row, total in zip(statistics[1:], sums[1:], strict=True)]
    objects = sorted((one for one in regions if one.share > LEAST_SHARE), key=_largest_first)
    whole = None
    if regions:
        area = sum(one.area for one in regions)
        box = tuple(int(value) for value in cv2.boundingRect(mask))
        score = float(sums[1:].sum()) / area
        whole = Region(area, area / mask.size, (box[0], box[1], box[2], box[3]), min(score, 1.0))
    return Found(width, height, whole, tuple(objects), float(probability.max()))


def document(
    found: Sequence[tuple[str, str, Found]], threshold: float, reason: str, described: Mapping[str, Any]
) -> dict[str, Any]:
    """What objects.json holds: `found` has the image, its map's path below the folder, and what it shows."""
    return {
        "format": "camox objects",
        "version": VERSION,
        "threshold": {"value": threshold, "reason": reason},
        "least_share": LEAST_SHARE,
        **described,
        "images": [_image(image, map_, one) for image, map_, one in found],
    }


def _image(image: str, map_: str, found: Found) -> dict[str, Any]:
    whole = asdict(found.whole) if found.whole else {"area": 0, "share": 0.0, "box": None, "score": None}
    return {
        "image": image,
        "map": map_,
        "width": found.width,
        "height": found.height,
        "highest": found.highest,
        **whole,
        "objects": [asdict(one) for one in found.objects],
    }


def _region(row: np.ndarray, total: float, pixels: int) -> Region:
    left, top, width, height, area = (int(value) for value in row)
    return Region(area, area / pixels, (left, top, width, height), min(float(total) / area, 1.0))


def _largest_first(region: Region) -> tuple[int, Box]:
    return -region.area, region.box
