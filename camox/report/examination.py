"""A run's model on its images: predictions, uncertainty, scores and chosen experts."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from camox.data.loading import EvalBatch, EvalSet, eval_loader
from camox.errors import DataError
from camox.inference.forward import infer, require_finite
from camox.inference.loading.loaded_model import LoadedModel, load_model
from camox.inference.pictures import grey, heat
from camox.inference.scoring.scored_data import ScoredData, default_data
from camox.measures.routing import choice_shares
from camox.models.camoxpert import CamoXpertOutput
from camox.report.gallery import SCORES, Examined, Key, Seen, picks, ranked_keys
from camox.report.run import Run

MOST_IMAGES = 128
"""Images that the model is run on."""
MOST_SECONDS = 60.0
"""After which no more images of a dataset are taken: a large network on a CPU would keep the end of a run waiting."""
_SIDE = 176
_PIXELS_AT_ONCE = 1 << 19
"""Of the images that the model sees together: 32 of 128², 3 of 416²."""


def examine(run: Run, most: int = MOST_IMAGES) -> Examined:
    """Run the chosen checkpoint on the run's test images, else its held-out ones: all, or `most` of many.

    Raises:
        CheckpointError, ExperimentError: the checkpoint cannot be loaded, or gives NaN.
        DataError: the data are gone.
    """
    loaded = load_model(run.path)
    data = default_data([loaded])
    known = _known_scores(run, loaded)
    ranked = ranked_keys(known)
    wanted = {key for part in picks(ranked) for key in part}
    quotas = zip(data, _quotas(data, most), strict=True)
    until = time.monotonic() + MOST_SECONDS
    images = [seen for one, quota in quotas for seen in _see(loaded, one, quota, wanted, known, until)]
    return Examined(
        images=images,
        total=sum(len(one.source) for one in data),
        weights=loaded.reason,
        checkpoint=loaded.checkpoint.name,
        ranked=ranked or ranked_keys({seen.key: seen.scores for seen in images}),
        experts=loaded.model.expert_names,
        is_choice=loaded.model.mode in ("sparse", "dense", "random") and len(loaded.model.expert_names) > 1,
    )


def _see(
    loaded: LoadedModel,
    data: ScoredData,
    most: int,
    wanted: set[Key],
    known: Mapping[Key, Mapping[str, float]],
    until: float,
) -> Iterator[Seen]:
    """The images of one dataset, a batch of them at least, until the time of the monotonic clock is over."""
    names = data.source.names
    spread = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int).tolist()
    asked = [index for index, name in enumerate(names) if Key(data.title, name) in wanted]
    # Those that the page shows first: what follows may be cut short.
    indices = list(dict.fromkeys((*asked, *spread)))
    dataset = EvalSet(data.source, loaded.image_size)
    together = max(1, _PIXELS_AT_ONCE // loaded.image_size**2)
    for batch in eval_loader(dataset, indices, together, workers=0, pin_memory=False):
        if batch.problems:
            raise DataError("; ".join(batch.problems[:3]))
        output, maps = infer(loaded.model, batch.images, loaded.device)
        probabilities = maps.cpu().numpy()
        require_finite(probabilities, batch.names)
        yield from _of_batch(loaded, data.title, batch, output, probabilities, known)
        if time.monotonic() > until:
            return


def _of_batch(
    loaded: LoadedModel,
    title: str,
    batch: EvalBatch,
    output: CamoXpertOutput,
    probabilities: np.ndarray,
    known: Mapping[Key, Mapping[str, float]],
) -> Iterator[Seen]:
    uncertainties = output.uncertainty[:, 0].float().cpu().numpy()
    shares, weights = _of_experts(output, len(batch.names))
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
            weights={stride: of[number] for stride, of in weights.items()},
        )


def _of_experts(output: CamoXpertOutput, images: int) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Shares and weights of `Seen` by stride, for all images: [B, E]."""
    shares, weights = {}, {}
    for stride, routing in output.routing.items():
        spread = torch.zeros_like(routing.probabilities).scatter(1, routing.selected, routing.weights)
        weights[stride] = spread.unflatten(0, (images, -1)).mean(dim=1).cpu().numpy()
        experts = routing.probabilities.shape[-1]
        is_choice = routing.selected.shape[-1] < experts
        selected = routing.selected.unflatten(0, (images, -1)).cpu().numpy()
        shares[stride] = choice_shares(selected, experts) if is_choice else weights[stride]
    return shares, weights


def _measured(probability: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from camox.measures.evaluator import measure_image, resize_probability  # slow, and seldom needed

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
    """What the run's evaluation found for each image, where it was of this model alone; otherwise nothing."""
    protocol: Any = run.evaluation.get("protocol")
    if not isinstance(protocol, dict) or not loaded.scored_alone(protocol):
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
