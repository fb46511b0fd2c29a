"""Whether a trained router's choices matter: what they tell of the image, and what other choices would cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camox.data.loading import EvalBatch, EvalSet, eval_loader
from camox.data.sources import open_sources
from camox.errors import DataError
from camox.experiment import Experiment
from camox.inference.forward import require_finite
from camox.inference.loading.loaded_model import LoadedModel, load_model
from camox.measures.evaluator import Evaluator
from camox.measures.routing import RoutedImages, kind_information, routing_measures
from camox.models.camoxpert import CamoXpert
from camox.models.router import Routing

MEASURES = ("iou", "s_measure", "mae")

ImageRouting = dict[int, Routing]
"""Stride → routing of n images, its fields `[n, r, …]`: r is 1, or the regions of an image. On the CPU."""


def study_run(run: str | Path, workers: int = 0, device: str | torch.device | None = None) -> dict[str, Any]:
    """Score the better weights of a run's best checkpoint on its test data, and question its routing.

    Args:
        run: folder of a finished run whose experiment names test data of two kinds at least.
        workers: processes that load images.
        device: where the model runs; by default a GPU if there is one.

    Returns:
        `weights`, which ones and why; `parameters`, their number; `test`, the evaluator's summary. For a model whose
        router selects some of the experts also `routing`, of `routing_by_kind`, and for one with any router
        `counterfactual`, of `counterfactuals`; None elsewhere.

    Raises:
        CheckpointError, ExperimentError: as `load_model`.
        DataError: the test data are missing, cannot be read, or are all of one kind.
    """
    loaded = load_model(run, device=device)
    experiment = loaded.experiment
    if experiment is None or not experiment.data.test:
        raise DataError(f"{run}: its experiment names no test data: add data.test")
    batches = _read(experiment, loaded, workers)
    kinds = [group for batch in batches for group in batch.groups]
    if len(set(kinds)) < 2:
        raise DataError(f"{run}: its test data are all of one kind: routing by kind needs two at least")
    evaluator, routing = predict_routed(loaded.model, batches, loaded.device)
    chooses = any(of_scale.selected.shape[-1] < of_scale.probabilities.shape[-1] for of_scale in routing.values())
    selects, learns = loaded.model.mode == "sparse" and chooses, loaded.model.learns_routing
    untrained = predict_routed(_untrained(experiment).to(loaded.device), batches, loaded.device)[1] if selects else {}
    return {
        "weights": loaded.reason,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "test": evaluator.summary(),
        "routing": routing_by_kind(routing, untrained, kinds, loaded.model.expert_names) if selects else None,
        "counterfactual": counterfactuals(loaded, batches, evaluator, routing, kinds) if learns else None,
    }


def routing_by_kind(
    trained: ImageRouting, untrained: ImageRouting, kinds: Sequence[str], experts: Sequence[str]
) -> dict[str, Any]:
    """What the choices at each scale tell of an image's kind, before and after training.

    Each of the choices of an image counts alike. All information is in nat. The measures are those of
    `routing_measures` and `kind_information`; there is a choice only where not every decision is for all experts.

    Returns:
        `experts`, their names. `scales`, by stride: `usage`, each expert's share of the choices; `usage_by_kind`, the
        same for each kind; `dead`, experts with less than 5 % of an equal share; `effective_experts`, `exp(H(f))`;
        `pair_share`, of the most frequent pair, None with one choice per image; `information`, I(kind; expert), and
        `chance`, what a permutation of the kinds shows of it; both for the `untrained` network of the same seed; and
        `information_gained`, the excess over chance of the trained minus that of the untrained.
    """
    scales = {}
    no_costs = dict.fromkeys(experts, 1.0)  # what experts cost is not asked here
    for stride, routing in trained.items():
        images = _routed_images(routing, kinds)
        measures, shares = routing_measures(images.sums(), no_costs), images.choice_shares()
        information, chance = kind_information(shares, kinds)
        before, chance_before = kind_information(_routed_images(untrained[stride], kinds).choice_shares(), kinds)
        scales[str(stride)] = {
            "usage": [measures[f"usage/{expert}"] for expert in experts],
            "usage_by_kind": {kind: shares[_is(kinds, kind)].mean(axis=0).tolist() for kind in sorted(set(kinds))},
            "dead": int(measures["dead"]),
            "effective_experts": float(np.exp(measures["entropy"])),
            "pair_share": measures.get("pair_share"),
            "information": information,
            "chance": chance,
            "untrained": {"information": before, "chance": chance_before},
            "information_gained": (information - chance) - (before - chance_before),
        }
    return {"experts": list(experts), "scales": scales}


def counterfactuals(
    loaded: LoadedModel,
    batches: Sequence[EvalBatch],
    own: Evaluator,
    routing: ImageRouting,
    kinds: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """What it costs in IoU to route each image, at all scales at once, otherwise than its routers decide.

    `other_kind`: selection and weights of an image of another kind. `same_kind`, the control: of another image of its
    kind. `random`: experts drawn by chance, weighted as its own were. Each has `iou`, `cost` (own minus counterfactual
    IoU, mean over the images with an object), its paired `standard_error`, `images`, and `cost_by_kind`. `kinds` has
    two at least of which none makes up more than half of the images.
    """
    generator = np.random.default_rng(seed)
    alternatives = {
        "other_kind": exchanged(routing, donors_of_other_kinds(kinds, generator)),
        "same_kind": exchanged(routing, donors_of_same_kind(kinds, generator)),
        "random": randomised(routing, seed),
    }
    return {
        name: _cost(own, predict_routed(loaded.model, batches, loaded.device, alternative)[0])
        for name, alternative in alternatives.items()
    }


def donors_of_other_kinds(kinds: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """A random permutation of the images, int64 [n], that gives each one of another kind.

    Raises:
        DataError: more than half of the images are of one kind, so that there is none.
    """
    labels = np.unique(np.asarray(kinds), return_inverse=True)[1]
    if 2 * np.bincount(labels).max() > len(labels):
        raise DataError("more than half of the images are of one kind: not each can get one of another kind")
    donors = generator.permutation(len(labels))
    for image in np.flatnonzero(labels == labels[donors]):
        if labels[image] == labels[donors[image]]:  # not yet mended by an earlier exchange
            # Neither end of the exchange may be of this kind. There is such a place: the kind is at most half of all.
            places = np.flatnonzero((labels != labels[image]) & (labels[donors] != labels[image]))
            place = generator.choice(places)
            donors[[image, place]] = donors[[place, image]]
    return donors


def donors_of_same_kind(kinds: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """A random permutation of the images, int64 [n], that gives each another one of its kind, if there is another."""
    donors = np.arange(len(kinds))
    for kind in sorted(set(kinds)):
        circle = generator.permutation(np.flatnonzero(_is(kinds, kind)))
        donors[circle] = np.roll(circle, 1)
    return donors


def exchanged(routing: ImageRouting, donors: np.ndarray) -> ImageRouting:
    """The routing with that of image `donors[i]` in the place of image i's."""
    index = torch.from_numpy(donors)
    return {stride: Routing(*(field[index] for field in of_scale)) for stride, of_scale in routing.items()}


