"""The model card: what a stranger has to know of a model, filled from its run."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from camox.checkpoints.manifest import is_checkpoint, read_manifest
from camox.data.hub_access import HubAddress
from camox.inference.loading.facts import Facts
from camox.inference.loading.loaded_model import LoadedModel
from camox.measures.rendering import NAMES
from camox.models.pretrained import CARD, card_data, how_to_load

_NAMES = {**NAMES, "s_measure": "S-measure"}
_TASK = "image-segmentation"

Scores = Mapping[str, Mapping[str, float]]
"""Name of a dataset → measure → score."""


def write_card(loaded: LoadedModel, facts: Facts, folder: Path, license: str | None, repo_id: str | None) -> None:
    """Write README.md, with the hub's metadata at its head.

    Scores are those of the run's test evaluation where that was of this checkpoint and these weights, else those of
    the validation that selected it; the card says which.
    """
    name = repo_id or (loaded.experiment.experiment.name if loaded.experiment else facts.checkpoint)
    evaluation = _test_evaluation(loaded)
    scores = _test_scores(evaluation) if evaluation else _validation_scores(loaded)
    protocol = evaluation["protocol"] if evaluation else {"name": "camox"}
    data = card_data(
        name,
        license=license or "unknown",
        datasets=_hub_datasets(loaded) or None,
        metrics=sorted({measure for one in scores.values() for measure in one}) or None,
        eval_results=_results(scores, "test" if evaluation else "validation", protocol, facts) or None,
    )
    sections = [
        f"# {name}",
        _what(loaded),
        f"## How to use\n\n{how_to_load(repo_id or 'FOLDER')}\n"
        f"```shell\ncamox predict {repo_id or 'FOLDER'} photos --out masks\n```\n\n{_threshold(facts)}",
        f"## Training data\n\n{_training_data(loaded)}",
        f"## Measures\n\n{_measures(scores, evaluation, facts)}",
        f"## Limits\n\n{_limits(loaded, facts)}",
        f"## Licence\n\n{_license(license)}",
        f"## Environment\n\n{_environment(loaded, facts)}",
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    (folder / CARD).write_text(str(card), encoding="utf-8")


def _what(loaded: LoadedModel) -> str:
    config = loaded.model.config
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    experts = ", ".join(config["experts"])
    routing = {
        "sparse": f"of which a learned router chooses {config['top_k']} for each image and scale",
        "dense": "all of which see every image",
        "static": f"of which the first {config['top_k']} see every image",
        "random": f"of which {config['top_k']} are chosen at random",
    }[config["mode"]]
    scales = ", ".join(str(scale) for scale in config["scales"])
    mixture = f", with a mixture of experts ({experts}), {routing}, at strides {scales}" if scales else ""
    return (
        "A camox model that finds camouflaged objects: for an image it gives a map of what is hidden in it. "
        f"{parameters:.1f} million parameters: a {config['backbone']} backbone{mixture}."
    )


def _threshold(facts: Facts) -> str:
    return (
        f"Trained on images of {facts.image_size}×{facts.image_size} pixels; `camox predict` resizes to that. A pixel "
        f"is called object from a probability of {facts.threshold:.4f} on ({facts.threshold_reason})."
    )


def _training_data(loaded: LoadedModel) -> str:
    if loaded.experiment is None:
        return "Not known: the checkpoint lies in no run's folder."
    data = loaded.experiment.publishable().data
    lines = [f"* {_source(source.plain())}" for source in data.train]
    held_out = f"{data.val_fraction:.0%} of these images were held out for validation." if not data.val else ""
    return "\n".join([*lines, "", held_out]).strip()


def _source(source: Mapping[str, Any]) -> str:
    if "synthetic" in source:
        return f"synthetic {source['synthetic']}: {source['count']} images, seed {source['seed']}, made by camox"
    if "hub" in source:
        return f"{source['hub']}, split {source.get('split') or 'train'}"
    return f"{source.get('path') or source.get('images')}, layout {source['layout']}"


def _hub_datasets(loaded: LoadedModel) -> list[str]:
    if loaded.experiment is None:
        return []
    sources = [source.plain() for source in loaded.experiment.data.train]
    ids = [source["hub"] for source in sources if "hub" in source]
    return sorted({one for one in ids if HubAddress(one, "train").folder is None})


def _test_evaluation(loaded: LoadedModel) -> dict[str, Any] | None:
    """measures.json of the run, if it is of this checkpoint alone, as it predicts without options."""
    file = loaded.run / "evaluation" / "measures.json" if loaded.run else None
    if file is None or not file.is_file():
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        protocol, datasets = document["protocol"], document["datasets"]
        same = Path(protocol["checkpoint"]).name == loaded.checkpoint.name and loaded.scored_alone(protocol)
        own = {name for name, described in protocol["data"].items() if described["used_for"] == "test"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not of the form that camox writes: then the card has the validation's
    return document | {"datasets": {name: datasets[name] for name in own & set(datasets)}} if same and own else None


def _test_scores(evaluation: Mapping[str, Any]) -> Scores:
    return {name: _known(scores) for name, scores in evaluation["datasets"].items()}


def _validation_scores(loaded: LoadedModel) -> Scores:
    if not is_checkpoint(loaded.checkpoint):
        return {}
    prefix, measures = {"raw": "val/", "ema": "val_ema/"}[loaded.weights], read_manifest(loaded.checkpoint).measures
    found = {name.removeprefix(prefix): value for name, value in measures.items() if name.startswith(prefix)}
    known = _known(found)
    return {"validation": known} if known else {}


def _known(scores: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(scores[name]) for name in _NAMES if isinstance(scores.get(name), int | float)}
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _results(scores: Scores, split: str, protocol: Mapping[str, Any], facts: Facts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=dataset,
            dataset_split=split,
            metric_type=measure,
            metric_name=_NAMES[measure],
            metric_value=round(value, 4),
            metric_args={"protocol": protocol["name"], "selected_on": facts.selected_on},
        )
        for dataset, measured in scores.items()
        for measure, value in measured.items()
    ]


def _measures(scores: Scores, evaluation: Mapping[str, Any] | None, facts: Facts) -> str:
    if not scores:
        return "None are known of this checkpoint."
    named = [name for name in _NAMES if any(name in measured for measured in scores.values())]
    rows = [[dataset, *(_cell(measured, name) for name in named)] for dataset, measured in scores.items()]
    table = "\n".join(_table(["data", *(_NAMES[name] for name in named)], rows))
    selected = f"The checkpoint was selected on: {facts.selected_on} (by {facts.monitor})."
    if evaluation is None:
        return (
            f"{table}\n\nMeasured in training, on the images that the checkpoint was selected on: scores on others "
            f"will be lower. {selected}"
        )
    protocol = evaluation["protocol"]
    return (
        f"{table}\n\nProtocol: `{protocol['name']}`; images at {protocol['image_size']} pixels; resizing: "
        f"{protocol['resize']}; precision {protocol['precision']}. {selected}"
    )


def _cell(measured: Mapping[str, float], name: str) -> str:
    return f"{measured[name]:.4f}" if name in measured else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _limits(loaded: LoadedModel, facts: Facts) -> str:
    limits = [
        "* It marks what looks hidden, and does not tell what it is, nor one object from another.",
        f"* Scores are of images at {facts.image_size} pixels and of the data above; of other cameras, habitats or "
        "animals nothing is known.",
        "* Of an image without a hidden object it may still mark something.",
    ]
    sources = loaded.experiment.data.train if loaded.experiment else ()
    if sources and all("synthetic" in source.plain() for source in sources):
        limits.insert(0, "* It has seen synthetic images only, and is not meant for photographs.")
    return "\n".join(limits)


def _license(license: str | None) -> str:
    if license is None:
        return (
            "Not stated by who published this model. The weights may be bound by the licences of the training images "
            "and of the pretrained backbone: ask before you use them for anything."
        )
    return f"{license}, stated by who published this model. Training images have licences of their own."


def _environment(loaded: LoadedModel, facts: Facts) -> str:
    trained = _trained_with(loaded)
    return "\n".join(
        [
            f"* checkpoint {facts.checkpoint}: step {facts.step}, epoch {facts.epoch}, {facts.weights_reason}",
            f"* exported by camox {facts.camox}, torch {version('torch')}, timm {version('timm')}",
            *([f"* trained with {trained}"] if trained else []),
        ]
    )


def _trained_with(loaded: LoadedModel) -> str:
    file = loaded.run / "environment.json" if loaded.run else None
    if file is None or not file.is_file():
        return ""
    try:
        environment = json.loads(file.read_text(encoding="utf-8"))
        packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
        return (
            f"Python {environment['python']}, {packages}; on {environment['processes']} × {environment['devices'][0]}"
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""
