"""Near-duplicates among images: perceptual hashes propose pairs, an aligned comparison confirms them."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 64
"""Height and width of the small grey pictures that are compared."""

_HASH_SIDE = 32
_LOW = 8  # of the transform's rows and columns, so many are kept
_CHUNK = 256  # rows compared at once: 256 x 6000 x 8 bytes fit a cache
_ALIGNMENT = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
_EVERYWHERE = np.ones((SIDE, SIDE), np.uint8)


@dataclass(frozen=True)
class NearDuplicate:
    """Images `first` < `second` that show nearly the same.

    `distance` is the number of bits (0 to 64) in which their hashes differ, `correlation` that of the aligned
    pictures' details (at most 1), `mirrored` whether one has to be mirrored for it.
    """

    first: int
    second: int
    distance: int
    correlation: float
    mirrored: bool


def small_grey(image: np.ndarray) -> np.ndarray:
    """Shrink uint8 [H, W, 3] RGB to uint8 [64, 64], grey, whatever its shape."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def perceptual_hash(grey: np.ndarray) -> int:
    """Hash uint8 [64, 64] to 64 bits that similar pictures share: the signs of its lowest frequencies.

    As pHash (Zauner 2010): the cosine transform of 32² pixels, of which 8² coefficients remain. They are compared
    with 0 and not with their median, so that a mirrored picture has the same bits but for those of odd columns
    inverted (see `mirror`). The constant's bit is always 0.
    """
    small = cv2.resize(grey, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    coefficients = cv2.dct(small.astype(np.float32))[:_LOW, :_LOW]
    bits = coefficients > 0
    bits[0, 0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def mirror(bits: int) -> int:
    """The hash of the mirrored picture."""
    return bits ^ _ODD_COLUMNS


_ODD_COLUMNS = int.from_bytes(np.packbits(np.tile(np.arange(_LOW) % 2 == 1, (_LOW, 1))).tobytes(), "big")


def near_duplicates(
    greys: Sequence[np.ndarray], most_bits: int = 16, least_correlation: float = 0.88
) -> list[NearDuplicate]:
    """Find all pairs of pictures that show nearly the same: saved again, resized, slightly cropped, or mirrored.

    Args:
        greys: what `small_grey` made of each image.
        most_bits: hashes of a pair differ in at most so many bits.
        least_correlation: of what `detail_correlation` gives for a pair.

    Returns:
        Pairs by ascending distance. Comparing all hashes of 6000 images takes a tenth of a second, aligning what they
        propose some milliseconds a pair: seconds where photographs differ, minutes for thousands of nearly alike.
    """
    hashes = np.array([perceptual_hash(grey) for grey in greys], np.uint64)
    found = []
    for first, second, distance, mirrored in _candidates(hashes, most_bits):
        other = greys[second][:, ::-1] if mirrored else greys[second]
        correlation = detail_correlation(greys[first], other)
        if correlation >= least_correlation:
            found.append(NearDuplicate(first, second, distance, correlation, mirrored))
    return sorted(found, key=lambda pair: (pair.distance, pair.first, pair.second))


def _candidates(hashes: np.ndarray, most_bits: int) -> list[tuple[int, int, int, bool]]:
    """(first, second, distance, mirrored) of all pairs of uint64 hashes [N] within so many bits of each other."""
    found: dict[tuple[int, int], tuple[int, bool]] = {}
    for mirrored in (False, True):
        others = hashes ^ np.uint64(_ODD_COLUMNS) if mirrored else hashes
        for start in range(0, len(hashes), _CHUNK):
            rows = hashes[start : start + _CHUNK, None]
            distances = np.bitwise_count(rows ^ others[None, start + 1 :])
            for row, column in np.argwhere(distances <= most_bits):
                first, second = start + int(row), start + 1 + int(column)
                if first < second:
                    distance = int(distances[row, column])
                    found[first, second] = min((distance, mirrored), found.get((first, second), (65, False)))
    return [(first, second, *match) for (first, second), match in found.items()]


def detail_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation (at most 1) of two uint8 [64, 64] pictures' details, after one was moved onto the other.

    An affine motion is sought that maximises it (Evangelidis and Psarakis 2008), which undoes a slight crop. What is
    smooth over 8 pixels is taken out first: two skies are no duplicates. 0 where no motion is found.
    """
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, found = cv2.findTransformECC(first, second, start, cv2.MOTION_AFFINE, _ALIGNMENT, _EVERYWHERE, 3)
    except cv2.error:  # it does not converge where there is nothing in common
        return 0.0
    motion = np.asarray(found)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(_details(second), motion, (SIDE, SIDE), flags=flags)
    inside = cv2.warpAffine(_EVERYWHERE, motion, (SIDE, SIDE), flags=cv2.INTER_NEAREST | flags) > 0
    if inside.mean() < 0.6:
        return 0.0
    a, b = _details(first)[inside], moved[inside]
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm else 0.0


def _details(grey: np.ndarray) -> np.ndarray:
    levels = grey.astype(np.float32)
    return levels - cv2.GaussianBlur(levels, (0, 0), 4)
