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

GIB = 2**30
_NEW_RUN = "a new run (another experiment.name; experiment.init_from may start it from a checkpoint)"


def try_largest_phases(
    experiment: Experiment, accelerator: Accelerator, step: TrainingStep, is_new: bool = True
) -> None:
    """Goes forward and backward once, on noise, with the batches of every phase that no other one exceeds.

    Leaves weights, statistics and random generators as they were, and no gradients. Collective.

    Args:
        is_new: whether the run begins: one that is resumed refuses other batches, so the advice is another.

    Raises:
        ExperimentError: the device's memory is not enough; the message has the largest batch that fits.
    """
    failure = None
    for phase, stages in _largest(experiment.phases_resolved()):
        step.network.freeze_backbone(stages)
        try:
            if failure is None and not _fits(accelerator, step, phase.batch_size, phase.largest_size):
                failure = _too_large(experiment, accelerator, step, phase, is_new)
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
    experiment: Experiment, accelerator: Accelerator, step: TrainingStep, phase: ResolvedPhase, is_new: bool
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
        advice = f"{fits} do: {_in_smaller_batches(phase, fits)} is about the same effective batch"
    else:
        advice = f"not even one does: lower the image_size of {size}"
    if not experiment.model.gradient_checkpointing:
        advice += "; or try model.gradient_checkpointing=true"
    if not is_new:
        advice += (
            f"; the run that is resumed takes none of it: resume on a device with more memory, or start {_NEW_RUN}"
        )
    return ExperimentError(
        f'phase "{phase.name}": a batch of {asked} images of {size}² pixels does not fit in the memory{gib} of the '
        f"{device.type} device; {advice}"
    )


def out_of_memory(experiment: Experiment, phase: ResolvedPhase | None) -> str:
    """What to tell where training runs out of memory all the same, in `phase` or before the first one.

    A resume has to have the same settings, so all that lowers what the run itself needs takes a new run.
    """
    phase = phase or experiment.phases_resolved()[0]
    half = phase.batch_size // 2
    lower = [] if experiment.model.gradient_checkpointing else ["model.gradient_checkpointing=true"]
    lower += [_in_smaller_batches(phase, half)] if half else []
    lower += [f"a phases.{phase.name}.image_size below {phase.image_size}"]
    return (
        "the device's memory is full: where another program filled it, end that one and go on with --resume auto; else "
        f"start {_NEW_RUN} with {' or '.join(lower)}"
    )


def _in_smaller_batches(phase: ResolvedPhase, batch: int) -> str:
    more = phase.accumulate * -(-phase.batch_size // batch)
    return f"phases.{phase.name}.batch_size={batch} with phases.{phase.name}.accumulate={more}"
