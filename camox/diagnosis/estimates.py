"""Memory of an experiment on a card, counted, and time, from a few steps measured here."""

import re
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from camox.diagnosis.accounting import StepAccount
from camox.diagnosis.finding import Finding, Problem
from camox.diagnosis.settings import PhaseSteps, phase_steps
from camox.diagnosis.subject import Subject
from camox.errors import ExperimentError
from camox.experiment import Experiment, ResolvedPhase
from camox.tracking.console import counted, duration

GIB = 2**30

CARDS = {
    "T4": 14.6, "P100": 15.9, "V100": 15.8, "V100-32GB": 31.7, "RTX 3060": 11.8, "RTX 3090": 23.7, "RTX 4090": 23.6,
    "A10G": 22.0, "L4": 22.0, "A100-40GB": 39.4, "L40S": 44.4, "A6000": 47.5, "A100": 79.1, "H100": 79.1,
    "H200": 139.8,
}  # fmt: skip
"""GiB that programs can allocate, a little less than is printed on the box."""

CONTEXT_GIB = 0.6
"""What CUDA and its libraries take on a card before the first tensor. Outside PyTorch's own count."""

WORKSPACE = 0.15
"""Added to what is counted: cuDNN's workspaces, rounding and gaps of the allocator. An assumption, not measured."""


