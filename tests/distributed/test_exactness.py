"""Two processes with a batch of b train what one process trains with 2b: weights, average, logged values, scores.

Backbones here have no BatchNorm, whose statistics are each process's own; dropout and routing noise are off.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from camox.checkpoints.store import list_checkpoints
from camox.data.loading import EvalSet
from camox.data.sources import open_sources
from camox.experiment import Experiment
from camox.losses.composite import SegmentationObjective
from camox.models.camoxpert import CamoXpert
from camox.training.building import open_data
from camox.training.optimization import GROUPS, group_of
from camox.training.processes import build_accelerator
from camox.training.routing import RoutingWatch
from camox.training.step import TrainingStep
from camox.training.telemetry import score_values
from camox.training.trainer import Trainer
from camox.training.validation import Validator
from tests.conftest import forget_accelerate_state
from tests.distributed.test_two_ranks import ROOT, launch

pytestmark = pytest.mark.distributed

# 18 samples: a batch of 4 over all processes leaves two out of every epoch, other ones each time. 5 held-out images:
# three for one rank, two for the other, scored one by one.
HEAD = """
[experiment]
name = "NAME"
seed = 3

[data]
train = [{ synthetic = "habitats", count = 18, size = 64, tiny = 0.0 }]
val = [{ synthetic = "habitats", count = 5, size = 48, tiny = 0.0 }]
image_size = 64
batch_size = 1
workers = 0

[[data.augment]]
name = "HorizontalFlip"
p = 0.5

[model]
backbone = "test_convnext"
pretrained = false
width = 8
refinement_steps = 1

[optimizer]
# Of a backbone that was not trained before, larger steps make each rounding error ten times as large as it was.
lr = 1e-3
backbone_lr_mult = 0.1
accumulate = ACCUMULATE
clip = 0.05

[schedule]
warmup_epochs = 1

[validation]
every_epochs = 100

[tracking]
log_every = 1
wandb = "disabled"
report = false
"""


def phase(name: str, epochs: int, **settings: Any) -> str:
    return table("[phases]", name=name, epochs=epochs, **settings) + "batch_size = BATCH\n"


def table(title: str, **settings: Any) -> str:
    return f"[{title}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


FROZEN, FULL = phase("frozen", 1, freeze=["backbone"]), phase("full", 1)
# 20 steps: without the backbone, with it, and stage by stage.
BASE = HEAD + FROZEN + FULL + phase("progressive", 3, unfreeze="progressive")
SHORT = HEAD + FROZEN + FULL


def balance(kind: str, **settings: Any) -> str:
    """So strong that what is wrong with it shows."""
    return table("model.moe.balance", kind=kind, coefficient=1.0, coefficient_after_warmup=1.0, **settings)


@dataclass(frozen=True)
class Case:
    """An experiment, and what is its batch and accumulation on two processes and on one."""

    text: str
    two: tuple[int, int] = (2, 1)
    one: tuple[int, int] = (4, 1)
    alone: tuple[str, str] = ("", "")
    """What one process has in place of what two have."""

    def write(self, folder: Path, name: str, processes: int) -> Path:
        batch, accumulate = self.two if processes == 2 else self.one
        text = self.text if processes == 2 else self.text.replace(*self.alone)
        values = {"NAME": name, "BATCH": str(batch), "ACCUMULATE": str(accumulate), "PAIRS": str(folder / "pairs")}
        for word, value in values.items():
            text = text.replace(word, value)
        if "pairs" in text:
            write_pairs(folder / "pairs")
        file = folder / f"{name}.toml"
        file.write_text(text)
        return file


SAMPLES = '{ synthetic = "habitats", count = 18, size = 64, tiny = 0.0 }'
EVEN = SHORT.replace("count = 18", "count = 16")
REFUSED = 7


def write_pairs(folder: Path) -> None:
    """The same samples as files, one of them torn."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number, sample in enumerate(open_sources([{"synthetic": "habitats", "count": 18, "size": 64, "tiny": 0.0}])):
        cv2.imwrite(str(folder / f"images/{number:02}.png"), sample.image[..., ::-1])
        cv2.imwrite(str(folder / f"masks/{number:02}.png"), 255 * sample.mask)
    torn = folder / f"images/{REFUSED:02}.png"
    torn.write_bytes(torn.read_bytes()[:2000])


