"""What a run's model sees in its images: predictions, uncertainty, scores and chosen experts, worst image first."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from camox.data.loading import EvalBatch, EvalSet, eval_loader
from camox.errors import DataError
from camox.inference.loaded_model import LoadedModel, load_model
from camox.inference.pictures import grey, heat
from camox.inference.predictor import infer, require_finite
from camox.inference.scored_data import ScoredData, default_data
from camox.measures.routing import choice_shares
from camox.models.camoxpert import CamoXpertOutput
from camox.report.run import Run

MOST_IMAGES = 200
"""Images that the model is run on."""
WORST, MIDDLE, BEST, EMPTY = 12, 4, 4, 4
"""Images shown: with the least IoU, around the median, with the greatest; and of those without an object, the ones in
which most is called object."""
SCORES = ("iou", "s_measure", "mae")
_SIDE = 176
_PIXELS_AT_ONCE = 1 << 19
"""Of the images that the model sees together: 32 of 128², 3 of 416²."""
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
    """Stride → share of the image that each expert has, float [E]."""


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
    ranked: Sequence[Key] = field(default_factory=tuple)
    """Images with an object, worst IoU first: all of the data where the run's evaluation scored them, else those seen."""
    experts: Sequence[str] = ()
    is_choice: bool = False
    """Whether a router selects some of the experts, or weighs all of them."""


def examine(run: Run, most: int = MOST_IMAGES) -> Examined:
    """Run the chosen checkpoint on the run's test images, else its held-out ones: all, or `most` of many.

    Raises:
        CheckpointError, ExperimentError: the checkpoint cannot be loaded, or gives NaN.
        DataError: the data are gone.
    """
    loaded = load_model(run.path)
    data = default_data(loaded.experiment)
    known = _known_scores(run, loaded)
    ranked = _ranked(known)
    wanted = {key for part in _picks(ranked) for key in part}
    images = [seen for one, most_of in zip(data, _quotas(data, most), strict=True) for seen in _see(loaded, one, most_of, wanted, known)]
    return Examined(
        images=images,
        total=sum(len(one.source) for one in data),
        weights=loaded.reason,
        checkpoint=loaded.checkpoint.name,
        ranked=ranked or _ranked({seen.key: seen.scores for seen in images}),
        experts=loaded.model.expert_names,
        is_choice=loaded.model.mode in ("sparse", "dense", "random") and len(loaded.model.expert_names) > 1,
    )


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
    ranked = [key for key in examined[0].ranked if key in common] if len(examined) == 1 else _ranked(means)
    worst, middle, best = _picks(ranked)
    empty = sorted(
        (key for key, of in means.items() if of.get("false_positive_area", 0) > 0),
        key=lambda key: -means[key]["false_positive_area"],
    )[:EMPTY]
    shown = {"Worst": worst, "In the middle": middle, "Best": best, "No object, but one was seen": empty}
    return {heading: keys for heading, keys in shown.items() if keys}


def experts_of(seen: Seen, experts: Sequence[str], most: int = 2) -> list[tuple[int, str]]:
    """Stride and the experts that had most of the image, for people."""
    told = []
    for stride, shares in seen.shares.items():
        order = np.argsort(-shares, kind="stable")[:most]
        told.append((stride, " + ".join(f"{experts[e]} {shares[e]:.0%}" for e in order if shares[e] > 0.005)))
    return told


def shares_by_group(examined: Examined) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """Stride, groups, and the mean share of every expert in the images of every group, float [E, groups]."""
    groups = sorted({seen.group for seen in examined.images})
    for stride in examined.images[0].shares if examined.images else ():
        means = [
            np.mean([seen.shares[stride] for seen in examined.images if seen.group == group], axis=0)
            for group in groups
        ]
        yield stride, groups, np.stack(means, axis=1)


