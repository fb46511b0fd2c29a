"""Two folders become scores: anyone's prediction maps against the ground truths of the same names."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from camox.errors import DataError
from camox.measures.breakdown import DatasetScores, set_apart, summarise
from camox.measures.evaluator import (
    Evaluator,
    Record,
    measure_image,
    resize_probability,
    uint8_probability,
)
from camox.measures.protocol import Protocol, get_protocol

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class FolderScores(DatasetScores):
    """What a folder of maps scored, and what a user should know.

    notices: one sentence each, such as predictions without a ground truth; to be shown, not to be acted on.
    """

    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scored:
    record: Record
    object_share: float
    resized: bool
    only_labels: bool


def score_folder(
    prediction_folder: str | Path,
    truth_folder: str | Path,
    protocol: str | Protocol = "camox",
    workers: int = 1,
    group_of: Callable[[str], str] = lambda name: "",
    stands_apart: Callable[[str], bool] = lambda name: False,
) -> FolderScores:
    """Score every ground truth of a folder against the prediction of the same stem.

    Maps are greyscale images, 0 … 255. `workers` processes share the images; the numbers do not depend on
    how many. `group_of` gives a name's group, "" for none; images that `stands_apart` tells by their names take part in
    no mean, whatever the protocol. A map of another size than its truth is resized
    bilinearly, and the number of such maps is a notice; the protocol "pysod" refuses them, as the reference
    does. Raises DataError for a missing or empty folder, two files with one stem, a truth without a
    prediction, a file that cannot be read, and sizes that the protocol refuses.
    """
    protocol = get_protocol(protocol)
    predictions, truths = _images_by_stem(Path(prediction_folder)), _images_by_stem(Path(truth_folder))
    missing = sorted(truths.keys() - predictions.keys())
    if missing:
        raise DataError(
            f"{prediction_folder}: {len(missing)} of {len(truths)} ground truths have no prediction: "
            f"{_shown(missing)}; a prediction has the file name of its truth, whatever the extension"
        )
    names = sorted(truths)
    if protocol.formulas == "pysodmetrics":
        _refuse_other_sizes([(predictions[name], truths[name]) for name in names])

    jobs = [(i, name, group_of(name), predictions[name], truths[name]) for i, name in enumerate(names)]
    scored = _score_all(jobs, protocol, workers)
    evaluator = Evaluator(protocol)
    evaluator.extend(one.record for one in scored)
    apart = [name for name in names if stands_apart(name)]
    evaluator = set_apart(evaluator, apart)
    extra = sorted(predictions.keys() - truths.keys())
    resized = [one.record.name for one in scored if one.resized]
    dark = [one.record.name for one in scored if one.only_labels]
    notices = [
        f"{len(affected)} {sentence}: {_shown(affected)}"
        for affected, sentence in (
            (extra, "predictions have no ground truth and were left out"),
            (apart, "images are non-camouflaged by their names and in no mean"),
            (resized, "predictions were resized to the size of their ground truth"),
            (
                dark,
                f"ground truths have levels above 0 but none above {protocol.truth_threshold}; "
                + ("all but 0 was read as object" if protocol.label_masks else "they count as empty"),
            ),
        )
        if affected
    ]
    shares = {one.record.index: one.object_share for one in scored}
    return FolderScores(**vars(summarise(evaluator, shares)), notices=tuple(notices))


def read_grey(path: Path, as_labels: bool = False) -> np.ndarray:
    """Read an image as uint8 [H, W]; colours become luminance, 16 bits are scaled, alpha is left out.

    With `as_labels` no label can vanish: colours become their largest channel, and 16 bits are scaled only
    where they are used. Raises DataError, naming the file, for one that is missing, damaged or truncated.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                levels = np.asarray(image)
                if not as_labels or levels.max(initial=0) > 255:
                    levels = (levels / 257).round().clip(0, 255)
                return levels.astype(np.uint8)
            if as_labels and image.mode not in ("1", "L", "LA"):
                return np.asarray(image.convert("RGB")).max(axis=2)
            return np.asarray(image.convert("L"))
    # Pillow's decoders raise SyntaxError and ValueError too for damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not readable as an image ({error}); write it again or remove it") from error


def _images_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: correct the path; relative paths start from {Path.cwd()}")
    by_stem: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in by_stem:
            raise DataError(f"{folder}: {by_stem[path.stem].name} and {path.name} share a stem: keep one of them")
        by_stem[path.stem] = path
    if not by_stem:
        raise DataError(
            f"{folder}: has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): give the folder that holds them"
        )
    return by_stem


def _refuse_other_sizes(pairs: Iterable[tuple[Path, Path]]) -> None:
    other = [prediction.name for prediction, truth in pairs if _size(prediction) != _size(truth)]
    if other:
        raise DataError(
            f"{len(other)} predictions have another size than their ground truth: {_shown(other)}; "
            'protocol "pysod" needs equal sizes: resize the maps, or score with protocol "camox"'
        )


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:  # reads the header alone
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not readable as an image ({error}); write it again or remove it") from error


_Job = tuple[int, str, str, Path, Path]


def _score_all(jobs: list[_Job], protocol: Protocol, workers: int) -> list[_Scored]:
    score = partial(_score_pair, protocol=protocol)
    workers = min(workers, len(jobs))
    if workers <= 1:
        return [score(job) for job in jobs]
    # Spawned, not forked: the caller may hold threads of torch or OpenCV, with which a fork can hang.
    context, chunk = get_context("spawn"), max(1, min(32, len(jobs) // (4 * workers)))
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        return list(pool.map(score, jobs, chunksize=chunk))


def _score_pair(job: _Job, protocol: Protocol) -> _Scored:
    index, name, group, prediction_path, truth_path = job
    levels = read_grey(truth_path, as_labels=protocol.label_masks)
    truth = protocol.binarise_truth(levels)
    prediction = uint8_probability(read_grey(prediction_path))
    probability = resize_probability(prediction, (truth.shape[0], truth.shape[1]))
    return _Scored(
        Record(index, name, group, measure_image(probability, truth, protocol)),
        object_share=float(truth.mean()),
        resized=probability.shape != prediction.shape,
        only_labels=bool(0 < levels.max() <= protocol.truth_threshold),
    )


def _shown(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
