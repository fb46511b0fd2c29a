"""What a validation does beside the network: photographs and masks decoded, maps resized and measured.

Seconds for a whole dataset are CPU time: with cores of its own a process takes hardly more wall time than that, and
what neighbours on the machine take does not count. Of two processes at work at once, the busier one's is taken.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import torch

from benchmarking.pairs import likely_pair, photograph
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

ONE, TWO = "camox, one process", "camox, the busier of two processes"
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
        loader_seconds: list[float] = []
        works = {
            ONE: _validation(source, maps, 0, _measured),
            TWO: _watched(_validation(source, maps, 1, _measured), loader_seconds),
            RIVAL: _validation(source, maps, 0, _measured_by_rival),
            DECODING: _validation(source, maps, 0, lambda batch, of_batch: None),
        }
        samples = interleaved(works, settings.rounds, settings.torch_device)
    of_loader = loader_seconds[-settings.rounds :]
    busier = [max(one.process, other) for one, other in zip(samples[TWO], of_loader, strict=True)]
    rows = {
        name: _row(found, busier if name == TWO else [sample.process for sample in found])
        for name, found in samples.items()
    }
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
    rows: Rows = {
        name: {"wall ms / image": _per_image([sample.wall for sample in found])} for name, found in samples.items()
    }
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
        cv2.imwrite(f"{folder}/Imgs/{number:03}.jpg", photograph(number, height, width), [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(f"{folder}/GT/{number:03}.png", truth)
        small = cv2.resize(prediction, (INPUT, INPUT), interpolation=cv2.INTER_AREA)
        maps.append(small.astype(np.float32) / 255)
    return torch.from_numpy(np.stack(maps))


def _validation(source: Any, maps: torch.Tensor, workers: int, score: Score) -> Work:
    loader = eval_loader(EvalSet(source, INPUT), range(PHOTOGRAPHS), BATCH, workers, False)

    def validate() -> None:
        for batch in loader:
            score(batch, maps[batch.indices])

    return validate


def _watched(validate: Work, seconds: list[float]) -> Work:
    """The same work; adds to `seconds` the CPU time that processes of the loader took for it."""

    def watched() -> None:
        before = _children_seconds()
        validate()
        seconds.append(_children_seconds() - before)

    return watched


def _children_seconds() -> float:
    used = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in used)


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


def _row(samples: list[Sample], cpu_seconds: list[float]) -> dict[str, Any]:
    return {
        "CPU ms / image": _per_image(cpu_seconds),
        f"{DATASET} images, s": spread([DATASET / PHOTOGRAPHS * seconds for seconds in cpu_seconds]),
        "wall ms / image": _per_image([sample.wall for sample in samples]),
    }


def _per_image(seconds: list[float]) -> dict[str, float]:
    return spread([1000 / PHOTOGRAPHS * taken for taken in seconds])