QUICK = {
    "plain": Case(BASE),
    # Windows of three micro-batches and of one: the epoch's last is short. All images of a micro-batch count together.
    "whole_batch": Case(SHORT + balance("importance", entropy=0.1, mutual_information=0.5), (2, 3), (4, 3)),
}
SLOW = {
    "switch": Case(SHORT + balance("switch")),
    # One image per process picks two of six experts: four idle on each, in every step.
    "idle": Case(SHORT, (1, 1), (2, 1)),
    "accumulated": Case(EVEN, (1, 2), (4, 1)),
    "accumulated_on_one": Case(EVEN, (2, 1), (2, 2)),
    "regions": Case(SHORT + table("model.moe", granularity=2, shared=True)),
    "dense": Case(SHORT + table("model.moe", mode="dense")),
    "multi_scale": Case(SHORT.replace("image_size = 64", "image_size = 64\nmulti_scale = [0.5, 1.0, 1.5]")),
    "checkpointing": Case(
        SHORT.replace("test_convnext", "edgenext_xx_small").replace("width", "gradient_checkpointing = true\nwidth"),
        alone=("gradient_checkpointing = true\n", ""),
    ),
    # Norms of frozen stages keep their statistics: what a rank has in its batch is nothing to them.
    "frozen_norms": Case(HEAD.replace("test_convnext", "resnet10t") + phase("frozen", 3, freeze=["backbone"])),
    "spikes": Case(
        HEAD + phase("full", 4) + table("stability", spike_threshold=1e-3, spike_patience=1), (1, 1), (2, 1)
    ),
    "refused": Case(
        SHORT.replace(SAMPLES, '{ layout = "folder", images = "PAIRS/images", masks = "PAIRS/masks" }')
        + table("stability", max_bad_samples=0.2)
    ),
}
CASES = QUICK | SLOW
TOLERANCE = 1e-5
"""Of a weight after the run. Rounding makes a twentieth of it, or less."""


class Run:
    """What a finished run has left."""

    def __init__(self, folder: Path, samples: list[list[int]]):
        self.folder = folder
        self.samples = samples
        """Indices of each step's samples on all processes, sorted."""

    @property
    def checkpoint(self) -> Path:
        return list_checkpoints(self.folder)[-1]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        return load_file(self.checkpoint / f"{stem}.safetensors")


@dataclass(frozen=True)
class Pair:
    name: str
    two: Run
    one: Run


