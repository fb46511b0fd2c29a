"""What a run is made of, each part built from the experiment."""

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from camox.data.cache import cached
from camox.data.loading import EvalSet
from camox.data.samples import Source
from camox.data.sources import Subset, open_sources, open_training_sources
from camox.data.streams import Reading, open_stream
from camox.errors import CheckpointError, ExperimentError
from camox.experiment import Experiment
from camox.inference.loading.loaded_model import load_model
from camox.inference.loading.selection import require_declared_selection
from camox.losses.composite import SegmentationObjective
from camox.models.backbone import STRIDES
from camox.models.balance import RoutingObjective
from camox.models.camoxpert import CamoXpert
from camox.stability.recovery import Recovery
from camox.stability.spikes import SpikeDetector
from camox.stability.watchdog import Watchdog
from camox.tracking.console import Console
from camox.training.ema import WeightAverage
from camox.training.optimization import build_optimizer
from camox.training.phases import TrainingShell
from camox.training.processes import together
from camox.training.reporting import Reporter
from camox.training.run_folder import RunFolder
from camox.training.run_state import Position, RunState, Stateful, load_into
from camox.training.saving import Saver
from camox.training.step import TrainingStep
from camox.training.validation import Validator

_HEAD_START = 0.2
"""Seconds that the main process has before others ask for the cache."""


def open_data(
    experiment: Experiment, accelerator: Accelerator | None = None, console: Console | None = None
) -> tuple[Source | Subset | Reading, Source | Subset]:
    """Training samples and held-out samples of an experiment.

    Args:
        accelerator: of the processes that train, where training samples are to come from the experiment's cache, if it
            has one, and test sources must be there too; collective then. Of a streamed set it tells which part is this
            process's; without, it has all.
        console: says what a person should know while a cache is made, and how far it is.

    Raises:
        DataError: a source is missing, empty or not what its layout says, or the cache cannot be made.
        ExperimentError: checkpoints would be selected on test images, and the experiment does not say that they may.
    """
    if accelerator is None:
        return _open_data(experiment, rank=0, ranks=1)

    def opened() -> tuple[Source | Subset | Reading, Source | Subset]:
        sources = _open_data(experiment, accelerator.process_index, accelerator.num_processes)
        _require_test_data(experiment)
        return sources

    # A machine that lacks the data would leave the others waiting for it.
    train, held_out = together(opened)
    data = experiment.data
    if not data.cache or isinstance(train, Reading):
        return train, held_out
    whole, folder = train, Path(data.cache).expanduser()
    sizes = [size for phase in experiment.phases_resolved() for size in phase.image_sizes]
    console = console or Console(active=False)
    if not accelerator.is_main_process:
        # Whoever comes first makes the cache, and of all consoles only the main process's shows how far it is.
        time.sleep(_HEAD_START)
    limit, workers = data.cache_gib, data.workers
    return together(lambda: cached(whole, sizes, folder, limit, workers, console.notice, console.counting)), held_out


def _open_data(experiment: Experiment, rank: int, ranks: int) -> tuple[Source | Subset | Reading, Source | Subset]:
    require_declared_selection(experiment)
    data = experiment.data
    if data.is_streamed:
        (streamed,) = data.train
        reading = Reading(open_stream(streamed.plain()), experiment.experiment.seed, rank=rank, ranks=ranks)
        return reading, open_sources([source.plain() for source in data.val])
    return open_training_sources(
        [source.plain() for source in data.train],
        [source.plain() for source in data.val],
        data.val_fraction,
        experiment.experiment.seed,
    )


def _require_test_data(experiment: Experiment) -> None:
    """Opens the experiment's test sources, to find a wrong path now and not after 200 epochs.

    Raises:
        DataError: one is missing, empty or not what its layout says.
    """
    if experiment.data.test:
        open_sources([source.plain() for source in experiment.data.test], split="test")


def build_network(experiment: Experiment, device: torch.device, trained: bool = True) -> CamoXpert:
    """The network of an experiment on a device.

    Args:
        trained: whether to start from `experiment.init_from`, where it names something, or from the backbone's own
            weights; if not, because a checkpoint is to be loaded, the weights are random.

    Raises:
        CheckpointError: there is nothing to start from at that path, or it is of another network.
        ExperimentError: the backbone cannot be built, or the network cannot be trained on a phase's batches.
    """
    network = _build_network(experiment, trained)
    refuse_single_values(experiment, network)
    return network.to(device)


def _build_network(experiment: Experiment, trained: bool) -> CamoXpert:
    start = experiment.experiment.init_from
    if trained and start is None:
        return CamoXpert.from_experiment(experiment)
    model = experiment.model.model_copy(update={"pretrained": False, "weights": None})
    network = CamoXpert.from_experiment(experiment.model_copy(update={"model": model}))
    if trained and start is not None:
        try:
            loaded = load_model(start, device="cpu")
            load_into(network, loaded.model.state_dict(), str(loaded.checkpoint))
        except CheckpointError as error:
            raise CheckpointError(f"experiment.init_from: {error}") from error
    return network


