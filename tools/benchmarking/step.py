"""Suite `step`: one whole training step of the sparse network against its twins, a rival, and rivals' backbones.

And the trainer's loop against a bare one: see `benchmarking.loop`.

The step is the trainer's own: forward, objective with the default weights, router losses, backward, clipping by group,
fused AdamW, weight average, gradients dropped. With routing noise untrained
routers choose all experts about equally often. Of the backbones only the forward and
backward pass is timed: less than a step of the networks that are built on them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarking import cuda
from benchmarking.counters import forward_counts
from benchmarking.loop import BARE, TRAINER, loop_targets, measure_loops, noise
from benchmarking.networks import build_network
from benchmarking.report import Report, Rows, Target, quotient
from benchmarking.rivals import BACKBONES, backbone_step
from benchmarking.settings import Settings
from benchmarking.timing import UNIT, Sample, Work, figures, interleaved, matrix_product, ratio, wall_ratio
from camox.experiment.network import Balance
from camox.experiment.schema import Ema, Loss, Optimizer, Stability
from camox.losses.composite import SegmentationObjective
from camox.models.balance import RoutingObjective
from camox.models.camoxpert import CamoXpert
from camox.stability.spikes import SpikeDetector
from camox.training.ema import WeightAverage
from camox.training.optimization import build_optimizer
from camox.training.phases import TrainingShell
from camox.training.step import Controls, TrainingStep

VARIANTS = ("sparse", "dense", "static", "random", "no_experts", "per_image_loop")
"""The variants of the network that are measured."""


class Variant(NamedTuple):
    """A network on its device, with what trains it on one batch."""

    network: CamoXpert
    training_step: TrainingStep
    forward: Callable[[], object]
    step: Work


def measure_steps(settings: Settings) -> Report:
    """Counts for each variant by itself, then times for all of them in interleaved rounds."""
    networks: Rows = {name: _counts(name, settings) for name in VARIANTS}
    results: dict[str, Rows] = {"networks": networks}
    if settings.on_gpu:
        results["waits for the device"] = _waits(settings)

    works = {name: prepare(name, settings).step for name in VARIANTS}
    works |= {name: backbone_step(name, settings) for name in BACKBONES}
    works[UNIT] = matrix_product(settings.torch_device)
    samples = interleaved(works, settings.rounds, settings.torch_device)
    for name, row in networks.items():
        networks[name] = {**figures(samples[name]), **_units(samples[name], samples[UNIT], settings.batch), **row}
    results["backbones alone"] = {
        name: {
            "network": network,
            **figures(samples[name]),
            **_units(samples[name], samples[UNIT], settings.batch),
        }
        for name, network in BACKBONES.items()
    }
    results["unit"] = {UNIT: figures(samples[UNIT])}
    del works
    loops = measure_loops(settings)
    results["loops"] = {name: figures(of_loop) for name, of_loop in loops.items()}

    others = [name for name in VARIANTS if name != "sparse"]
    ratios: Rows = {
        "step time": {f"sparse / {name}": ratio(samples["sparse"], samples[name]) for name in [*others, *BACKBONES]},
        "loop time": {f"{TRAINER} / {BARE}": ratio(loops[TRAINER], loops[BARE])},
        "saved bytes": {f"sparse / {name}": quotient(networks, "saved_bytes", "sparse", name) for name in others},
    }
    return Report(results, ratios, _targets(networks["sparse"], ratios, settings), settings.of_targets)


def _units(samples: Sequence[Sample], unit: Sequence[Sample], batch: int) -> dict[str, Any]:
    return {
        "units_per_image": ratio(samples, unit, 1 / batch),
        "wall_units_per_image": wall_ratio(samples, unit, 1 / batch),
    }


def prepare(name: str, settings: Settings) -> Variant:
    """A variant of the network with an optimizer and a batch of noise of its own."""
    network = build_network(name, settings)
    accelerator = settings.accelerator()
    optimizer_settings, stability, balance = Optimizer(), Stability(), Balance()
    optimizer = build_optimizer(network, {}, optimizer_settings.weight_decay, optimizer_settings.betas, fused=True)
    training_step = TrainingStep(
        accelerator,
        network,
        accelerator.prepare(optimizer),
        SegmentationObjective(Loss().plain()),
        average=WeightAverage(network, Ema().decay, Ema().warmup),
        skip_nonfinite=True,
        spikes=SpikeDetector(stability.spike_threshold, stability.spike_patience, settings.torch_device),
        routing_objective=RoutingObjective(balance.kind, balance.z_loss),
        clip=optimizer_settings.clip,
        router_clip=optimizer_settings.router_clip,
    )
    shell = accelerator.prepare(TrainingShell(network), device_placement=[False])
    controls = Controls(learning_rate=1e-5, balance_coefficient=balance.coefficient, noise_share=1.0)
    batch = noise(settings).to(settings.torch_device)
    return Variant(
        network,
        training_step,
        forward=lambda: shell(batch.images.float() / 255),
        step=lambda: training_step(shell, [batch], controls),
    )


def _counts(name: str, settings: Settings) -> dict[str, Any]:
    """What is counted of a variant while it is alone on the device."""
    variant = prepare(name, settings)
    row: dict[str, Any] = forward_counts(variant.forward, variant.network, settings.batch, settings.torch_device)
    if settings.on_gpu:
        row["peak_bytes"] = cuda.peak_bytes(variant.step)
        del variant
        cuda.release_memory()
    return row


def _waits(settings: Settings) -> Rows:
    """The sorted dispatch has its one copy of the routing; with the masked one nothing in a step may wait."""
    return {
        "sorted": {"per_step": cuda.waits(prepare("sparse", settings).step)},
        "masked": {"first": cuda.first_wait(prepare("masked", settings).step) or "none"},
    }


def _targets(sparse: dict[str, Any], ratios: Rows, settings: Settings) -> list[Target]:
    step_time = ratios["step time"]
    return [
        Target("step time, sparse / dense", 0.63, step_time["sparse / dense"]["median"]),
        Target("step time, sparse / static", 1.08, step_time["sparse / static"]["median"]),
        Target("step time, sparse / no_experts", 1.5, step_time["sparse / no_experts"]["median"]),
        *loop_targets(ratios["loop time"][f"{TRAINER} / {BARE}"], settings),
        Target("sparse, units per image", 8, sparse["units_per_image"]["median"]),
        Target("sparse, GMAC per image", 14, sparse["gmac_per_image"]),
        Target("sparse, million parameters", 30, sparse["parameters_millions"]),
        Target("saved bytes, sparse / dense", 0.75, ratios["saved bytes"]["sparse / dense"]),
        Target("sparse, host copies per forward", 1, sparse["host_copies_per_forward"]),
    ]