@pytest.fixture(scope="module")
def on_two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The runs of all cases that tests were selected of, by two processes that are started once."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = sorted({item.callspec.params["pair"] for item in items if "pair" in item.callspec.params})
    folder = tmp_path_factory.mktemp("two")
    files = [CASES[name].write(folder, name, processes=2) for name in names]
    done = launch(str(ROOT / "tests/distributed/two_ranks.py"), str(folder), *map(str, files))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    return {
        name: Run(
            folder / name,
            [sorted(i for rank in step["ranks"] for i in rank["indices"]) for step in report[name]["steps"]],
        )
        for name in names
    }


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def pair(
    request: pytest.FixtureRequest, on_two_processes: dict[str, Run], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """A case on two processes and on one."""
    name, folder = request.param, tmp_path_factory.mktemp("one")
    samples: list[list[int]] = []
    take = TrainingStep.__call__

    def note(step: TrainingStep, shell: Any, window: Any, controls: Any) -> None:
        samples.append(sorted(index for batch in window for index in batch.indices.tolist()))
        take(step, shell, window, controls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", note)
        forget_accelerate_state()
        Trainer(Experiment.load(CASES[name].write(folder, name, processes=1), output=folder)).run()
    return Pair(name, on_two_processes[name], Run(folder / name, samples))


def test_each_step_has_the_same_samples(pair):
    assert pair.two.samples == pair.one.samples
    assert any(len(set(step)) > 1 for step in pair.two.samples)


@pytest.mark.parametrize("stem", ["model", "ema"])
def test_weights_are_the_same_to_1e_5(pair, stem):
    ours, theirs = pair.two.tensors(stem), pair.one.tensors(stem)
    assert ours.keys() == theirs.keys()
    absolute = {name: (ours[name].double() - theirs[name].double()).abs().max().item() for name in ours}
    relative = {name: absolute[name] / max(theirs[name].abs().max().item(), 1e-4) for name in ours}
    assert {name: value for name, value in absolute.items() if not value <= TOLERANCE} == {}
    assert {name: value for name, value in relative.items() if not value <= 1e-3} == {}


def test_weights_have_moved_far(pair):
    """Or they could be the same whatever gradients are."""
    trained = pair.one.tensors("model")
    experiment = Experiment.load(pair.one.folder / "experiment.toml")
    torch.manual_seed(experiment.experiment.seed)
    moved = dict.fromkeys(GROUPS, 0.0)
    for name, start in CamoXpert.from_experiment(experiment).named_parameters():
        group = group_of(name)
        moved[group] = max(moved[group], (trained[name] - start).abs().max().item())
    if "frozen" in pair.name:
        assert moved.pop("backbone") == 0
    assert min(moved.values()) > 2 * TOLERANCE


NOT_OF_THE_TRAINING = ("time", "train/images_per_second", "train/data_wait", "checkpoint/", "val")


def test_logged_values_are_the_same(pair):
    """Losses, routing, norms before clipping, schedules: all but the pace, and scores, which have a test below."""
    assert len(pair.two.records) == len(pair.one.records) > len(pair.two.samples)
    assert pair.two.records[0].keys() >= {"train/loss", "grad_norm/total", "router/balance_loss", "lr/experts"}
    for ours, theirs in zip(pair.two.records, pair.one.records, strict=True):
        assert ours.keys() == theirs.keys()
        for name in (name for name in ours if not name.startswith(NOT_OF_THE_TRAINING)):
            number = isinstance(theirs[name], int | float)  # else a phase, or None: no loss where each step was skipped
            same = pytest.approx(theirs[name], rel=1e-4, abs=1e-6) if number else theirs[name]
            assert ours[name] == same, f"step {ours['step']}: {name}"


def test_guards_saw_and_did_the_same(pair):
    ours, theirs = ([(event["kind"], event["step"]) for event in run.events] for run in (pair.two, pair.one))
    assert ours == theirs
    expected = {"spikes": "spike", "refused": "bad_sample"}.get(pair.name, "end")
    assert expected in [kind for kind, _ in ours]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_one_process(pair, batch_size):
    """Of the same weights, raw and averaged: all measures, the loss, and what routers decide. Bit for bit in batches of
    one image; of more, sums are rounded otherwise, and a pixel between two of 256 levels may change to the other."""
    experiment = Experiment.load(pair.two.folder / "experiment.toml")
    accelerator = build_accelerator(experiment)
    _, held_out = open_data(experiment)
    validator = Validator(
        accelerator,
        EvalSet(held_out, experiment.data.image_size),
        SegmentationObjective(experiment.loss.plain()),
        experiment.validation.measures,
        batch_size,
        workers=0,
    )
    raw, averaged = (CamoXpert.from_pretrained(pair.two.checkpoint, weights) for weights in ("model", "ema"))
    scored = validator.score(raw)
    values, _ = RoutingWatch(raw).evaluate(scored.routed, len(pair.two.samples))
    values |= score_values({"val": scored.summary, "val_ema": validator.score(averaged, routing=False).summary})
    (record,) = [record for record in pair.two.records if "val/iou" in record]
    written = {name: value for name, value in record.items() if name.startswith("val")}
    assert written.keys() >= {"val/s_measure", "val_ema/mae", "val/loss", "val/router/stride_4/mutual_information"}
    assert written == (values if batch_size == 1 else pytest.approx(values, rel=0, abs=1e-6))
