"""Memory of the main recipe, measured; what does not fit is found before training, with what does."""

from pathlib import Path

import pytest
import torch

from camox.diagnosis.estimates import CARDS, GIB, check_estimates
from camox.diagnosis.subject import build_subject
from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.training.memory import try_largest_phases

pytestmark = pytest.mark.gpu
RECIPE = Path(__file__).resolve().parents[2] / "experiments/sparse_moe_416.toml"
ON_NOISE = (
    'data.train=[{synthetic="habitats", count=40, size=416}]', "data.test=[]", "data.workers=0",
    "model.pretrained=false",
)  # fmt: skip


def test_the_recipe_at_batch_12_fits_a_small_card_and_its_estimate(tmp_path):
    """Each phase at its own batch: 12 with a frozen backbone, 8 with all of it."""
    subject = build_subject(Experiment.load(RECIPE, ON_NOISE, tmp_path))
    finding = check_estimates(subject, card=None, processes=1)
    for phase in subject.experiment.phases_resolved():
        measured = finding.values["measured_peak_gib"][phase.name]
        needed = finding.values["phases"][phase.name]["needed_gib"]
        print(f"{phase.name}: {phase.batch_size} × {phase.image_size}²: {measured:.2f} GiB, estimated {needed:.2f}")
        assert measured < CARDS["T4"]
        assert measured <= needed


def test_a_batch_that_does_not_fit_is_found_with_one_that_does(tmp_path):
    subject = build_subject(Experiment.load(RECIPE, [*ON_NOISE, "phases.full.batch_size=2000"], tmp_path))
    trial = subject.trial()
    with pytest.raises(ExperimentError, match=r'phase "full": a batch of 2000 .* GiB .*; \d+ do: ') as caught:
        try_largest_phases(subject.experiment, subject.accelerator, trial.step)
    print(caught.value)
    assert torch.cuda.memory_allocated() < 2 * GIB


def test_the_recipe_itself_passes(tmp_path):
    subject = build_subject(Experiment.load(RECIPE, ON_NOISE, tmp_path))
    try_largest_phases(subject.experiment, subject.accelerator, subject.trial().step)
    assert torch.cuda.max_memory_allocated() < CARDS["T4"] * GIB