class PhaseMemory(NamedTuple):
    """Bytes on each device in a phase, at its step of most memory."""

    state: int
    """Weights, buffers, their average, and two moments of all trained so far; with several processes DDP's buckets."""
    constant: float
    """What a step needs however few its images: gradients, weights in half precision."""
    per_image: float
    """What it needs for one image more."""
    saved_per_image: float
    """Of these, what autograd keeps from the forward pass."""

    def peak(self, images: int) -> float:
        """Bytes that tensors take at most with micro-batches of that many images."""
        return self.state + self.constant + self.per_image * images

    def needed(self, images: int) -> float:
        """The same with everything that is not a tensor."""
        return with_allowance(self.peak(images))

    def largest_batch(self, capacity: float) -> int:
        """Most images for which `needed` stays within `capacity` bytes; 0 or less where nothing fits."""
        room = (capacity - CONTEXT_GIB * GIB) / (1 + WORKSPACE) - self.state - self.constant
        return int(room // self.per_image)


def with_allowance(tensors: float) -> float:
    """Bytes of a card for so many bytes of tensors."""
    return tensors * (1 + WORKSPACE) + CONTEXT_GIB * GIB


def card_capacity(card: str) -> float:
    """GiB of a card by name or size: "T4", "a100-40gb", "16GiB", "24 GB".

    Raises:
        ExperimentError: neither a size nor a known name.
    """
    if size := re.fullmatch(r"([0-9.]+)\s*(?:GiB|GB|G)", card.strip(), re.IGNORECASE):
        return float(size[1])
    known = {_plain(name): gib for name, gib in CARDS.items()}
    if _plain(card) not in known:
        raise ExperimentError(f'--gpu "{card}" is not known: give its memory, such as 16GiB, or one of {list(CARDS)}')
    return known[_plain(card)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_estimates(subject: Subject, card: str | None, processes: int) -> Finding:
    """Memory of each phase against a card, and the time of an epoch on this machine.

    Args:
        card: name or size; None for the GPU of this machine, if it has one.
        processes: how many devices share an epoch.
    """
    capacity = None if card is None else card_capacity(card)
    device = subject.accelerator.device
    if capacity is None and device.type == "cuda":
        card, capacity = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory / GIB
    half = _computes_in_half(subject.experiment, on_gpu=capacity is not None)
    phases = phase_steps(subject.experiment, len(subject.source), processes)
    memory = _phase_memories(subject, half, processes)
    seconds = _seconds_per_image(subject)
    where = "this GPU" if device.type == "cuda" else f"this machine's CPU, {counted(torch.get_num_threads(), 'thread')}"

    problems = [] if capacity is None else list(_does_not_fit(subject.experiment, phases, memory, card, capacity))
    needs = [m.needed(p.phase.batch_size) / GIB for p, m in zip(phases, memory, strict=True)]
    epochs = [seconds[p.phase.name] * p.effective_batch / processes * p.steps_per_epoch for p in phases]
    total = sum(one * p.phase.epochs for one, p in zip(epochs, phases, strict=True))
    of = f" of {card}'s {capacity:.1f} GiB" if capacity is not None else ""
    notes = [
        f"phase {p.phase.name}: {need:.2f} GiB for {p.phase.batch_size} × {p.phase.largest_size}² "
        f"(state {m.state / GIB:.2f}, activations {m.per_image / GIB:.3f} per image); an epoch {duration(epoch)}"
        for p, m, need, epoch in zip(phases, memory, needs, epochs, strict=True)
    ]
    notes.append(
        f"memory is that of a step's tensors, counted in {'half' if half else 'single'} precision (docs/memory.md), "
        f"+ {WORKSPACE:.0%} and {CONTEXT_GIB} GiB for CUDA; time is measured on {where}, without loading data and "
        "validation"
    )
    if processes > 1:
        notes.append("with several processes DDP keeps each gradient once more: that is in the estimate")
    values: dict[str, Any] = {
        "card": card,
        "capacity_gib": capacity,
        "measured_on": str(device),
        "phases": {
            p.phase.name: {
                "needed_gib": need,
                "state_gib": m.state / GIB,
                "activations_per_image_gib": m.per_image / GIB,
                "saved_per_image_gib": m.saved_per_image / GIB,
                "largest_batch": m.largest_batch(capacity * GIB) if capacity is not None else None,
                "seconds_per_epoch_here": epoch,
            }
            for p, m, need, epoch in zip(phases, memory, needs, epochs, strict=True)
        },
    }
    if device.type == "cuda":
        measured, found = _measured_peaks(subject, phases, memory)
        problems += found
        values["measured_peak_gib"] = measured
        notes += [
            f"phase {name}: {peak:.2f} GiB measured on this GPU in a real step" for name, peak in measured.items()
        ]
    summary = f"at most {max(needs):.2f} GiB per GPU{of}; {duration(total)} of steps on {where}"
    return Finding("estimates", summary, tuple(problems), tuple(notes), values)


def _computes_in_half(experiment: Experiment, on_gpu: bool) -> bool:
    dtype = experiment.precision.dtype
    return dtype in ("fp16", "bf16") or (dtype == "auto" and on_gpu)


def _does_not_fit(
    experiment: Experiment, phases: Sequence[PhaseSteps], memory: Sequence[PhaseMemory], card: str | None, gib: float
) -> Iterator[Problem]:
    for step, needs in zip(phases, memory, strict=True):
        phase, need = step.phase, needs.needed(step.phase.batch_size) / GIB
        if need <= 0.95 * gib:
            continue
        largest = needs.largest_batch(0.95 * gib * GIB)
        remedy = f"at most {largest} images fit: lower batch_size and raise accumulate" if largest > 0 else ""
        if not experiment.model.gradient_checkpointing:
            remedy += ("; or " if remedy else "") + "set model.gradient_checkpointing = true"
        message = f"phase {phase.name} needs about {need:.1f} GiB, and {card} has {gib:.1f}"
        problem = Problem("fail" if need > gib else "warn", message, remedy or "lower image_size or model.width")
        yield problem


# ---- memory


def _phase_memories(subject: Subject, half: bool, processes: int) -> list[PhaseMemory]:
    """Of each phase its own step, and one of half as many images for what an image takes."""
    account = StepAccount(subject.experiment, subject.network, half)
    memories = []
    for phase, stages in zip(subject.experiment.phases_resolved(), subject.frozen_by_phase, strict=True):
        images, other = phase.batch_size, phase.batch_size // 2 or 2
        asked, compared = (
            account.count(number, phase.largest_size, stages, phase.accumulate > 1) for number in (images, other)
        )
        kept = (asked.kept - compared.kept) / (images - other)
        # Of few images the peak may be elsewhere, among the gradients of weights, and grow more slowly.
        per_image = max(kept, (asked.peak - compared.peak) / (images - other))
        # DDP holds gradients a second time, in its buckets.
        state = asked.state + (asked.gradients if processes > 1 else 0)
        memories.append(PhaseMemory(state, asked.peak - per_image * images, per_image, kept))
    return memories


# ---- time


def _seconds_per_image(subject: Subject) -> dict[str, float]:
    """Phase → seconds per image of the trainer's own step, the mean over its sizes."""
    seconds: dict[str, float] = {}
    measured: dict[tuple[int, int], float] = {}
    for phase, stages in zip(subject.experiment.phases_resolved(), subject.frozen_by_phase, strict=True):
        for size in phase.image_sizes:
            if (size, stages) not in measured:
                measured[size, stages] = _seconds_at(subject, phase, size, stages)
        seconds[phase.name] = statistics.fmean(measured[size, stages] for size in phase.image_sizes)
    return seconds


def _seconds_at(subject: Subject, phase: ResolvedPhase, size: int, stages: int) -> float:
    """Per image of that size, the better of two steps after one to warm up."""
    trial = subject.trial(stages)
    batch = subject.batch(min(subject.images, max(phase.batch_size, 2)), size)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        trial.take_step(batch, 0.0)
        times.append((time.perf_counter() - started) / len(batch.images))
    return min(times[1:])


def _measured_peaks(
    subject: Subject, phases: Sequence[PhaseSteps], memory: Sequence[PhaseMemory]
) -> tuple[dict[str, float], list[Problem]]:
    """A whole step of each phase on this GPU: phase → GiB at the peak, and what is wrong with the estimate."""
    peaks: dict[str, float] = {}
    problems = []
    for step, estimate, stages in zip(phases, memory, subject.frozen_by_phase, strict=True):
        phase = step.phase
        if len(subject.source) < phase.batch_size:
            continue
        subject.accelerator.free_memory()  # of the trial before: else it would be missing from the difference
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            before = torch.cuda.memory_allocated()
            trial, batch = subject.trial(stages), subject.batch(phase.batch_size, phase.largest_size)
            for _ in range(2):
                trial.take_step(batch, 0.0)
            peaks[phase.name] = (torch.cuda.max_memory_allocated() - before) / GIB
        except torch.cuda.OutOfMemoryError:
            message = f"phase {phase.name}: this GPU ran out of memory in a step of {phase.batch_size} images"
            problems.append(Problem("fail", message, "lower batch_size and raise accumulate"))
            continue
        if peaks[phase.name] * GIB > estimate.needed(phase.batch_size):
            message = f"phase {phase.name}: {peaks[phase.name]:.2f} GiB measured is more than estimated"
            problems.append(Problem("warn", message, "believe the measured value, on this card and on others"))
    return peaks, problems
