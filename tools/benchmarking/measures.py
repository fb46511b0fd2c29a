"""Suite `measures`: how far our measures are from pysodmetrics, and how long both take, on one core.

Parity is of protocol "pysod", image by image. Published pairs are compared where the environment variable
CAMOX_OPEN_PAIRS names the folder that holds them; all others are made from seeds. Timed are pairs of 512² whose map is
flat nowhere, so that no part of an image is spared, and a whole validation at the sizes of photographs, without the
network. On a GPU the batches of that validation are measured there.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from benchmarking.pairs import EDGES, Pair, likely_pair, native_pair, random_pair, scattered_pair
from benchmarking.reference import PARTS, reference_measures
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import Sample, Work, interleaved, ratio, spread
from benchmarking.validation import validation_on_gpu, validations
from camox.measures import image_measures
from camox.measures.evaluator import measure_image, measure_uint8, uint8_probability
from camox.measures.protocol import PYSOD
from camox.measures.scoring import read_grey

TOLERANCE = 1e-6
FASTER = {10: 7, 40: 4}
"""Percent of the image that is object → how many times as fast as pysodmetrics all measures are to be."""
RANDOM_PAIRS = 2000
NATIVE_PAIRS = 20
TIMED_PAIRS = 8
SIDE = 512

OURS, RIVAL, MAPS = "camox", "pysodmetrics", "camox, float maps"
WHOLE = "all measures"


def measure_measures(settings: Settings) -> Report:
    """Compares, then times: parts and wholes in interleaved rounds, then validations in theirs."""
    with _one_core():
        if settings.on_gpu:
            return validation_on_gpu(settings)
        differences: Rows = {name: _differences(pairs) for name, pairs in _pair_sets().items()}
        results: dict[str, Rows] = {"largest difference": differences}
        speedups: dict[str, Any] = {}
        worst = max(value for row in differences.values() for name, value in row.items() if name != "pairs")
        targets = [Target("largest difference to pysodmetrics", TOLERANCE, worst)]
        for percent, times in FASTER.items():
            rows, ratios = _speed(percent, settings)
            results[f"{SIDE}², object {percent} %"] = rows
            speedups |= {f"{percent} %, {part}": value for part, value in ratios.items()}
            share = 1 / ratios[WHOLE]["median"]
            targets.append(Target(f"time, object {percent} %, camox / pysodmetrics (1 / {times})", 1 / times, share))
        found = validations(settings)
    results["validation"] = found.rows
    all_ratios: Rows = {"times as fast": speedups, "validation, times as fast": found.ratios}
    return Report(results, all_ratios, [*targets, *found.targets], settings.of_targets)


@contextmanager
def _one_core() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _pair_sets() -> dict[str, Iterable[Pair]]:
    return {
        **_published(),
        "smooth, 1 to 60 px": map(random_pair, range(RANDOM_PAIRS)),
        "scattered, 1 to 24 px": map(scattered_pair, range(RANDOM_PAIRS)),
        "native, 250 to 700 px": map(native_pair, range(NATIVE_PAIRS)),
        "edges": EDGES.values(),
    }


def _published() -> dict[str, Iterable[Pair]]:
    """Sets of published pairs, if there is a folder of them."""
    folder = Path(os.environ.get("CAMOX_OPEN_PAIRS", ""))
    sets = {"fixtures of pysodmetrics": "pysodmetrics_examples", "reference pairs": "metric_reference"}
    if "CAMOX_OPEN_PAIRS" not in os.environ:
        return {}
    return {
        title: [
            (read_grey(path), read_grey(folder / name / "masks" / path.name))
            for path in sorted((folder / name / "preds").iterdir())
        ]
        for title, name in sets.items()
    }


def _differences(pairs: Iterable[Pair]) -> dict[str, float]:
    """The largest difference in any image by part of the measures; infinite where only one of the two is NaN."""
    worst: dict[str, float] = {"pairs": 0, **dict.fromkeys(PARTS, 0.0)}
    for prediction, truth in pairs:
        worst["pairs"] += 1
        ours, theirs = image_measures(prediction, truth, "pysod"), reference_measures([(prediction, truth)])
        for part, names in PARTS.items():
            worst[part] = max(worst[part], *(_difference(ours[name], theirs[name]) for name in names))
    return worst


def _difference(one: float, other: float) -> float:
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other)


def _speed(percent: int, settings: Settings) -> tuple[Rows, dict[str, dict[str, float]]]:
    """Milliseconds per image of each part and of the whole, and how many times as fast ours are."""
    pairs = [likely_pair(seed, SIDE, SIDE, percent / 100) for seed in range(TIMED_PAIRS)]
    works: dict[str, Work] = {f"{WHOLE} {MAPS}": _on_maps(pairs)}
    for part in (*PARTS, WHOLE):
        parts = tuple(PARTS) if part == WHOLE else (part,)
        works[f"{part} {RIVAL}"] = partial(reference_measures, pairs, parts)
        works[f"{part} {OURS}"] = _on_levels(pairs, parts, whole=part == WHOLE)
    samples = interleaved(works, settings.rounds, settings.torch_device)
    rows: Rows = {}
    for part in (*PARTS, WHOLE):
        of_part = {who: samples.get(f"{part} {who}") for who in (RIVAL, OURS, MAPS)}
        rows[part] = {f"{who}, ms": _milliseconds(found) for who, found in of_part.items() if found}
    return rows, {part: ratio(samples[f"{part} {RIVAL}"], samples[f"{part} {OURS}"]) for part in rows}


def _on_levels(pairs: list[Pair], parts: tuple[str, ...], whole: bool) -> Work:
    """Ours on uint8 maps; the whole has `iou` and `dice` at 0.5 beside all that the library has."""
    names = [name for part in parts for name in PARTS[part]] + (["iou", "dice"] if whole else [])
    return lambda: [measure_uint8(prediction, truth, "pysod", names) for prediction, truth in pairs]


def _on_maps(pairs: list[Pair]) -> Work:
    """Ours on maps in floating point, as validation has them, by the default protocol."""
    maps = [(uint8_probability(prediction), PYSOD.binarise_truth(truth)) for prediction, truth in pairs]
    return lambda: [measure_image(probability, truth, "camox") for probability, truth in maps]


def _milliseconds(samples: list[Sample]) -> Mapping[str, float]:
    return spread([1000 * sample.cost / TIMED_PAIRS for sample in samples])
