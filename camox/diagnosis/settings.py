"""Hyper-parameters against each other and against the amount of data: arithmetic, nothing is trained."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from camox.diagnosis.finding import Finding, Problem
from camox.experiment import Experiment, ResolvedPhase
from camox.experiment.lint import training_images
from camox.experiment.schema import Ema
from camox.training.ema import WeightAverage

REFERENCE_LR, REFERENCE_BATCH = 8e-4, 24
"""Rate and effective batch of experiments/sparse_moe_416.toml, in its first phase on one device."""

LR_TOLERANCE = 5.0
"""The shipped recipes are within a factor of 3.1 of the rule."""

LARGEST_INITIAL_SHARE = 0.05
"""Share of the initial weights that an average may still hold at the end of the run."""


class PhaseSteps(NamedTuple):
    """A phase in optimizer steps."""

    phase: ResolvedPhase
    effective_batch: int
    """Images per optimizer step, over all micro-batches and processes."""
    steps_per_epoch: int
    """0 where the data do not fill one micro-batch on every process."""

    @property
    def steps(self) -> int:
        return self.phase.epochs * self.steps_per_epoch

    @property
    def usual_lr(self) -> float:
        """The reference rate, moved to this batch by the square-root rule."""
        return usual_learning_rate(self.effective_batch)


def usual_learning_rate(effective_batch: int) -> float:
    """`lr = reference · √(batch / reference batch)`: what keeps Adam's noise alike (Malladi et al., 2022).

    The linear rule is for SGD. Either is a starting point, not a law.
    """
    return REFERENCE_LR * math.sqrt(effective_batch / REFERENCE_BATCH)


def phase_steps(experiment: Experiment, images: int, processes: int) -> list[PhaseSteps]:
    """The run's phases in steps, when `images` are trained on by that many processes."""
    return [
        PhaseSteps(
            phase,
            phase.batch_size * phase.accumulate * processes,
            -(-(images // (phase.batch_size * processes)) // phase.accumulate),
        )
        for phase in experiment.phases_resolved()
    ]


def check_settings(experiment: Experiment, images: int, processes: int) -> Finding:
    """Batch against rate, warm-up against length, phases against data; and what loading the file has remarked."""
    phases = phase_steps(experiment, images, processes)
    remarks = [_split(remark) for remark in experiment.warnings]
    problems = [
        *remarks,
        *_batches_and_data(experiment, phases, images, processes),
        *_learning_rates(phases),
        *_warm_up(experiment, phases),
    ]
    notes = [
        f"phase {p.phase.name}: {p.phase.epochs} × {p.steps_per_epoch} steps of {p.effective_batch} images, "
        f"lr {p.phase.lr:.2g} (square-root rule: {p.usual_lr:.2g})"
        for p in phases
    ]
    log_every = experiment.tracking.log_every
    rarely = [p.phase.name for p in phases if 0 < p.steps_per_epoch < log_every]
    if rarely:
        notes.append(f"tracking.log_every = {log_every} is more than an epoch of {rarely[0]}: logged once per epoch")
    total = sum(p.steps for p in phases)
    return Finding(
        "settings",
        f"{total} steps on {images} images, {processes} process{'es' * (processes > 1)}",
        tuple(problems),
        tuple(notes),
        {
            "steps": total,
            "reference": {"lr": REFERENCE_LR, "effective_batch": REFERENCE_BATCH, "recipe": "sparse_moe_416.toml"},
            "phases": {
                p.phase.name: {
                    "effective_batch": p.effective_batch,
                    "steps_per_epoch": p.steps_per_epoch,
                    "lr": p.phase.lr,
                    "square_root_rule": p.usual_lr,
                }
                for p in phases
            },
        },
    )


def _split(remark: str) -> Problem:
    """A remark of the file's own lint: what is wrong, then the remedy behind its last colon or semicolon."""
    cut = max(remark.rfind(": "), remark.rfind("; "))
    return Problem("warn", remark[:cut], remark[cut + 2 :]) if cut > 0 else Problem("warn", remark, "change it")


def _batches_and_data(
    experiment: Experiment, phases: Sequence[PhaseSteps], images: int, processes: int
) -> Iterator[Problem]:
    said_by_the_file = training_images(experiment) is not None and processes == 1
    for phase, effective, steps_per_epoch in phases:
        if steps_per_epoch == 0:
            message = (
                f"phase {phase.name}: batch_size {phase.batch_size} × {processes} processes exceeds the {images} "
                "training images, so it cannot take a step"
            )
            yield Problem("fail", message, f"lower batch_size to at most {max(1, images // processes)}")
        elif effective > images and not said_by_the_file:
            message = f"phase {phase.name}: a step takes {effective} images, but there are only {images}"
            yield Problem("warn", message, "lower accumulate or batch_size")


def _learning_rates(phases: Sequence[PhaseSteps]) -> Iterator[Problem]:
    for step in phases:
        ratio = step.phase.lr / step.usual_lr
        if not 1 / LR_TOLERANCE <= ratio <= LR_TOLERANCE:
            how = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
            message = (
                f"phase {step.phase.name}: lr {step.phase.lr:.2g} is {how} what the square-root rule gives for "
                f"{step.effective_batch} images per step (from {REFERENCE_LR:g} for {REFERENCE_BATCH} in "
                "sparse_moe_416.toml)"
            )
            yield Problem("warn", message, f"try about {step.usual_lr:.1g}, or look with --lr-range")


def _warm_up(experiment: Experiment, phases: Sequence[PhaseSteps]) -> Iterator[Problem]:
    epochs, warmup = experiment.epochs, experiment.schedule.warmup_epochs
    steps = round(warmup * phases[0].steps_per_epoch)
    share = warmup / epochs
    if warmup >= epochs:
        return  # the file's lint has said so
    key = f"schedule.warmup_epochs = {warmup:g}"
    if share > 0.5:
        message = f"{key} is {share:.0%} of the run: the peak rate is hardly reached before it falls"
        yield Problem("warn", message, f"try {max(0.5, 0.05 * epochs):.2g}")
    if steps < 10 and share < 0.01 and phases[0].steps_per_epoch:
        message = f"{key} is {steps} steps: AdamW's first steps are as large as the rate, whatever the gradient"
        hundred = math.ceil(10 * 100 / phases[0].steps_per_epoch) / 10
        yield Problem("warn", message, f"warm up over about 100 steps: {hundred:g} epochs")


def check_average(settings: Ema, steps: int) -> Finding:
    """How much of the untrained weights the average still holds after that many steps, by running it on one number."""
    if not settings.enabled:
        return Finding("ema", "off", values={"enabled": False})
    if steps == 0:  # the check of the settings has said why
        return Finding("ema", "nothing to average: the run takes no step")
    share = _initial_share(settings, steps)
    half_life = math.log(0.5) / math.log(settings.decay) if settings.decay > 0 else 0.0
    kind = "with warm-up" if settings.warmup else "without warm-up"
    summary = f"decay {settings.decay:g} {kind}, half-life {half_life:.0f} of {steps} steps: "
    summary += f"{_percent(share)} of the initial weights left at the end"
    problems = []
    if share > LARGEST_INITIAL_SHARE:
        message = f"at the end of the run {_percent(share)} of the average are still the untrained weights"
        largest = LARGEST_INITIAL_SHARE ** (1 / max(steps, 1))
        remedy = f"set ema.warmup = true, or ema.decay to at most {math.floor(largest * 1000) / 1000:g}"
        problems.append(Problem("fail", message, remedy))
    return Finding("ema", summary, tuple(problems), values={"initial_share": share, "half_life": half_life})


def _initial_share(settings: Ema, steps: int) -> float:
    """The average itself, on a weight that starts at 1 and is 0 from then on."""
    probe = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        probe.weight.fill_(1.0)
        average = WeightAverage(probe, settings.decay, settings.warmup)  # type: ignore[arg-type]
        probe.weight.fill_(0.0)
        taken = torch.tensor(True)
        for step in range(steps):
            average.update(taken)
            if step % 100 == 0 and average.state_tensors()["weight"].item() < 1e-6:
                break
    return average.state_tensors()["weight"].item()


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
