"""Reading, the network and writing at the same time: on a CPU each image on a core of its own, on a GPU in batches."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from camox.data.decoding import read_image
from camox.errors import DataError
from camox.inference.ensemble import Ensemble
from camox.inference.forward import require_finite
from camox.inference.prediction.mask_refinement import Refinement, refine
from camox.inference.prediction.objects import Found, find_objects
from camox.inference.prediction.outputs import Bits, Job, write_results

_GPU_BATCH = 8


@dataclass(frozen=True)
class Settings:
    """What becomes of each map. `objects`: whether areas and boxes are asked for."""

    threshold: float
    bits: Bits
    refinement: Refinement | None
    objects: bool


@dataclass(frozen=True)
class Done:
    """What became of an image: `written` files, or the `problem` it could not be read for."""

    job: Job
    written: tuple[Path, ...] = ()
    found: Found | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Read:
    job: Job
    image: np.ndarray
    resized: dict[int, np.ndarray]


def run(network: Ensemble, jobs: Sequence[Job], settings: Settings, batch_size: int | None) -> Iterator[Done]:
    """Do all jobs, and give what became of each, in their order.

    `batch_size`: images that are worked on at once, see `predictor.predict`. Raises OSError where a result cannot be
    written, and CheckpointError where the model gives NaN; what was done until then stays.
    """
    if network.device.type == "cpu":
        return _side_by_side(network, jobs, settings, batch_size)
    return _in_batches(network, jobs, settings, batch_size or _GPU_BATCH)


def probability_map(network: Ensemble, image: np.ndarray, refinement: Refinement | None = None) -> np.ndarray:
    """The map of one image, uint8 [H, W, 3] RGB: float32 [H, W] in [0, 1]. Raises CheckpointError where it is NaN."""
    (probability,) = _probabilities(network, [network.resized(image)], ["the image"])
    return _at_size(probability, image, refinement)


def _side_by_side(network: Ensemble, jobs: Sequence[Job], settings: Settings, batch_size: int | None) -> Iterator[Done]:
    """Every image by itself and on one thread: neither its batch nor the number of cores can move a bit of its map."""

    def whole(job: Job) -> Done:
        torch.set_num_threads(1)  # of this thread
        read = _read(network, job)
        if isinstance(read, Done):
            return read
        (probability,) = _probabilities(network, [read.resized], [str(job.image.path)])
        return _finish(read, probability, settings)

    with _threads_kept() as threads, _pool(min(batch_size or threads, threads)) as pool:
        yield from pool.map(whole, jobs)


def _in_batches(network: Ensemble, jobs: Sequence[Job], settings: Settings, batch_size: int) -> Iterator[Done]:
    """The next batch is read, and the last one written, while the device computes."""
    groups = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    with _pool(torch.get_num_threads()) as pool:

        def begin(group: Sequence[Job]) -> list[Future[_Read | Done]]:
            return [pool.submit(_read, network, job) for job in group]

        def end(read: _Read | Done, probability: np.ndarray | None) -> Done:
            if isinstance(read, Done):
                return read
            assert probability is not None
            return _finish(read, probability, settings)

        coming, finishing = begin(groups[0]), list[Future[Done]]()
        for following in [*groups[1:], []]:
            batch, coming = [one.result() for one in coming], begin(following)
            readable = [one for one in batch if isinstance(one, _Read)]
            names = [str(one.job.image.path) for one in readable]
            maps = iter(_probabilities(network, [one.resized for one in readable], names) if readable else ())
            yield from (one.result() for one in finishing)
            finishing = [pool.submit(end, one, next(maps) if isinstance(one, _Read) else None) for one in batch]
        yield from (one.result() for one in finishing)


@contextmanager
def _threads_kept() -> Iterator[int]:
    """Gives torch's number of threads, and puts it back: a thread that sets its own changes that of the process too."""
    threads = torch.get_num_threads()
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Reading, torch and OpenCV let other threads run meanwhile. On an error, what has not begun is dropped."""
    pool = ThreadPoolExecutor(threads, "camox-predict")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read(network: Ensemble, job: Job) -> _Read | Done:
    try:
        image = read_image(job.image.path)
    except DataError as error:
        return Done(job, problem=str(error))
    return _Read(job, image, network.resized(image))


def _probabilities(network: Ensemble, resized: Sequence[dict[int, np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """Maps of images that are there at all sizes, float32 [B, S, S]."""
    images = {size: torch.from_numpy(np.stack([one[size] for one in resized])) for size in network.sizes}
    maps = network.probabilities({size: image.to(network.device) for size, image in images.items()}).cpu().numpy()
    require_finite(maps, names)
    return maps


def _finish(read: _Read, probability: np.ndarray, settings: Settings) -> Done:
    probability = _at_size(probability, read.image, settings.refinement)
    write_results(read.job, read.image, probability, settings.threshold, settings.bits)
    found = find_objects(probability, settings.threshold) if settings.objects else None
    return Done(read.job, tuple(read.job.outputs), found)


def _at_size(probability: np.ndarray, image: np.ndarray, refinement: Refinement | None) -> np.ndarray:
    # The same rule as measures.evaluator.resize_probability, whose import costs a second (a test compares them).
    resized = cv2.resize(probability, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    resized = np.clip(resized, 0, 1)
    return refine(resized, image) if refinement else resized
