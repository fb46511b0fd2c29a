"""Suite `memory`: what a training step of the recipes takes on a GPU, and what a resolution costs.

Counted as `camox.diagnosis.accounting` says, on any machine alike; with `--device cuda` the same steps are also taken,
and the allocator's own figures stand beside. Multiply-adds are those of a forward pass.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState
from torch import nn

from benchmarking.counters import multiply_adds
from benchmarking.cuda import attempt, peak_bytes, release_memory
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import significant
from camox.data.loading import TrainBatch
from camox.diagnosis.accounting import Sizes, StepAccount, even_sizes
from camox.diagnosis.estimates import GIB, with_allowance
from camox.diagnosis.memory import LiveBytes
from camox.experiment import Experiment, ResolvedPhase
from camox.models.camoxpert import CamoXpert
from camox.models.experts import EXPERTS
from camox.training.building import build_training_step, wrap_for_training
from camox.training.phases import frozen_stages
from camox.training.processes import build_accelerator
from camox.training.step import Controls

RECIPES = Path(__file__).resolve().parents[2] / "experiments"
LIMITS = {"sparse_moe_416": 10, "sparse_moe_704": 15}
"""Recipe → GiB that each of its phases is to fit in: counted, with all allowances; measured, as reserved."""
LARGER_BATCH = {"sparse_moe_416": 12}
"""Recipe → images of its last phase, a second time with more than the recipe has."""
RESOLUTIONS = (352, 416, 448, 480, 512, 544, 576, 608, 640, 704)


class Case(NamedTuple):
    """A step to count."""

    experiment: Experiment
    phase: ResolvedPhase
    images: int
    stages: int
    """Frozen stages of the backbone."""
    precision: str = "fp16"
    one_pair: bool = False
    """Whether all images go to the two experts that take the most, in place of equally many to each."""

    @property
    def name(self) -> str:
        parts = [f"{self.phase.largest_size}², {self.phase.name}, {self.images} images, {self.precision}"]
        if self.experiment.model.gradient_checkpointing:
            parts.append("checkpointing")
        return ", ".join([*parts, *(["all to one pair"] if self.one_pair else [])])


def measure_memory(settings: Settings) -> Report:
    """Counts every case, and measures it where there is a GPU."""
    steps: Rows = {}
    targets = []
    pair = dearest_pair()
    for recipe, limit in LIMITS.items():
        worst = 0.0
        for checkpointing in (True, False):
            for case in _cases(recipe, checkpointing):
                steps[case.name] = row = _counted(case, pair)
                if settings.on_gpu and not case.one_pair:
                    row |= _measured(case)
                if case.precision == "fp16":
                    worst = max(worst, row["needed GiB"])
        targets.append(Target(f"{recipe}, GiB, fp16, every phase, with and without checkpointing", limit, worst))
    work = _work()
    sparse, dense = ({size: work[f"{size}²"][name] for size in RESOLUTIONS} for name in ("sparse GMAC", "dense GMAC"))
    largest = RESOLUTIONS[-1]
    affordable = max(size for size in RESOLUTIONS if dense[size] <= sparse[largest])
    ratios: Rows = {
        "GMAC": {
            f"sparse {largest}² / sparse 416²": significant(sparse[largest] / sparse[416]),
            f"sparse {largest}² / dense {largest}²": significant(sparse[largest] / dense[largest]),
            f"sparse {largest}² / dense 416²": significant(sparse[largest] / dense[416]),
        },
        "side in pixels": {f"largest dense for the GMAC of sparse {largest}²": affordable},
    }
    return Report({"step": steps, "resolution": work}, ratios, targets, judged=True)


def measure_recipes() -> Report:
    """Takes a step of each recipe's last phase on the GPU, with the larger batch, with and without checkpointing.

    The limit is asked of what the allocator reserves; the context that CUDA keeps for itself comes to it.
    """
    steps: Rows = {}
    targets = []
    for recipe, limit in LIMITS.items():
        worst = 0.0
        for checkpointing in (True, False):
            case = _largest(_cases(recipe, checkpointing))
            found = attempt(partial(_measured, case))
            steps[case.name] = {"remark": found} if isinstance(found, str) else dict(found)
            worst = max(worst, inf if isinstance(found, str) else found["reserved GiB"])
        targets.append(Target(f"{recipe}, reserved GiB, with and without checkpointing", limit, worst))
    return Report({"memory of the recipes": steps}, {}, targets, judged=True)


def _largest(cases: Iterable[Case]) -> Case:
    """The last phase in half precision, with as many images as are ever asked of it."""
    last = [case for case in cases if case.stages == 0 and case.precision == "fp16" and not case.one_pair]
    return max(last, key=lambda case: case.images)


def _cases(recipe: str, checkpointing: bool) -> list[Case]:
    experiment = _load(recipe, f"model.gradient_checkpointing={str(checkpointing).lower()}")
    phases = experiment.phases_resolved()
    ends = accumulate(phase.epochs for phase in phases)
    cases = [
        Case(experiment, phase, phase.batch_size, frozen_stages(end - 1, phases))
        for phase, end in zip(phases, ends, strict=True)
    ]
    last = cases[-1]._replace(images=LARGER_BATCH.get(recipe, cases[-1].images))
    return [
        *cases,
        *([last] if last not in cases else []),
        last._replace(one_pair=True),
        last._replace(precision="fp32"),
    ]


def _load(recipe: str, *overrides: str) -> Experiment:
    return Experiment.load(RECIPES / f"{recipe}.toml", ["model.pretrained=false", *overrides])


def _counted(case: Case, pair: Sizes) -> dict[str, Any]:
    account = StepAccount(case.experiment, CamoXpert.from_experiment(case.experiment), half=case.precision != "fp32")
    sizes = pair if case.one_pair else even_sizes
    step = account.count(case.images, case.phase.largest_size, case.stages, case.phase.accumulate > 1, sizes)
    parts = {
        "weights": step.weights,
        "average": step.average,
        "moments": step.moments,
        "gradients": step.gradients,
        "at backward": step.kept,
        "peak": step.peak,
        "counted": step.total,
        "needed": with_allowance(step.total),
    }
    return {f"{name} GiB": significant(number / GIB) for name, number in parts.items()}


def dearest_pair() -> Sizes:
    """All images to the two experts that take the most memory each in a forward and backward pass."""
    model = _load("sparse_moe_416").model
    peaks = {name: _expert_peak(EXPERTS[name](model.width), model.width) for name in model.moe.experts}
    chosen = sorted(peaks, key=peaks.__getitem__)[-2:]

    def sizes(choices: int, experts: int) -> list[int]:
        assert experts == len(peaks)
        return [choices // 2 if name in chosen else 0 for name in peaks]

    return sizes


def _expert_peak(expert: nn.Module, width: int) -> int:
    # Not without values: that takes a whole experiment, and an expert's parts compare at any size.
    x = torch.randn(1, width, 64, 64, requires_grad=True)
    with LiveBytes() as live:
        expert(x).sum().backward()
    return live.peak


def _measured(case: Case) -> dict[str, float]:
    """The allocator's figures for steps that are really taken, on the GPU."""
    release_memory()
    before = torch.cuda.memory_allocated()
    peak = peak_bytes(real_step(case, torch.device("cuda")))
    reserved = torch.cuda.max_memory_reserved()
    return {"allocated GiB": significant((peak - before) / GIB), "reserved GiB": significant(reserved / GIB)}


