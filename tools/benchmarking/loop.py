"""Part of suite `step`: the trainer's loop as a run has it against a bare loop written by hand, step against step.

`Trainer.run` itself is measured, with all that it does from one batch to the next: guards, reports read on the host,
meters, logged values and their file, watchdog, signals, notes for replays. Only its data loader is replaced, by one
that hands out the same batch of noise again and again: loading is in neither loop. Between two batches that loader
takes the time, and lets the bare loop take its turn, from equal weights and with equal random numbers: the two stay the
same network. A round is `STEPS` steps of each, one of which the trainer logs. On a CPU they take turns after each step;
on a GPU after a whole round, since there to take the time is to wait.
"""

import contextlib
import copy
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from benchmarking.experiments import benchmark_experiment
from benchmarking.report import Target
from benchmarking.settings import Settings
from benchmarking.timing import LEAST_ROUNDS, ROUTINGS, Sample, added_up, timed
from camox.data.loading import TrainBatch
from camox.experiment import Experiment, ResolvedPhase
from camox.losses.composite import SegmentationObjective
from camox.models.balance import RoutingObjective
from camox.models.camoxpert import CamoXpert
from camox.models.router import count_choices
from camox.training.ema import WeightAverage
from camox.training.optimization import build_optimizer, group_of, set_learning_rate
from camox.training.step import Controls
from camox.training.trainer import Trainer

STEPS = 4
"""Steps of a round, one of which is logged: five times as often as by default."""

TRAINER, BARE = "trainer", "bare"
NOISE = 0.02
"""Range of the rounds' ratios, as a share of their median, below which a ratio of 1.02 can be told from 1."""


class BareLoop:
    """What is left of training when nothing looks after it: the rival that the trainer is measured against.

    Forward pass, objectives, backward pass, clipping by torch's own function, fused AdamW, balance, average. No guards,
    meters or logged values, no Accelerate. The two clipping limits, the parameter groups and the average are the
    trainer's, so that both train alike.
    """

    def __init__(self, network: CamoXpert, experiment: Experiment, settings: Settings):
        optimizer, balance = experiment.optimizer, experiment.model.moe.balance
        self.network = network
        self.settings = settings
        self.objective = SegmentationObjective(experiment.loss.plain())
        self.routing_objective = RoutingObjective(balance.kind, balance.z_loss)
        self.coefficient = balance.coefficient
        multipliers = {"backbone": optimizer.backbone_lr_mult, "router": optimizer.router_lr_mult}
        self.optimizer = build_optimizer(network, multipliers, optimizer.weight_decay, optimizer.betas, optimizer.fused)
        set_learning_rate(self.optimizer, optimizer.lr)
        self.scaler = torch.amp.GradScaler(settings.device, 1024.0, enabled=settings.precision == "fp16")
        self.average = WeightAverage(network, experiment.ema.decay, experiment.ema.warmup)
        self.taken = torch.ones((), dtype=torch.bool, device=settings.torch_device)
        self.routers, self.others = list[nn.Parameter](), list[nn.Parameter]()
        for name, parameter in network.named_parameters():
            (self.routers if group_of(name) == "router" else self.others).append(parameter)
        self.router_clip, self.clip = optimizer.router_clip, optimizer.clip

    def step(self, batch: TrainBatch) -> None:
        batch = batch.to(self.settings.torch_device, non_blocking=True)
        self.optimizer.zero_grad()
        with self.settings.autocast():
            output = self.network(batch.images.float() / 255)
        loads = {stride: self.network.balance(stride).load for stride in output.routing}
        loss = self.objective(output, batch.masks, batch.weights).total
        loss = loss + self.routing_objective(output.routing, loads, self.coefficient)[0]
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.routers, self.router_clip)
        clip_grad_norm_(self.others, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for stride, routing in output.routing.items():
            counts = count_choices(routing.selected, len(self.network.expert_names))
            self.network.balance(stride).update(counts.float(), self.taken)
        self.average.update(self.taken)


class MeasuredTrainer(Trainer):
    """A trainer whose loader times it, and the bare loop in turn with it. Validates and saves nothing."""

    def __init__(self, experiment: Experiment, settings: Settings):
        super().__init__(experiment, accelerator=settings.accelerator())
        self.settings = settings
        self.turn = STEPS if settings.on_gpu else 1
        self.batch = noise(settings)
        self.samples: dict[str, list[Sample]] = {TRAINER: [], BARE: []}

    def _enter(self, phase: ResolvedPhase) -> None:
        super()._enter(phase)
        self.bare = BareLoop(copy.deepcopy(self.network), self.experiment, self.settings)
        self.loader: Any = self._batches()

    def _controls(self, position: float, step: int) -> Controls:
        return replace(super()._controls(position, step), noise_share=1.0)

    def _batches(self) -> Iterator[TrainBatch]:
        """The loader: what runs between two batches is the trainer's step."""
        batch, device = self.batch, self.settings.torch_device
        if self.settings.on_gpu:
            batch = batch.pin_memory()
        for number in range(rounds(self.settings) * STEPS // self.turn):
            for name in (TRAINER, BARE) if number % 2 == 0 else (BARE, TRAINER):
                torch.manual_seed(number % ROUTINGS)
                with timed(self.samples[name], device):
                    for _ in range(self.turn):
                        if name == BARE:
                            self.bare.step(batch)
                        else:
                            yield batch
        torch.manual_seed(0)
        yield batch  # of the step that is not timed: no batch is asked for after it

    def _due(self, every: int) -> bool:
        return False


def measure_loops(settings: Settings) -> dict[str, list[Sample]]:
    """What a step of either loop takes in each round that counts: kernels and allocators are warm."""
    trainer = run_trainer(settings)
    turns = STEPS // trainer.turn
    return {
        name: [
            added_up(found[first : first + turns]).divided(STEPS)
            for first in range(ROUTINGS * turns, len(found), turns)
        ]
        for name, found in trainer.samples.items()
    }


def loop_targets(share: Mapping[str, float], settings: Settings) -> list[Target]:
    """What the trainer may take of a bare loop; the narrower limit is asked only where noise lets it be seen."""
    what = f"loop time, {TRAINER} / {BARE}"
    targets = [Target(what, 1.05, share["median"])]
    if settings.rounds >= LEAST_ROUNDS and share["most"] - share["least"] < NOISE * share["median"]:
        targets.append(Target(f"{what}, rounds within {NOISE:.0%}", 1.02, share["median"]))
    return targets


def rounds(settings: Settings) -> int:
    """All rounds, with those that do not count."""
    return ROUTINGS + settings.rounds


def run_trainer(settings: Settings) -> MeasuredTrainer:
    """Runs all rounds; what the trainer says to people is kept off the screen."""
    steps = STEPS * rounds(settings) + 1
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder, Path(os.devnull).open("w") as nowhere:
        trainer = MeasuredTrainer(benchmark_experiment(settings, Path(folder), steps, log_every=STEPS), settings)
        with contextlib.redirect_stdout(nowhere):
            trainer.run()
    return trainer


def noise(settings: Settings) -> TrainBatch:
    """A batch of noise in host memory."""
    size = (settings.image_size, settings.image_size)
    images = torch.randint(0, 256, (settings.batch, 3, *size), dtype=torch.uint8)
    masks = torch.randint(0, 2, (settings.batch, 1, *size), dtype=torch.uint8)
    return TrainBatch(images, masks, torch.arange(settings.batch), torch.ones(settings.batch), [])
