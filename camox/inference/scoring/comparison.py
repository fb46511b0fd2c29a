"""Several checkpoints on the same images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from camox.errors import DataError
from camox.inference.ensemble import Ensemble
from camox.inference.loading.loaded_model import LoadedModel, Weights
from camox.inference.loading.selection import identity
from camox.inference.scoring.evaluation import Scoring, describe, evaluate_corrupted, introduce, require_folder
from camox.inference.scoring.results import report_comparison, save_scores
from camox.inference.scoring.scored_data import ScoredData, default_data, named_data
from camox.measures.breakdown import DatasetScores
from camox.measures.protocol import Protocol, get_protocol
from camox.tracking.console import Console


def evaluate_several(
    paths: Sequence[str | Path],
    data: Mapping[str, str | Path] | None,
    out: str | Path | None,
    weights: Weights = "auto",
    batch_size: int = 8,
    workers: int = 2,
    protocol: str | Protocol = "camox",
    image_size: int | None = None,
    device: str | torch.device | None = None,
    console: Console | None = None,
    non_camouflaged: bool = False,
    corruptions: bool = False,
    tta: Sequence[str] = (),
) -> dict[str, Any]:
    """Score checkpoints on the same data and compare them: each one's files in a folder of its own in `out`, and beside
    them comparison.json, .md, .tex and .png, with paired intervals of what each differs from the first.

    Arguments as those of `inference.evaluation.evaluate`; without `data` the checkpoints' own, which then must be the
    same. Gives what comparison.json holds.

    Raises:
        CheckpointError, ExperimentError, DataError: as there; also where `out` is missing, and where the data differ.
    """
    console = console or Console()
    if out is None:
        raise DataError("several checkpoints have no run's folder in common that would take the scores: give --out DIR")
    require_folder(Path(out))
    scoring = Scoring(get_protocol(protocol), batch_size, workers, console)
    networks = [Ensemble.load(path, (), tta, weights, image_size, device) for path in paths]
    models = [network.first for network in networks]
    labels = label_models(models)
    scored = [named_data(data, [model], non_camouflaged) if data else default_data([model]) for model in models]
    _require_same_data(labels, scored)
    compared: dict[str, dict[str, DatasetScores]] = {one.name: {} for one in scored[0]}
    notes = []
    for path, label, network, of_model in zip(paths, labels, networks, scored, strict=True):
        introduce(network, of_model, console)
        scores = {one.title: scoring.break_down(network, one) for one in of_model}
        described = describe(scoring.protocol, path, network, of_model)
        save_scores(scores, described, Path(out) / label)
        if corruptions:
            evaluate_corrupted(network, of_model, scoring, described, Path(out) / label, console)
        for one in of_model:
            # The part that images had in making this model stands behind its name, in every table.
            compared[one.name][label + one.title.removeprefix(one.name)] = scores[one.title]
        notes.append(_note(label, described))
    shared = {
        **scoring.protocol.as_dict(),
        "label_masks": True,
        "precision": "fp32",
        "tta": list(networks[0].augmentations),
    }
    return report_comparison(compared, shared, notes, out, console)


def label_models(models: Sequence[LoadedModel]) -> list[str]:
    """What checkpoints are called in tables and as folders: by their runs, where that tells them apart, else by more of
    their paths."""
    runs = [model.run.resolve().name if model.run else model.checkpoint.resolve().name for model in models]
    if len(set(runs)) == len(runs):
        return runs
    named = [f"{run}-{model.checkpoint.name}" for run, model in zip(runs, models, strict=True)]
    if len(set(named)) == len(named):
        return named
    return [f"{name}-{number}" for number, name in enumerate(named, start=1)]


def _require_same_data(labels: Sequence[str], scored: Sequence[Sequence[ScoredData]]) -> None:
    first = _images(scored[0])
    for label, of_model in zip(labels[1:], scored[1:], strict=True):
        if _images(of_model) != first:
            raise DataError(
                f"{labels[0]} and {label} have other data of their own to be scored on: give --data NAME=PATH for both"
            )


def _images(scored: Sequence[ScoredData]) -> list[tuple[Any, ...]]:
    return [
        (one.name, tuple(one.source.names), frozenset().union(*(identity(origin, "test") for origin in one.origin)))
        for one in scored
    ]


def _note(label: str, described: Mapping[str, Any]) -> str:
    """Which checkpoint a model is, and what it was selected on."""
    selected = described["selected_on"]["data"]
    return f"{label}: {described['checkpoint']}, {described['weights']} weights, selected on {selected}."