def randomised(routing: ImageRouting, seed: int) -> ImageRouting:
    """The routing with experts drawn by chance, each subset alike, under the weights that were there."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for stride, of_scale in routing.items():
        order = torch.rand(of_scale.probabilities.shape, generator=generator).argsort(dim=-1)
        drawn[stride] = of_scale._replace(selected=order[..., : of_scale.selected.shape[-1]])
    return drawn


@torch.no_grad()
def predict_routed(
    model: CamoXpert,
    batches: Sequence[EvalBatch],
    device: torch.device | str,
    routing: ImageRouting | None = None,
) -> tuple[Evaluator, ImageRouting]:
    """Score `model`, in eval mode on `device`, on all batches, and tell how each image was routed.

    `routing`, if given, holds for the images in the order of the batches and takes the place of the routers' own.
    """
    model.eval()
    evaluator = Evaluator("camox", MEASURES)
    routed: list[Mapping[int, Routing]] = []
    done = 0
    for batch in batches:
        size = len(batch.names)
        given = None if routing is None else _rows(routing, slice(done, done + size), device)
        output = model(batch.images.to(device).float().div_(255), given)
        probabilities = output.logits[:, 0].float().sigmoid().cpu().numpy()
        require_finite(probabilities, batch.names)
        images = zip(batch.indices.tolist(), batch.names, batch.groups, probabilities, batch.truths, strict=True)
        for image in images:
            evaluator.add(*image)
        routed.append({stride: _of_images(of_scale, size) for stride, of_scale in output.routing.items()})
        done += size
    strides = routed[0]
    return evaluator, {
        stride: Routing(*(torch.cat(parts) for parts in zip(*(batch[stride] for batch in routed), strict=True)))
        for stride in strides
    }


def _read(experiment: Experiment, loaded: LoadedModel, workers: int) -> list[EvalBatch]:
    """The test data in memory: they are seen several times."""
    source = open_sources([source.plain() for source in experiment.data.test], split="test")
    dataset = EvalSet(source, loaded.image_size)
    batches = list(eval_loader(dataset, range(len(dataset)), experiment.data.batch_size, workers, pin_memory=False))
    if problems := [problem for batch in batches for problem in batch.problems]:
        raise DataError("\n".join(problems))
    return batches


def _untrained(experiment: Experiment) -> CamoXpert:
    """The network as the run's trainer built it, before its first step."""
    torch.manual_seed(experiment.experiment.seed)
    return CamoXpert.from_experiment(experiment).eval()


def _rows(routing: ImageRouting, images: slice, device: torch.device | str) -> dict[int, Routing]:
    return {
        stride: Routing(*(field[images].flatten(0, 1).to(device) for field in of_scale))
        for stride, of_scale in routing.items()
    }


def _of_images(routing: Routing, images: int) -> Routing:
    return Routing(*(field.unflatten(0, (images, -1)).cpu() for field in routing))


def _routed_images(routing: Routing, kinds: Sequence[str]) -> RoutedImages:
    probabilities, selected = routing.probabilities.numpy(), routing.selected.numpy()
    unasked = np.zeros(selected.shape[:2], bool)  # whether logits are at their limit: nothing here reads it
    return RoutedImages(np.arange(len(selected)), tuple(kinds), probabilities, selected, unasked)


def _cost(own: Evaluator, other: Evaluator) -> dict[str, Any]:
    pairs = [(ours, theirs) for ours, theirs in zip(own.results, other.results, strict=True) if ours.result.counts]
    costs = np.array([ours.result.scalars["iou"] - theirs.result.scalars["iou"] for ours, theirs in pairs])
    kinds = [ours.group for ours, _ in pairs]
    return {
        "iou": float(np.mean([theirs.result.scalars["iou"] for _, theirs in pairs])),
        "cost": float(costs.mean()),
        "standard_error": float(costs.std(ddof=1) / np.sqrt(len(costs))),
        "images": len(costs),
        "cost_by_kind": {kind: float(costs[_is(kinds, kind)].mean()) for kind in sorted(set(kinds))},
    }


def _is(kinds: Sequence[str], kind: str) -> np.ndarray:
    return np.array([other == kind for other in kinds])