def refuse_single_values(experiment: Experiment, network: CamoXpert) -> None:
    """Looks at phases of so small batches that a norm may have a single value of a channel, which is no statistic.

    Which norms there are depends on the backbone, so a network of the same kind tries one such batch.

    Raises:
        ExperimentError: a phase's batches are too small.
    """
    for phase in experiment.phases_resolved():
        size = min(phase.image_sizes)
        if phase.batch_size > 1 or size > max(STRIDES):
            continue
        with torch.random.fork_rng(), torch.no_grad():
            probe = CamoXpert(**network.config).train()
            probe.freeze_backbone(len(STRIDES) if "backbone" in phase.freeze else 0)
            try:
                probe(torch.zeros(1, 3, size, size))
            except ValueError as error:
                raise ExperimentError(
                    f'phase "{phase.name}": a batch of one image of {size}² pixels has one value per channel at stride '
                    f"{max(STRIDES)}, and the norms of {experiment.model.backbone} at width {experiment.model.width} "
                    f"need more to train: set phases.{phase.name}.batch_size to 2 or more, or "
                    f"phases.{phase.name}.image_size to {2 * max(STRIDES)}"
                ) from error


def build_training_step(experiment: Experiment, accelerator: Accelerator, network: CamoXpert) -> TrainingStep:
    """Optimizer, average, objectives and guard around `network`, which is on the accelerator's device already."""
    settings, balance = experiment.optimizer, experiment.model.moe.balance
    multipliers = {"backbone": settings.backbone_lr_mult, "router": settings.router_lr_mult}
    optimizer = build_optimizer(network, multipliers, settings.weight_decay, settings.betas, fused=settings.fused)
    ema, stability = experiment.ema, experiment.stability
    return TrainingStep(
        accelerator,
        network,
        accelerator.prepare(optimizer),
        SegmentationObjective(experiment.loss.plain()),
        WeightAverage(network, ema.decay, ema.warmup) if ema.enabled else None,
        stability.nonfinite,
        SpikeDetector(stability.spike_threshold, stability.spike_patience, accelerator.device)
        if stability.spike
        else None,
        RoutingObjective(balance.kind, balance.z_loss, balance.entropy, balance.mutual_information),
        settings.clip,
        settings.router_clip,
    )


def wrap_for_training(network: CamoXpert, accelerator: Accelerator, frozen_stages: int) -> nn.Module:
    """Freezes that many of the backbone's stages and gives the prepared shell that the training step calls."""
    network.freeze_backbone(frozen_stages)
    network.train()
    # A 1×1 or depthwise kernel has the same order in memory under two kinds of strides; DDP doubts it at length.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Its new name, without which torch 2.14 has a remark for each rank and stage, is not known to torch 2.11.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Not moved again: what holds the network's tensors (average, guards) would be left with copies nobody trains.
    shell: nn.Module = accelerator.prepare(TrainingShell(network), device_placement=[False])
    return shell


def build_recovery(experiment: Experiment) -> Recovery:
    """What is done about what guards find, by the experiment's policy."""
    policy, balance = experiment.stability.policy, experiment.model.moe.balance.kind
    return Recovery(policy.max_rollbacks, policy.rate_factor, policy.warmup_steps, policy.ladder, balance)


def build_validator(
    experiment: Experiment,
    step: TrainingStep,
    held_out: Source | Subset,
    beat: Callable[[str], None],
    heed: Callable[[], None],
    console: Console,
) -> Validator:
    """Scores networks on held-out samples, shown on the console. `beat` is told of each batch, and `heed` called
    after each that all processes have: it may end the validation by raising `Interrupted` on all of them."""
    data, settings = experiment.data, experiment.validation
    samples = EvalSet(held_out, data.image_size)
    # Not the step's own: recovery may leave out a part of that, and losses would no longer compare.
    objective = SegmentationObjective(experiment.loss.plain())
    on_test = bool(data.val) and settings.select_on_test
    sizes = data.batch_size, data.workers
    return Validator(step.accelerator, samples, objective, settings.measures, *sizes, beat, heed, on_test, console)


def build_saver(experiment: Experiment, step: TrainingStep, folder: RunFolder, reporter: Reporter) -> Saver:
    """Writes checkpoints into the run's folder, and tells the reporter of each."""
    config, fingerprint = step.network.config, experiment.fingerprint()
    return Saver(folder.path, experiment.checkpoints, config, fingerprint, step.accelerator, reporter.saved)


def build_state(
    experiment: Experiment,
    step: TrainingStep,
    parts: Mapping[str, Stateful],
    source: Source | Subset | Reading | None = None,
) -> RunState:
    """The whole state of a run: that of the step, of `parts` by their names in checkpoints, and how far this rank has
    read the `source` that is trained on, where it is streamed."""
    parts = {**parts, **({} if step.spikes is None else {"spikes": step.spikes})}
    meters = {"batches": step.batch_meters, "steps": step.step_meters}
    optimizer, size = step.optimizer.optimizer, experiment.data.image_size
    reading = source if isinstance(source, Reading) else None
    return RunState(step.accelerator, step.network, optimizer, step.average, parts, meters, size, reading)


def build_watchdog(
    experiment: Experiment,
    accelerator: Accelerator,
    folder: RunFolder,
    reporter: Reporter,
    position: Callable[[], Position],
) -> Watchdog:
    """The watchdog of this process, which leaves an event and `exit.json` when the run stands still."""

    def note(message: str, details: Mapping[str, Any]) -> None:
        # First: the end must be told even where the run's other files are what hangs.
        folder.close(1, message)
        reporter.event("stall", message, position(), "error", details)

    return Watchdog(
        folder.path,
        experiment.stability.stall_seconds,
        accelerator.process_index,
        accelerator.num_processes,
        where=lambda: str(position()),
        on_stall=note,
    )