def embedded(picture: np.ndarray) -> str:
    """A picture uint8 [h, w, 3] RGB as the source of an <img>."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _see(
    loaded: LoadedModel, data: ScoredData, most: int, wanted: set[Key], known: Mapping[Key, Mapping[str, float]]
) -> Iterator[Seen]:
    names = data.source.names
    spread = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int).tolist()
    asked = [index for index, name in enumerate(names) if Key(data.title, name) in wanted]
    indices = sorted({*spread, *asked})
    dataset = EvalSet(data.source, loaded.image_size)
    together = max(1, _PIXELS_AT_ONCE // loaded.image_size**2)
    for batch in eval_loader(dataset, indices, together, workers=0, pin_memory=False):
        if batch.problems:
            raise DataError("; ".join(batch.problems[:3]))
        output, maps = infer(loaded.model, batch.images, loaded.device)
        probabilities = maps.cpu().numpy()
        require_finite(probabilities, batch.names)
        yield from _of_batch(loaded, data.title, batch, output, probabilities, known)


def _of_batch(
    loaded: LoadedModel,
    title: str,
    batch: EvalBatch,
    output: CamoXpertOutput,
    probabilities: np.ndarray,
    known: Mapping[Key, Mapping[str, float]],
) -> Iterator[Seen]:
    uncertainties = output.uncertainty[:, 0].float().cpu().numpy()
    shares = _shares(loaded, output, len(batch.names))
    for number, name in enumerate(batch.names):
        key, truth = Key(title, name), batch.truths[number]
        image = np.ascontiguousarray(batch.images[number].numpy().transpose(1, 2, 0))
        pictures = {
            "image": image, "truth": grey(truth.astype(np.float32)), "prediction": grey(probabilities[number]),
            "boundary uncertainty": heat(uncertainties[number]),
        }  # fmt: skip
        yield Seen(
            key=key,
            group=batch.groups[number],
            scores=known.get(key) or _measured(probabilities[number], truth),
            pictures={what: _small(picture, truth.shape) for what, picture in pictures.items()},
            shares={stride: of[number] for stride, of in shares.items()},
        )


def _shares(loaded: LoadedModel, output: CamoXpertOutput, images: int) -> dict[int, np.ndarray]:
    """Stride → share of each expert in each image, [B, E]: of the choices, or of the weight where all are taken."""
    shares = {}
    for stride, routing in output.routing.items():
        experts = routing.probabilities.shape[-1]
        if routing.selected.shape[-1] < experts:
            shares[stride] = choice_shares(routing.selected.unflatten(0, (images, -1)).cpu().numpy(), experts)
            continue
        weights = torch.zeros_like(routing.probabilities).scatter(1, routing.selected, routing.weights)
        shares[stride] = weights.unflatten(0, (images, -1)).mean(dim=1).cpu().numpy()
    return shares


def _measured(probability: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from camox.measures.evaluator import measure_image, resize_probability  # costs a second, and is seldom needed

    return measure_image(resize_probability(probability, truth.shape), truth, measures=SCORES).scalars


def _small(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The picture in the proportions of `shape`, at most 176 pixels a side."""
    scale = min(1.0, _SIDE / max(shape[:2]))
    height, width = (max(1, round(side * scale)) for side in shape[:2])
    shrinks = height <= picture.shape[0] and width <= picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _quotas(data: Sequence[ScoredData], most: int) -> list[int]:
    """How many images of each dataset are seen, by their sizes."""
    total = max(1, sum(len(one.source) for one in data))
    return [max(1, round(min(most, total) * len(one.source) / total)) for one in data]


def _known_scores(run: Run, loaded: LoadedModel) -> dict[Key, dict[str, float]]:
    """What the run's evaluation found for each image, where it was of these weights; otherwise nothing."""
    protocol: Any = run.evaluation.get("protocol")
    of = (loaded.step, loaded.epoch, loaded.weights, loaded.image_size)
    if not isinstance(protocol, dict) or of != tuple(
        protocol.get(name) for name in ("step", "epoch", "weights", "image_size")
    ):
        return {}
    known = {}
    for row in run.per_image:
        scores = {name: _number(row.get(name)) for name in (*SCORES, "false_positive_area")}
        known[Key(str(row.get("dataset")), row["name"])] = {
            name: score for name, score in scores.items() if not math.isnan(score)
        }
    return known


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _ranked(scores: Mapping[Key, Mapping[str, float]]) -> list[Key]:
    return sorted((key for key, of in scores.items() if "iou" in of), key=lambda key: (scores[key]["iou"], key))


def _picks(ranked: Sequence[Key]) -> tuple[list[Key], list[Key], list[Key]]:
    """The worst, those around the median, the best; none is in two of them."""
    worst, rest = list(ranked[:WORST]), list(ranked[WORST:])
    best = rest[max(0, len(rest) - BEST) :]
    between = rest[: len(rest) - len(best)]
    start = min(max(0, len(ranked) // 2 - WORST - MIDDLE // 2), max(0, len(between) - MIDDLE))
    return worst, between[start : start + MIDDLE], best
