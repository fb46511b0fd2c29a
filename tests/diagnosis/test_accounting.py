"""A step's memory as counted without computing it: what a real step takes, by the record of the allocator."""

from functools import partial

import pytest
import torch
from torch.profiler import profile

from camox.data.loading import TrainBatch
from camox.diagnosis.accounting import StepAccount, even_sizes
from camox.diagnosis.half_precision import autocast_as_on_a_gpu
from camox.models.camoxpert import CamoXpert
from camox.training.building import build_training_step
from camox.training.phases import TrainingShell
from camox.training.processes import build_accelerator
from camox.training.step import Controls

EACH_EXPERT_SEES_ALL = "model.moe.top_k=6"
"""Then the sizes of sub-batches do not depend on what an untrained router decides."""


@pytest.fixture
def account(tiny_experiment):
    """Accounts of a small network, at any size: nothing is computed."""

    def make(*overrides, half=False):
        experiment = tiny_experiment("model.moe.scales=[4]", "model.refinement_steps=0", *overrides)
        return StepAccount(experiment, CamoXpert.from_experiment(experiment), half)

    return make


class RealStep:
    """The trainer's step with computed numbers, on the CPU, in the types that a GPU would give them."""

    def __init__(self, experiment, half):
        self.network = CamoXpert.from_experiment(experiment).train()
        self.step = build_training_step(experiment, build_accelerator(experiment), self.network)
        self.forward = torch.autocast("cpu", torch.float16, enabled=half)(TrainingShell(self.network).forward)

    def take(self, images, size, accumulates=False):
        if accumulates:
            for parameter in self.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        with autocast_as_on_a_gpu():
            self.step(self.forward, [noise(images, size)], Controls(1e-4, 1.0, noise_share=1.0))

    def measured_peak(self, images, size, accumulates):
        """Most bytes that the CPU's allocator had given out at once in a step, beside those of the step before it."""
        self.take(images, size)
        with profile(profile_memory=True) as record:
            self.take(images, size, accumulates)
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return peak


def noise(images, size):
    draw = partial(torch.randint, dtype=torch.uint8)
    return TrainBatch(
        draw(0, 256, (images, 3, size, size)), draw(0, 2, (images, 1, size, size)), torch.arange(images),
        torch.ones(images), [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("half", "checkpointing", "accumulates"),
    [
        (False, False, False),
        pytest.param(True, True, True, marks=pytest.mark.slow),
        pytest.param(True, False, False, marks=pytest.mark.slow),
    ],
)
def test_the_count_is_what_the_allocator_gives_out(tiny_experiment, half, checkpointing, accumulates):
    """To 1 %: kernels take little beside their results where maps are large and weights small, as here."""
    overrides = EACH_EXPERT_SEES_ALL, "model.width=32", f"model.gradient_checkpointing={str(checkpointing).lower()}"
    experiment = tiny_experiment(*overrides)
    counted = StepAccount(experiment, CamoXpert.from_experiment(experiment), half).count(4, 96, 0, accumulates)
    measured = RealStep(experiment, half).measured_peak(4, 96, accumulates)
    assert counted.peak == pytest.approx(measured, rel=0.01)


def test_the_state_is_what_a_run_holds(tiny_experiment):
    experiment = tiny_experiment("model.moe.scales=[4]")
    counted = StepAccount(experiment, CamoXpert.from_experiment(experiment), half=False).count(2, 32, 0)
    real = RealStep(experiment, half=False)
    real.take(2, 32)
    of_network = sum(tensor.nbytes for tensor in (*real.network.parameters(), *real.network.buffers()))
    moments = sum(tensor.nbytes for of in real.step.optimizer.state.values() for tensor in of.values())
    assert (counted.weights, counted.average, counted.moments) == (of_network, of_network, moments)
    assert counted.gradients == sum(parameter.nbytes for parameter in real.network.parameters())
    assert counted.total == counted.state + counted.peak


def test_frozen_stages_have_no_gradients_and_keep_the_moments_they_had(account):
    counting = account("ema.enabled=false")
    frozen, full, again = (counting.count(2, 32, stages) for stages in (4, 0, 4))
    backbone = full.gradients - frozen.gradients
    assert full.weights > backbone > 0
    assert full.moments - frozen.moments == pytest.approx(2 * backbone, rel=1e-3)  # and a number of steps for each
    assert again.moments == full.moments
    assert again.gradients == frozen.gradients
    assert frozen.kept < full.kept
    assert full.average == 0


def test_half_precision_checkpointing_and_size_count(account):
    single, half = account("model.width=32"), account("model.width=32", half=True)
    again = account("model.width=32", "model.gradient_checkpointing=true").count(4, 512, 0)
    plain, halved = single.count(4, 512, 0), half.count(4, 512, 0)
    assert 0.5 < halved.kept / plain.kept < 0.7  # norms, routers, spectra and losses stay in single precision
    assert halved.state == plain.state == again.state
    assert again.kept < 0.7 * plain.kept
    assert again.peak < 0.8 * plain.peak
    assert single.count(4, 1024, 0).kept == pytest.approx(4 * plain.kept, rel=0.01)


def test_gradients_of_earlier_micro_batches_are_there_when_the_last_begins(account):
    counting = account()
    alone, last = (counting.count(2, 64, 0, accumulates) for accumulates in (False, True))
    assert last.kept - alone.kept == alone.gradients


def test_what_is_kept_depends_on_which_experts_get_the_images(account):
    """Edges and attention keep the most, frequencies and surroundings the least: benchmarks/results/moe.json."""
    counting = account("model.width=32")
    decided = ([0, 6, 0, 0, 6, 0], [2] * 6, [0, 0, 0, 6, 0, 6])
    most, even, least = (
        counting.count(6, 512, 4, sizes=lambda choices, experts, sizes=sizes: sizes).kept for sizes in decided
    )
    assert most > even > least


def test_even_sizes_add_up():
    assert even_sizes(24, 6) == [4] * 6
    assert even_sizes(16, 6) == [3, 3, 3, 3, 2, 2]


def test_the_network_that_is_counted_stays_as_it_was(tiny_experiment):
    experiment = tiny_experiment("model.moe.scales=[4]")
    network = CamoXpert.from_experiment(experiment).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    StepAccount(experiment, network, half=True).count(2, 32, 2)
    assert not network.training
    assert network.backbone.frozen_stages == 0
    for name, tensor in network.state_dict().items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, before[name]), name
