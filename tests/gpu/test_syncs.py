"""Between two logged steps the host never waits for the device, but for the one copy that tells who goes to whom."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from camox.data.loading import TrainBatch
from camox.diagnosis.subject import Subject, Trial, build_subject
from camox.stability.spikes import SpikeDetector
from camox.training.step import Controls

pytestmark = pytest.mark.gpu
STEPS = 3


@pytest.fixture(params=["fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def trained(subject: Subject) -> tuple[Trial, TrainBatch]:
    """A trial after two steps: memory is allocated, kernels are chosen, the optimizer has its moments."""
    trial, batch = subject.trial(), subject.batch()
    stability = subject.experiment.stability
    trial.step.spikes = SpikeDetector(stability.spike_threshold, stability.spike_patience, subject.accelerator.device)
    take(trial, batch, 2)
    torch.cuda.synchronize()
    return trial, batch


def take(trial: Trial, batch: TrainBatch, steps: int) -> None:
    for _ in range(steps):
        trial.step(trial.shell, [batch], Controls(1e-3, 1e-3, noise_share=1.0))


def test_with_masks_nothing_waits(tiny_experiment, precision):
    experiment = tiny_experiment("model.moe.dispatch='masked'", f"precision.dtype='{precision}'", "model.width=16")
    trial, batch = trained(build_subject(experiment))
    with sync_debug("error"):
        take(trial, batch, STEPS)


def test_with_sorting_one_copy_in_each_forward_pass_waits(tiny_experiment, precision):
    experiment = tiny_experiment("model.moe.dispatch='sorted'", f"precision.dtype='{precision}'", "model.width=16")
    trial, batch = trained(build_subject(experiment))
    with sync_debug("warn"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        take(trial, batch, STEPS)
    waits = [warning for warning in seen if "synchroniz" in str(warning.message)]
    assert len(waits) == STEPS, [f"{warning.filename}:{warning.lineno}" for warning in waits]
