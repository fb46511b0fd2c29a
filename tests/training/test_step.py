"""One optimizer step: accumulation, skipping under fp16 and fp32, and what a skipped step leaves alone."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from camox.data.loading import TrainBatch
from camox.losses.composite import SegmentationObjective
from camox.models.balance import RoutingObjective
from camox.models.camoxpert import CamoXpert
from camox.stability.guards import StepReport
from camox.stability.spikes import SpikeDetector
from camox.training import step as step_module
from camox.training.ema import WeightAverage
from camox.training.optimization import build_optimizer
from camox.training.phases import TrainingShell
from camox.training.step import Controls, TrainingStep
from tests.conftest import fp16_accelerator

CONTROLS = Controls(learning_rate=1e-3, balance_coefficient=1e-3, noise_share=0.0)
# An image that makes activations infinite: what a poisoned sample or an overflow does to a step.
POISON = float("inf")


class Bench:
    """A training step with everything it acts on."""

    def __init__(self, fp16: bool = False, fused: bool = True, **network: Any):
        torch.manual_seed(0)
        self.accelerator = fp16_accelerator(growth_interval=3) if fp16 else Accelerator(cpu=True)
        self.network = CamoXpert("resnet10t", width=8, **network).train()
        optimizer = build_optimizer(self.network, {}, 1e-4, (0.9, 0.999), fused=fused)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.shell = self.accelerator.prepare(TrainingShell(self.network))
        self.average = WeightAverage(self.network, 0.99, warmup=True)
        self.steps = 0
        self.step = TrainingStep(
            self.accelerator,
            self.network,
            self.optimizer,
            SegmentationObjective({"structure": 1.0, "boundary": 0.5, "deep": 0.5, "uncertainty": 0.1}),
            self.average,
            True,
            SpikeDetector(8.0, 3, self.accelerator.device),
            RoutingObjective("band", z_loss=1e-4),
            clip=0.5,
            router_clip=0.1,
        )

    def take(self, *batches: TrainBatch) -> StepReport:
        self.step(self.shell, batches, CONTROLS)
        self.steps += 1
        (report,) = self.step.reports(self.steps)
        return report

    def tensors(self) -> dict[str, torch.Tensor]:
        state = {f"model/{k}": v for k, v in self.network.state_dict().items()}
        state |= {f"ema/{k}": v for k, v in self.average.state_tensors().items()}
        for number, of_parameter in self.optimizer.optimizer.state_dict()["state"].items():
            state |= {f"optimizer/{number}/{k}": v for k, v in of_parameter.items()}
        return {name: value.clone() for name, value in state.items()}


def batch(seed: int, size: int = 4) -> TrainBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    masks = (torch.rand(size, 1, 32, 32, generator=generator) > 0.5).to(torch.uint8)
    return TrainBatch(images, masks, torch.arange(size), torch.ones(size), [])


def poisoned(seed: int) -> TrainBatch:
    good = batch(seed)
    images = good.images.float()
    images[0] = POISON
    return TrainBatch(images, good.masks, good.indices, good.weights, [])


@pytest.fixture(params=["fp16", "fused fp32", "plain fp32"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(fp16=request.param == "fp16", fused=request.param != "plain fp32")


def test_a_step_trains_every_part(bench):
    before = bench.tensors()
    bench.take(batch(0))
    after = bench.tensors()
    for part in ("model/backbone", "model/routers", "model/mixtures", "model/heads", "ema/heads", "model/balances"):
        names = [name for name in before if name.startswith(part)]
        assert any(not torch.equal(before[n], after[n]) for n in names), part


def test_recovery_can_tighten_the_routers_clipping(monkeypatch):
    limits = []
    clip = step_module.clip_gradients
    monkeypatch.setattr(step_module, "clip_gradients", lambda *given: limits.append(given[1:]) or clip(*given))
    bench = Bench()
    bench.step(bench.shell, [batch(0)], replace(CONTROLS, router_clip=0.5))
    assert limits == [(0.05, 0.5)]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*")
def test_a_step_with_infinite_gradients_changes_nothing_and_training_goes_on(bench):
    bench.take(batch(0))
    before = bench.tensors()
    scale = None if bench.accelerator.scaler is None else bench.accelerator.scaler.get_scale()
    report = bench.take(poisoned(1))
    after = bench.tensors()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    if scale is not None:
        assert bench.accelerator.scaler.get_scale() == scale / 2
    assert (report.step, report.taken, report.finite, report.spike) == (2, False, False, False)
    assert "loss" in report.terms

    report = bench.take(batch(2))
    assert (report.step, report.taken, report.terms) == (3, True, ())
    moved = bench.tensors()
    assert not torch.equal(before["model/heads.0.weight"], moved["model/heads.0.weight"])
    assert all(value.isfinite().all() for value in moved.values() if value.is_floating_point())


@pytest.mark.parametrize("fused", [True, False])
def test_after_a_skipped_step_training_is_as_if_it_had_not_been(fused):
    """In fp32, where no scale has changed: the moments and step counts of the optimizer are those of taken steps."""
    bench, twin = Bench(fused=fused), Bench(fused=fused)
    bench.take(batch(0))
    bench.take(poisoned(1))
    bench.take(batch(2))
    twin.take(batch(0))
    twin.take(batch(2))
    ours, theirs = bench.tensors(), twin.tensors()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_one_poisoned_micro_batch_skips_the_whole_window(bench):
    before = bench.tensors()
    bench.take(batch(0), poisoned(1), batch(2))
    after = bench.tensors()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name in after)


def test_the_scale_grows_after_an_interval_without_overflow():
    bench = Bench(fp16=True)
    for seed in range(3):
        bench.take(batch(seed))
    assert bench.accelerator.scaler.get_scale() == 2048


def test_the_loss_scale_divides_out(monkeypatch):
    """Unscaled before clipping, or norms and limits would be 1024 times off. fp32, so that nothing else differs."""
    scaled = Bench(fp16=True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    scaled.shell.forward = lambda images: scaled.network(images)
    plain = Bench()
    for bench in (plain, scaled):
        for seed in range(2):
            bench.take(batch(seed))
    ours, theirs = plain.tensors(), scaled.tensors()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_fp16_computes_in_half_precision_but_for_what_must_not():
    bench = Bench(fp16=True)
    output = bench.shell(batch(0).images.float() / 255)
    assert output.deep[0].dtype == torch.float16
    assert output.logits.dtype == output.boundary_log_variance.dtype == torch.float32
    assert {tensor.dtype for r in output.routing.values() for tensor in r if tensor.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize("windows", [2, 3])
def test_a_window_has_the_gradient_of_its_mean(windows):
    """Also the short window at an epoch's end: each image weighs the same, whatever the window's length."""
    batches = [batch(seed) for seed in range(windows)]
    bench = Bench()
    gradients: dict[str, torch.Tensor] = {}
    record(bench, gradients)
    bench.take(*batches)

    reference = Bench()
    reference.network.anneal_routing_noise(0.0)
    total = torch.zeros(())
    for one in batches:
        output = reference.network(one.images.float() / 255)
        total = total + reference.step.losses(output, one, CONTROLS.balance_coefficient)["loss/loss"]
    (total / windows).backward()
    for name, parameter in reference.network.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def record(bench: Bench, gradients: dict[str, torch.Tensor]) -> None:
    unscale: Callable = bench.accelerator.unscale_gradients

    def unscale_and_record(optimizer) -> None:
        unscale(optimizer)
        gradients.update({name: p.grad.clone() for name, p in bench.network.named_parameters()})

    bench.accelerator.unscale_gradients = unscale_and_record


@pytest.mark.parametrize("granularity", ["image", 2])
def test_balance_counts_the_images_of_all_micro_batches_of_a_step(granularity):
    bench = Bench(granularity=granularity)
    seen = []
    for stride in bench.network.scales:
        balance = bench.network.balance(stride)
        balance.update = lambda counts, taken, seen=seen: seen.append(counts)
    bench.take(batch(0, size=4), batch(1, size=3))
    assert [counts.sum().item() for counts in seen] == [7 * 2] * 4
