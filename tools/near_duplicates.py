"""Measure how well near-duplicates are told from other images, and write it into a JSON file.

CAMOX_OPEN_PAIRS=FOLDER python tools/near_duplicates.py --json benchmarks/results/near_duplicates.json

Each photograph below `*_open/images` of the folder is copied with one change after the other; then all pairs of
different photographs are compared. Takes a minute.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from camox.data.audit.similarity import detail_correlation, mirror, near_duplicates, perceptual_hash, small_grey
from camox.data.decoding import read_image
from camox.errors import ArgumentParser
from machine import machine, versions

_NEAR = 22  # bits: of pairs further apart nothing is aligned, and no threshold would be put there


def main() -> int:
    """Parses the command line, measures, writes."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    options = parser.parse_args()
    files = sorted(Path(os.environ["CAMOX_OPEN_PAIRS"]).glob("*_open/images/*"))
    images = [read_image(path) for path in files]
    results = {
        "command": " ".join(["python", "tools/near_duplicates.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(("opencv-python-headless", "numpy", "camox")),
        "photographs": len(images),
        "copies": {name: _copies(images, change) for name, change in _changes().items()},
        "others": _others([small_grey(image) for image in images]),
    }
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _changes() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "JPEG, quality 30": lambda image: _saved(image, 30),
        "half as large": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "brighter by a quarter and 10": lambda image: np.clip(image * 1.25 + 10, 0, 255).astype(np.uint8),
        "mirrored, JPEG, quality 50": lambda image: _saved(np.ascontiguousarray(image[:, ::-1]), 50),
        "cropped by 3 %": lambda image: _cropped(image, 0.03),
        "cropped by 5 %": lambda image: _cropped(image, 0.05),
        "cropped by 10 %": lambda image: _cropped(image, 0.10),
        "cropped by 15 %": lambda image: _cropped(image, 0.15),
    }


def _saved(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def _cropped(image: np.ndarray, share: float) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = int(height * share / 2), int(width * share / 2)
    return image[top : height - top, left : width - left]


def _copies(images: Sequence[np.ndarray], change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """How far copies are from their originals, and the share that `near_duplicates` finds."""
    pairs = [(small_grey(image), small_grey(change(image))) for image in images]
    compared = [_compared(first, second) for first, second in pairs]
    bits, correlations = zip(*compared, strict=True)
    return {
        "bits_median": float(np.median(bits)),
        "bits_max": max(bits),
        "correlation_5_percent": round(float(np.percentile(correlations, 5)), 3),
        "correlation_min": round(min(correlations), 3),
        "found": round(sum(bool(near_duplicates(pair)) for pair in pairs) / len(pairs), 3),
    }


def _others(greys: Sequence[np.ndarray]) -> dict[str, Any]:
    """How near pairs of different photographs come."""
    hashes = [perceptual_hash(grey) for grey in greys]
    distances = {
        (i, j): min((hashes[i] ^ hashes[j]).bit_count(), (hashes[i] ^ mirror(hashes[j])).bit_count())
        for i, j in combinations(range(len(greys)), 2)
    }
    near = [pair for pair, bits in distances.items() if bits <= _NEAR]
    return {
        "pairs": len(distances),
        "bits_min": min(distances.values()),
        f"pairs_within_{_NEAR}_bits": len(near),
        f"correlation_max_within_{_NEAR}_bits": round(max(_compared(greys[i], greys[j])[1] for i, j in near), 3),
        "found": len(near_duplicates(greys)),
    }


def _compared(first: np.ndarray, second: np.ndarray) -> tuple[int, float]:
    """Bits that differ and correlation of details, of two pictures or of one and the other mirrored."""
    a, b = perceptual_hash(first), perceptual_hash(second)
    straight, mirrored = (a ^ b).bit_count(), (a ^ mirror(b)).bit_count()
    flipped = np.ascontiguousarray(second[:, ::-1])
    return min(straight, mirrored), max(detail_correlation(first, second), detail_correlation(first, flipped))


if __name__ == "__main__":
    sys.exit(main())
