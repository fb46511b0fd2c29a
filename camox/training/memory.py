"""Running out of memory: found by a step on noise before training begins, and told with what to lower."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from accelerate import Accelerator

from camox.data.loading import TrainBatch
from camox.errors import ExperimentError
from camox.experiment import Experiment, ResolvedPhase
from camox.training.phases import frozen_stages
from camox.training.processes import fail_together
from camox.training.step import TOTAL, TrainingStep

WHAT_TO_LOWER = "lower data.batch_size (optimizer.accumulate makes up for it) or data.image_size"
GIB = 2**30


def try_largest_phases(experiment: Experiment, accelerator: Accelerator, step: TrainingStep) -> None:
    """Goes forward and backward once, on noise, with the batches of every phase that no other one exceeds.

    Leaves weights, statistics and random generators as they were, and no gradients. Collective.

    Raises:
        ExperimentError: the device's memory is not enough; the message has the largest batch that fits.
    """
    failure = None
    for phase, stages in _largest(experiment.phases_resolved()):
        step.network.freeze_backbone(stages)
        try:
            if failure is None and not _fits(accelerator, step, phase.batch_size, phase.largest_size):
                failure = _too_large(experiment, accelerator, step, phase)
        finally:
            step.network.freeze_backbone(0)
    fail_together(failure)


def _largest(phases: Sequence[ResolvedPhase]) -> Iterator[tuple[ResolvedPhase, int]]:
    """Phases with the frozen stages of their last epochs, without those that take no more than another one does."""
    ends = accumulate(phase.epochs for phase in phases)
    costs = [
        (phase, frozen_stages(end - 1, phases), phase.batch_size * phase.largest_size**2)
        for phase, end in zip(phases, ends, strict=True)
    ]
    for number, (phase, stages, pixels) in enumerate(costs):
        others = (cost for other, cost in enumerate(costs) if other != number)
        # Of equals, the first.
        exceeded = (
            s <= stages and p >= pixels and ((s, p) != (stages, pixels) or other.name < phase.name)
            for other, s, p in others
        )
        if not any(exceeded):
            yield phase, stages


def _fits(accelerator: Accelerator, step: TrainingStep, batch_size: int, image_size: int) -> bool:
    device, network = accelerator.device, step.network
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            batch = _noise(batch_size, image_size, device)
            # What the optimizer will keep of every parameter from its first step on.
            moments = [torch.empty_like(p) for p in network.parameters() if p.requires_grad for _ in range(2)]
            with accelerator.autocast():
                output = network(batch.images.float() / 255)
            step.losses(output, batch, balance_coefficient=0.0)[TOTAL].backward()
            del output, moments
    except torch.OutOfMemoryError:
        return False
    finally:
        network.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _noise(images: int, size: int, device: torch.device) -> TrainBatch:
    return TrainBatch(
        images=torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, device=device),
        masks=torch.randint(0, 2, (images, 1, size, size), dtype=torch.uint8, device=device),
        indices=torch.arange(images),
        weights=torch.ones(images, device=device),
        problems=[],
    )


def _too_large(
    experiment: Experiment, accelerator: Accelerator, step: TrainingStep, phase: ResolvedPhase
) -> ExperimentError:
    asked, size = phase.batch_size, phase.largest_size
    # By halves, then the largest between: a few steps, each shorter than one of the run.
    fits, too_many = 0, asked
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if _fits(accelerator, step, middle, size) else (fits, middle)
    device = accelerator.device
    gib = f" of {torch.cuda.get_device_properties(device).total_memory / GIB:.1f} GiB" if device.type == "cuda" else ""
    if fits:
        more = phase.accumulate * -(-asked // fits)
        advice = (
            f"{fits} do: phases.{phase.name}.batch_size={fits} with phases.{phase.name}.accumulate={more} is about the "
            "same effective batch"
        )
    else:
        advice = f"not even one does: lower the image_size of {size}"
    if not experiment.model.gradient_checkpointing:
        advice += "; or try model.gradient_checkpointing=true"
    return ExperimentError(
        f'phase "{phase.name}": a batch of {asked} images of {size}² pixels does not fit in the memory{gib} of the '
        f"{device.type} device; {advice}"
    )


def out_of_memory(experiment: Experiment) -> str:
    """What to tell where training runs out of memory all the same."""
    checkpointing = "" if experiment.model.gradient_checkpointing else ", or try model.gradient_checkpointing=true"
    return f"the device's memory is full: {WHAT_TO_LOWER}{checkpointing}; another program may be using it too"
