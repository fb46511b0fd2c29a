"""Where in the run an epoch lies, what is trained there, on which batches and at which rate."""

from collections.abc import Collection, Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from camox.data.loading import TrainBatch, TrainSet, train_loader
from camox.data.samples import Source
from camox.data.sources import Subset
from camox.data.streams import Reading
from camox.experiment import Experiment, ResolvedPhase
from camox.models.backbone import STRIDES
from camox.models.camoxpert import CamoXpert
from camox.stability.recovery import Adjustments
from camox.training import schedule
from camox.training.sampler import EpochBatches
from camox.training.step import Controls
from camox.training.stream_batches import Batches, StreamBatches


class TrainingShell(nn.Module):
    """A thin wrapper around the raw network, made anew whenever other parts of it are frozen.

    Freezing changes which parameters have gradients. DDP fixes that set when it wraps a module, and
    Accelerate silently skips a module it has prepared before; a new shell around the same network is wrapped
    afresh, while the raw network, its optimizer and its average live on.
    """

    def __init__(self, network: CamoXpert):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def phase_of(epoch: int, phases: Sequence[ResolvedPhase]) -> ResolvedPhase:
    """The phase that `epoch`, counted from 0 over the whole run, belongs to."""
    return _located(epoch, phases)[0]


def frozen_stages(epoch: int, phases: Sequence[ResolvedPhase]) -> int:
    """How many of the backbone's four stages, counted from the shallowest, are frozen in `epoch`.

    A progressive phase of n epochs trains `⌈4·(i + 1) / n⌉` stages in its epoch i: one more joins after every quarter,
    and the last epoch trains all, however short the phase.
    """
    phase, index = _located(epoch, phases)
    if "backbone" in phase.freeze:
        return len(STRIDES)
    if phase.unfreeze == "all":
        return 0
    return len(STRIDES) - -(-len(STRIDES) * (index + 1) // phase.epochs)


def begins_stage(epoch: int, phases: Sequence[ResolvedPhase]) -> bool:
    """Whether other parts are trained, or on other sizes, than in the epoch before."""
    if epoch == 0 or phase_of(epoch, phases) is not phase_of(epoch - 1, phases):
        return True
    return frozen_stages(epoch, phases) != frozen_stages(epoch - 1, phases)


def _located(epoch: int, phases: Sequence[ResolvedPhase]) -> tuple[ResolvedPhase, int]:
    """The phase of an epoch, and which of the phase's epochs it is."""
    assert epoch >= 0, epoch
    first = 0
    for phase in phases:
        if epoch < first + phase.epochs:
            return phase, epoch - first
        first += phase.epochs
    raise AssertionError(epoch)


def batches_of(source: Source | Subset | Reading, batch_size: int, seed: int) -> Batches:
    """Batches for one process, from the beginning: those of a stream whatever else has been read of it."""
    if isinstance(source, Reading):
        return StreamBatches(Reading(source.stream, seed), batch_size)
    return EpochBatches(source.weights, batch_size, seed)


def phase_sampler(
    phase: ResolvedPhase,
    source: Source | Subset | Reading,
    seed: int,
    accelerator: Accelerator,
    left_out: Collection[int] = (),
) -> Batches:
    """This rank's batches of the phase's size: of a stream as it is read, else by the weight of each sample and without
    those `left_out`."""
    sizes = phase.image_sizes if phase.multi_scale else ()
    if isinstance(source, Reading):
        return StreamBatches(source, phase.batch_size, sizes)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return EpochBatches(source.weights, phase.batch_size, seed, rank, ranks, left_out, sizes)


def phase_loader(
    experiment: Experiment, phase: ResolvedPhase, source: Source | Subset | Reading, sampler: Batches, pin_memory: bool
) -> DataLoader[TrainBatch]:
    """Training samples at the phase's image size or sizes, in the sampler's order."""
    dataset = train_set(experiment, phase.image_size, source, phase.image_sizes)
    return train_loader(dataset, sampler, experiment.data.workers, pin_memory)


def train_set(
    experiment: Experiment, image_size: int, source: Source | Subset | Reading, sizes: Sequence[int] = ()
) -> TrainSet:
    """Training samples at an image size in pixels, or at `sizes`, augmented as the experiment asks for."""
    transforms = [transform.specification() for transform in experiment.data.augment]
    return TrainSet(source, image_size, transforms, experiment.experiment.seed, sizes)


def controls_at(
    position: float,
    experiment: Experiment,
    phase: ResolvedPhase,
    reductions: int,
    adjustments: Adjustments = Adjustments(),  # noqa: B008  frozen
    step: int = 0,
) -> Controls:
    """What the schedules set for the step that ends at `position`, in epochs.

    Args:
        reductions: how often a plateau has lowered the learning rate so far.
        adjustments: what recovery has changed, and `step` the number of the step by which it counts.
    """
    settings, moe = experiment.schedule, experiment.model.moe
    if settings.name == "multistep":
        reductions = schedule.milestones_passed(position, settings.milestones)
    rate = schedule.learning_rate(
        position,
        experiment.epochs,
        phase.lr,
        settings.name,
        settings.warmup_epochs,
        settings.min_lr,
        settings.gamma**reductions,
    )
    coefficient = 0.0
    if moe.balance.kind != "none":
        coefficient = schedule.balance_coefficient(
            position,
            moe.balance.warmup_epochs * adjustments.balance_warmup,
            moe.balance.coefficient,
            moe.balance.coefficient_after_warmup,
        )
    noise = schedule.noise_share(position, experiment.epochs, moe.router.noise_fraction)
    return Controls(
        learning_rate=rate * adjustments.rate_at(step),
        balance_coefficient=coefficient * adjustments.balance_coefficient,
        noise_share=max(noise, adjustments.noise_at(step)),
        router_rate=adjustments.router_rate,
        router_clip=adjustments.router_clip,
    )