def real_step(case: Case, device: torch.device) -> Callable[[], None]:
    """One step of the trainer on noise, with the routing that comes of it."""
    AcceleratorState._reset_state()
    precision = {"precision": case.experiment.precision.model_copy(update={"dtype": case.precision})}
    experiment = case.experiment.model_copy(update=precision)
    accelerator = build_accelerator(experiment)
    network = CamoXpert.from_experiment(experiment).to(device)
    network.set_routing_noise(1.0)  # else an untrained router sends all images to one pair
    step = build_training_step(experiment, accelerator, network)
    shell = wrap_for_training(network, accelerator, case.stages)
    size = case.phase.largest_size

    def take() -> None:
        batch = TrainBatch(
            images=torch.randint(0, 256, (case.images, 3, size, size), dtype=torch.uint8, device=device),
            masks=torch.randint(0, 2, (case.images, 1, size, size), dtype=torch.uint8, device=device),
            indices=torch.arange(case.images),
            weights=torch.ones(case.images, device=device),
            problems=[],
        )
        step(shell, [batch] * min(case.phase.accumulate, 2), Controls(1e-4, 1e-3, noise_share=1.0))

    return take


def _work() -> Rows:
    """Side of the image → multiply-adds of a forward pass of one image, sparse and dense."""
    rows: Rows = {f"{size}²": {} for size in RESOLUTIONS}
    for name, recipe in (("sparse", "sparse_moe_416"), ("dense", "dense_416")):
        experiment = _load(recipe, "model.gradient_checkpointing=false")
        account = StepAccount(experiment, CamoXpert.from_experiment(experiment), half=False)
        for size in RESOLUTIONS:
            images = 3  # as many as give each of six experts an image
            with account.without_values(images):
                work = multiply_adds(partial(account.network, torch.zeros(images, 3, size, size)))
            rows[f"{size}²"][f"{name} GMAC"] = significant(work / images / 1e9)
    return rows
