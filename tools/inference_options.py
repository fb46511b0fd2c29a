"""Measure what each option of `camox predict` gains and costs, and write it into a JSON file and a page.

python tools/inference_options.py runs/quickstart --seed runs/quickstart_1 --dense runs/quickstart_dense \\
    --json benchmarks/results/inference_options.json
python tools/inference_options.py --from benchmarks/results/inference_options.json --markdown docs/inference.md

The three runs are `make train`'s experiment, the same with experiment.seed=1, and with model.moe.mode=dense. Gains are
on the first run's test images, which none of the three has seen, with paired intervals over the images; thresholds are
chosen on each run's held-out images. Costs are process time for each image, from resized bytes to the map at the
image's size, in interleaved rounds on one thread. Takes five minutes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from camox.data.samples import Samples
from camox.data.sources import open_source
from camox.errors import ArgumentParser, CamoxError, DataError
from camox.inference.ensemble import Average, Ensemble
from camox.inference.loading.loaded_model import LoadedModel, load_model
from camox.inference.prediction.mask_refinement import Refinement
from camox.inference.prediction.outputs import to_levels
from camox.inference.prediction.pipeline import probability_map
from camox.inference.scoring.scored_data import default_data, selection_data
from camox.measures.breakdown import DatasetScores, summarise
from camox.measures.comparison import compare, difference_cell
from camox.measures.evaluator import Evaluator
from camox.measures.protocol import Protocol, get_protocol
from camox.measures.threshold import CHOSEN_BY, best_threshold
from camox.models.camoxpert import CamoXpert
from camox.training.environment import git_commit
from machine import machine, versions
from pages import SHAPE_ERRORS, fill_block, read_results

BLOCK = "inference_options"
MEASURES = ("s_measure", "f_weighted", "mae", "iou")
LARGE = {"synthetic": "habitats", "count": 100, "seed": 1, "size": 512}
"""Images four times as wide as the network sees them."""
ROUNDS = 5
TIMED_IMAGES = 8
PLAIN = "plain"


@dataclass(frozen=True)
class Option:
    """How images are predicted; `members` are numbers of the runs, the first one 0."""

    members: tuple[int, ...] = (0,)
    tta: tuple[str, ...] = ()
    average: Average = "logit"
    image_size: int | None = None
    refinement: Refinement | None = None
    auto_threshold: bool = False
    bits: int | None = None

    def network(self, models: Sequence[LoadedModel]) -> Ensemble:
        members = [models[number] for number in self.members]
        if self.image_size is not None:
            members = [replace(member, image_size=self.image_size) for member in members]
        return Ensemble(tuple(members), self.tta, self.average)


OPTIONS = {
    PLAIN: Option(),
    "--tta hflip": Option(tta=("hflip",)),
    "--tta vflip": Option(tta=("vflip",)),
    "--tta scales": Option(tta=("scales",)),
    "--tta hflip,vflip": Option(tta=("hflip", "vflip")),
    "both flips, mean of probabilities": Option(tta=("hflip", "vflip"), average="probability"),
    "--tta hflip,scales": Option(tta=("hflip", "scales")),
    "--tta hflip,vflip,scales": Option(tta=("hflip", "vflip", "scales")),
    "the same, mean of probabilities": Option(tta=("hflip", "vflip", "scales"), average="probability"),
    "--image-size 96": Option(image_size=96),
    "--image-size 160": Option(image_size=160),
    "--image-size 192": Option(image_size=192),
    "--with another seed": Option(members=(0, 1)),
    "another seed, mean of probabilities": Option(members=(0, 1), average="probability"),
    "--with dense": Option(members=(0, 2)),
    "--with both": Option(members=(0, 1, 2)),
    "--with both --tta hflip": Option(members=(0, 1, 2), tta=("hflip",)),
    "--with both --tta hflip,vflip": Option(members=(0, 1, 2), tta=("hflip", "vflip")),
    "--threshold auto": Option(auto_threshold=True),
    "--with both --threshold auto": Option(members=(0, 1, 2), auto_threshold=True),
    "--refine guided": Option(refinement="guided"),
    "--bits 8": Option(bits=8),
}
OF_LARGE = {PLAIN: Option(), "--refine guided": Option(refinement="guided")}


class Remembering:
    """A model that computes the logits of the same bytes only once: options share most of their views."""

    def __init__(self, model: CamoXpert):
        self.model = model
        self.known: dict[tuple[tuple[int, ...], bytes], Tensor] = {}

    def __call__(self, images: Tensor) -> Any:
        key = (tuple(images.shape), images.numpy().tobytes())
        if key not in self.known:
            self.known[key] = self.model(images).logits
        return SimpleNamespace(logits=self.known[key])


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, measures or reads, writes."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run of experiments/quickstart.toml")
    parser.add_argument("--seed", type=Path, help="the same with another seed")
    parser.add_argument("--dense", type=Path, help="the same with all experts")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--from", dest="results", type=Path, metavar="FILE", help="take these results, measure nothing")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="the page whose tables to replace")
    options = parser.parse_args(given)
    try:
        if options.results is not None:
            document = read_results(options.results)
        elif None in (options.run, options.seed, options.dense):
            parser.error("give RUN, --seed and --dense, or --from FILE")
        else:
            command = " ".join(["python", "tools/inference_options.py", *given])
            document = measure([options.run, options.seed, options.dense], command)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=2) + "\n")
        if options.markdown is not None:
            fill_block(options.markdown, BLOCK, markdown_tables(document))
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def measure(runs: Sequence[Path], command: str, most: int | None = None) -> dict[str, Any]:
    """Gains on the test images of the first run, of large ones too, and costs. `most`: images at most."""
    torch.set_num_threads(1)
    models = [load_model(run, device="cpu") for run in runs]
    remembering = [replace(model, model=cast(CamoXpert, Remembering(model.model))) for model in models]
    thresholds = [held_out_threshold(model, most) for model in remembering]
    remembering = [replace(model, threshold=found) for model, found in zip(remembering, thresholds, strict=True)]
    (test,) = default_data(models[:1])
    of_test = _gains(OPTIONS, remembering, test.source, most)
    of_large = _gains(OF_LARGE, remembering, open_source({**LARGE, "name": "large"}), most)
    costs = _costs(OPTIONS, models, test.source)
    large_costs = _costs(OF_LARGE, models, open_source({**LARGE, "name": "large"}))
    return {
        "command": command,
        "machine": machine() | {"threads": 1},
        "versions": versions(("torch", "timm", "kornia", "camox")),
        "git_commit": git_commit(),
        "models": [
            {"run": run.name, "weights": model.weights, "epoch": model.epoch, "threshold": found}
            for run, model, found in zip(runs, models, thresholds, strict=True)
        ],
        "images": test.as_dict()["source"],
        "test": {name: of | costs[name] for name, of in of_test.items()},
        "large": {name: of | large_costs[name] for name, of in of_large.items()},
    }


def held_out_threshold(model: LoadedModel, most: int | None = None) -> float:
    """What a validation of the run would put into its card: chosen on its held-out images."""
    assert model.experiment is not None
    evaluator = Evaluator("camox", ("iou", CHOSEN_BY))
    _score(Option(), [model], selection_data([model]).source, evaluator, most)
    found = best_threshold(evaluator.results)
    return 0.5 if found is None else found


def _gains(
    options: Mapping[str, Option], models: Sequence[LoadedModel], images: Samples, most: int | None
) -> dict[str, dict[str, Any]]:
    scores: dict[str, DatasetScores] = {}
    for name, option in options.items():
        evaluator = Evaluator(_protocol(option, models), MEASURES)
        shares = _score(option, models, images, evaluator, most)
        scores[name] = summarise(evaluator, shares)
        sys.stderr.write(f"{name}: IoU {scores[name].summary['iou']:.4f}\n")
    compared = compare({"": scores})[""]
    return {
        name: {
            "passes": len(options[name].network(models).views),
            "images": scores[name].summary["count"],
            **{measure: scores[name].summary[measure] for measure in MEASURES},
            "differences": compared["differences"].get(name),
        }
        for name in options
    }


def _protocol(option: Option, models: Sequence[LoadedModel]) -> Protocol:
    if not option.auto_threshold:
        return get_protocol("camox")
    return replace(get_protocol("camox"), binary_threshold=option.network(models).threshold[0])


def _score(
    option: Option, models: Sequence[LoadedModel], images: Samples, evaluator: Evaluator, most: int | None
) -> dict[int, float]:
    """Adds all images, or the first `most`; gives the share of each that is object."""
    network, shares = option.network(models), {}
    for index in range(min(len(images), most or len(images))):
        sample = images[index]
        probability = probability_map(network, sample.image, option.refinement)
        if option.bits is not None:
            probability = (to_levels(probability, 8) / 255).astype(np.float32)
        evaluator.add(index, sample.name, sample.group, probability, sample.mask)
        shares[index] = float(sample.mask.mean())
    return shares


def _costs(options: Mapping[str, Option], models: Sequence[LoadedModel], images: Samples) -> dict[str, dict[str, Any]]:
    """Process time of each option ÷ that of the plain one, median and range over rounds."""
    pictures = [images[index].image for index in range(TIMED_IMAGES)]
    works = {name: _work(option, models, pictures) for name, option in options.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(1 + ROUNDS):  # the first one is not counted
        for name, work in works.items():
            start = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - start)
    ratios = {
        name: [one / plain for one, plain in zip(of, seconds[PLAIN], strict=True)] for name, of in seconds.items()
    }
    return {
        name: {
            "seconds": _significant(statistics.median(seconds[name]) / TIMED_IMAGES),
            "time": {"median": statistics.median(of), "least": min(of), "most": max(of)},
        }
        for name, of in ratios.items()
    }


def _work(option: Option, models: Sequence[LoadedModel], pictures: Sequence[np.ndarray]) -> Callable[[], None]:
    network = option.network(models)

    def work() -> None:
        for picture in pictures:
            probability_map(network, picture, option.refinement)

    return work


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


def markdown_tables(document: Mapping[str, Any]) -> str:
    """A row for each option: its scores, how they differ from the plain prediction's, and its time."""
    try:
        of_test, of_large = _table(document["test"]), _table(document["large"])
        where, names = document["machine"], document["versions"]
        count, large = document["test"][PLAIN]["images"], document["large"][PLAIN]["images"]
    except SHAPE_ERRORS as error:
        raise DataError(f"these are no results of tools/inference_options.py: {error!r}") from error
    made = (
        f"{count} test images of the quickstart with an object; differences from the plain prediction with 95 % "
        "intervals of a paired bootstrap, * where 0 is outside; process time for an image ÷ that of the plain "
        f"prediction, on one thread of {where['processor']}, torch {names['torch']}. Made by `{document['command']}`."
    )
    other = f"The same on {large} images of 512 × 512 pixels, four times as wide as the network sees them:"
    return "\n\n".join([made, of_test, other, of_large])


def _table(rows: Mapping[str, Any]) -> str:
    lines = [["option", "passes", "S", "weighted F", "MAE", "IoU", "time"]]
    for name, row in rows.items():
        values = [
            f"{row[measure]:.4f}" if row["differences"] is None else difference_cell(row["differences"][measure])
            for measure in MEASURES
        ]
        lines.append([name, str(row["passes"]), *values, f"{row['time']['median']:.2f}"])
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
