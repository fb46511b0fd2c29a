"""What a validation does beside the network: photographs and masks decoded, maps resized and measured."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from benchmarking.pairs import likely_pair
from benchmarking.reference import reference_measures
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import Sample, Work, interleaved, ratio, spread, wall_ratio
from camox.data.loading import EvalBatch, EvalSet, eval_loader
from camox.data.sources import open_source
from camox.measures.evaluator import Evaluator, resize_probability
from camox.measures.sums import round_to_levels

DATASET = 2026
"""Images of COD10K's test set."""
LONGEST = 40
"""Seconds that it may take on two cores, but for the network."""
PHOTOGRAPHS = 32
SIZES = ((683, 1024), (600, 800), (768, 1024), (480, 640), (640, 960), (800, 1200), (750, 500), (853, 1280))
"""(H, W), in turn: 0.66 megapixels on average."""
SHARES = (0.03, 0.06, 0.1, 0.15, 0.25)
"""Of the image that is object, in turn."""
INPUT = 352
BATCH = 8

ONE, TWO = "camox, one process", "camox, two processes"
RIVAL, DECODING = "pysodmetrics, one process", "decoding alone, one process"
ON_GPU, ON_CPU = "measuring on the GPU", "measuring on the CPU"

Score = Callable[[EvalBatch, torch.Tensor], object]


class Validations(NamedTuple):
    """Their figures."""

    rows: Rows
    ratios: dict[str, Any]
    targets: list[Target]


def validations(settings: Settings) -> Validations:
    """Times whole validations in interleaved rounds: ours in one and in two processes, and the rival's."""
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        maps = _write_photographs(Path(folder))
        source = open_source({"layout": "folder", "images": f"{folder}/Imgs", "masks": f"{folder}/GT"}, split="test")
        works = {
            ONE: _validation(source, maps, 0, _measured),
            TWO: _validation(source, maps, 1, _measured),
            RIVAL: _validation(source, maps, 0, _measured_by_rival),
            DECODING: _validation(source, maps, 0, lambda batch, of_batch: None),
        }
        samples = interleaved(works, settings.rounds, settings.torch_device)
    rows = {name: _row(found, cpu=name != TWO) for name, found in samples.items()}
    ratios = {f"{RIVAL} / {ONE}": ratio(samples[RIVAL], samples[ONE])}
    seconds = rows[TWO][f"{DATASET} images, s"]["median"]
    return Validations(
        rows, ratios, [Target(f"{DATASET} images without the network, two processes, s", LONGEST, seconds)]
    )


def validation_on_gpu(settings: Settings) -> Report:
    """Times how the batches of a validation are measured on the GPU that made their maps, and on the CPU."""
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        maps = _write_photographs(Path(folder))
        source = open_source({"layout": "folder", "images": f"{folder}/Imgs", "masks": f"{folder}/GT"}, split="test")
        batches = list(eval_loader(EvalSet(source, INPUT), range(PHOTOGRAPHS), BATCH, 0, False))
    on_device = [maps[batch.indices].to(settings.torch_device) for batch in batches]

    def on_gpu() -> list[Evaluator]:
        return [_measured_there(batch, of_batch) for batch, of_batch in zip(batches, on_device, strict=True)]

    def on_cpu() -> list[Evaluator]:
        return [_measured(batch, of_batch.cpu()) for batch, of_batch in zip(batches, on_device, strict=True)]

    samples = interleaved({ON_GPU: on_gpu, ON_CPU: on_cpu}, settings.rounds, settings.torch_device)
    rows = {name: _row(found, cpu=False) for name, found in samples.items()}
    differences = [_difference(one, other) for one, other in zip(on_gpu(), on_cpu(), strict=True)]
    ratios: Rows = {"times as fast": {f"{ON_CPU} / {ON_GPU}": wall_ratio(samples[ON_CPU], samples[ON_GPU])}}
    targets = [Target("largest difference between GPU and CPU", 1e-6, max(differences))]
    return Report({"validation": rows}, ratios, targets, judged=True)


def _write_photographs(folder: Path) -> torch.Tensor:
    """Writes JPEGs of noise at several scales and PNG masks; gives a network's maps, float32 [N, S, S]."""
    maps = []
    for name in ("Imgs", "GT"):
        (folder / name).mkdir()
    for number in range(PHOTOGRAPHS):
        height, width = SIZES[number % len(SIZES)]
        prediction, truth = likely_pair(number, height, width, SHARES[number % len(SHARES)])
        cv2.imwrite(f"{folder}/Imgs/{number:03}.jpg", _noise(number, height, width), [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(f"{folder}/GT/{number:03}.png", truth)
        small = cv2.resize(prediction, (INPUT, INPUT), interpolation=cv2.INTER_AREA)
        maps.append(small.astype(np.float32) / 255)
    return torch.from_numpy(np.stack(maps))


def _noise(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 120, np.float32)
    for scale in (1, 4, 16, 64):
        coarse = rng.normal(size=(height // scale + 1, width // scale + 1, 3)).astype(np.float32)
        pixels += 14 * scale**0.5 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


def _validation(source: Any, maps: torch.Tensor, workers: int, score: Score) -> Work:
    loader = eval_loader(EvalSet(source, INPUT), range(PHOTOGRAPHS), BATCH, workers, False)

    def validate() -> None:
        for batch in loader:
            score(batch, maps[batch.indices])

    return validate


def _measured(batch: EvalBatch, maps: torch.Tensor) -> Evaluator:
    evaluator = Evaluator()
    images = zip(batch.indices.tolist(), batch.names, batch.groups, maps.numpy(), batch.truths, strict=True)
    for image in images:
        evaluator.add(*image)
    return evaluator


def _measured_there(batch: EvalBatch, maps: torch.Tensor) -> Evaluator:
    evaluator = Evaluator()
    evaluator.add_batch(batch.indices.tolist(), batch.names, batch.groups, maps, batch.truths)
    return evaluator


def _measured_by_rival(batch: EvalBatch, maps: torch.Tensor) -> None:
    for map_, truth in zip(maps.numpy(), batch.truths, strict=True):
        levels = round_to_levels(resize_probability(map_, (truth.shape[0], truth.shape[1])))
        reference_measures([(levels, truth * np.uint8(255))])


def _difference(one: Evaluator, other: Evaluator) -> float:
    pairs = zip(one.results, other.results, strict=True)
    return max(
        abs(value - there.result.scalars[name]) for here, there in pairs for name, value in here.result.scalars.items()
    )


def _row(samples: list[Sample], cpu: bool) -> dict[str, Any]:
    """Per image and for the dataset; CPU time is left out where other processes have a part in the work."""
    wall = [sample.wall / PHOTOGRAPHS for sample in samples]
    process = {"CPU ms / image": spread([1000 * sample.process / PHOTOGRAPHS for sample in samples])} if cpu else {}
    return {
        **process,
        "wall ms / image": spread([1000 * seconds for seconds in wall]),
        "images / s": spread([1 / seconds for seconds in wall]),
        f"{DATASET} images, s": spread([DATASET * seconds for seconds in wall]),
    }
