"""One optimizer step: accumulate, unscale once, clip by group, step or skip on every rank alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from camox.data.loading import TrainBatch
from camox.losses.composite import SegmentationObjective
from camox.models.balance import RoutingObjective
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.models.router import count_choices
from camox.stability.guards import StepReport
from camox.stability.spikes import SpikeDetector
from camox.training.ema import WeightAverage
from camox.training.meters import Meters
from camox.training.optimization import GradientNorms, clip_gradients, set_learning_rate
from camox.training.routing import routing_sums
from camox.training.telemetry import training_values

ROUTER_LOSSES = {
    "balance": "router/balance_loss",
    "z_loss": "router/z_loss",
    "entropy": "router/entropy_loss",
    "mutual_information": "router/mutual_information_loss",
}
"""Logged names of the routing objective's terms."""
TOTAL = "loss/loss"
"""Name of the sum that is minimised."""
TERM_PREFIXES = ("loss/", *ROUTER_LOSSES.values())
"""How the names of what is minimised begin; the first is the sum of all."""


@dataclass(frozen=True)
class Controls:
    """What the schedule sets for one step."""

    learning_rate: float
    balance_coefficient: float
    noise_share: float
    router_rate: float = 1.0
    """Factor on the routers' learning rate, beside their group's own."""
    router_clip: float = 1.0
    """Factor on the routers' clipping limit."""


class TrainingStep:
    """Takes one optimizer step at a time; nothing in it waits for the device but the routing's one copy.

    A step whose loss or gradient is not finite, or far above the last ones, is skipped on every rank (the norm is of
    reduced gradients and the loss is shared, so ranks decide alike) and leaves weights, norm statistics, average,
    balance and meters as they were. Only the position in the schedule moves on: it is a function of attempted steps.

    Args:
        skip_nonfinite: whether steps that are not finite are skipped.
        spikes: says which others are; None for none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: CamoXpert,
        optimizer: AcceleratedOptimizer,
        objective: SegmentationObjective,
        average: WeightAverage | None,
        skip_nonfinite: bool,
        spikes: SpikeDetector | None,
        routing_objective: RoutingObjective,
        clip: float,
        router_clip: float,
    ):
        self.accelerator = accelerator
        self.network = network
        self.optimizer = optimizer
        self.objective = objective
        self.average = average
        self.skip_nonfinite = skip_nonfinite
        self.spikes = spikes
        self.routing_objective = routing_objective
        self.clip = clip
        self.router_clip = router_clip
        self.batch_meters = Meters()
        self.step_meters = Meters()
        self._window_meters = Meters()
        self._term_names: list[str] = []
        self._signs: list[Tensor] = []
        # Walked once: a walk of all modules with each step takes longer than to clip what it finds.
        self._parameters = list(network.named_parameters())
        self._norm_statistics = [
            buffer
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for buffer in module.buffers()
        ]

    def __call__(self, shell: nn.Module, window: Sequence[TrainBatch], controls: Controls) -> None:
        """Trains `shell`, the prepared wrapper of the network, on the micro-batches of `window`."""
        set_learning_rate(self.optimizer, controls.learning_rate, controls.router_rate)
        self.network.anneal_routing_noise(controls.noise_share)
        statistics = [buffer.clone() for buffer in self._norm_statistics]
        choices: list[Tensor] = []
        for position, batch in enumerate(window):
            last = position == len(window) - 1
            # Gradients travel between ranks once per step, with the last micro-batch.
            with nullcontext() if last else self.accelerator.no_sync(shell):
                output = shell(batch.images.float() / 255)
                losses = self.losses(output, batch, controls.balance_coefficient, self._mean_over_ranks)
                self._meter_batch(output, batch, losses)
                # The true length of the window: the short one at an epoch's end weighs as much per image.
                self.accelerator.backward(losses[TOTAL] / len(window))
            if self.network.learns_routing:
                choices.append(self._choices(output))
        norms = self._clip(controls.router_clip * self.router_clip)
        counts = torch.stack(choices).sum(dim=0) if choices else None
        loss, terms, counts = self._shared(counts, len(window))
        taken = self._judge(loss, terms, norms)
        self._step_or_skip(taken)
        self._restore(statistics, taken)
        if counts is not None:
            self._update_balance(counts, taken)
        if self.average is not None:
            self.average.update(taken)
        self.batch_meters.take(self._window_meters, taken)
        self._meter_step(norms, taken)

    def interval_values(self, costs: Mapping[str, float]) -> dict[str, Any]:
        """What is logged of the steps since the last call, by its names. Collective; waits for the device."""
        batches = self.batch_meters.read(lambda sums: self.accelerator.reduce(sums, "sum"))
        steps = self.step_meters.read(lambda sums: sums)
        network = self.network
        values: dict[str, Any] = training_values(batches, steps, costs, network.scales, network.learns_routing)
        values |= {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        for stride in network.scales if network.learns_routing else ():
            values[f"router/stride_{stride}/bias_max"] = network.balance(stride).bias.abs().max().item()
        if self.accelerator.scaler is not None:
            values["amp/scale"] = self.accelerator.scaler.get_scale()
        if self.accelerator.device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def restart(self) -> None:
        """Forgets what the last steps were like, and what was summed of them: the state was replaced."""
        self._signs = []
        for meters in (self.batch_meters, self.step_meters):
            meters.load({})
        if self.spikes is not None:
            self.spikes.reset()

    def reports(self, last: int) -> list[StepReport]:
        """What became of the steps since the last call, the newest of which is step `last`. Waits for the device."""
        if not self._signs:
            return []
        rows = torch.stack(self._signs).tolist()
        self._signs = []
        return [
            StepReport(
                step=last - len(rows) + 1 + number,
                taken=bool(taken),
                loss=loss,
                norm=norm,
                finite=bool(finite),
                spike=bool(spike),
                only_routers=bool(only_routers),
                terms=tuple(name for name, sound in zip(self._term_names, terms, strict=True) if not sound),
            )
            for number, (taken, loss, norm, finite, spike, only_routers, *terms) in enumerate(rows)
        ]

    def _clip(self, router_limit: float) -> GradientNorms:
        self.accelerator.unscale_gradients(self.optimizer)
        return clip_gradients(self._parameters, router_limit, self.clip)

    def _shared(self, counts: Tensor | None, window: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The mean loss over micro-batches and ranks, which of its terms are finite on all of them, and the choices of
        all ranks: one reduction."""
        sums = {name: value for name, value in self._window_meters.state().items() if name.startswith(TERM_PREFIXES)}
        self._term_names = [name.rpartition("/")[2] for name in sums]
        values = torch.stack(list(sums.values()))
        bad = (~values.isfinite()).float()
        parts = [values[:1] / window, bad] + ([] if counts is None else [counts.float().flatten()])
        everything = self.accelerator.reduce(torch.cat(parts), "sum")
        loss = everything[0] / self.accelerator.num_processes
        terms, rest = everything[1 : 1 + len(bad)] == 0, everything[1 + len(bad) :]
        return loss, terms, None if counts is None else rest.view(counts.shape)

    def _judge(self, loss: Tensor, terms: Tensor, norms: GradientNorms) -> Tensor:
        """Whether the step is taken, and the signs by which the host will know why not."""
        finite = norms.total.isfinite() & loss.isfinite()
        spike = torch.zeros_like(finite) if self.spikes is None else self.spikes.update(loss, norms.total) & finite
        taken = ~spike
        if self.skip_nonfinite:
            taken = taken & finite
        others = torch.stack([norm for name, norm in norms.groups.items() if name != "router"])
        only_routers = ~norms.groups["router"].isfinite() & others.isfinite().all()
        signs = [taken, loss, norms.total, finite, spike, only_routers]
        self._signs.append(torch.cat([torch.stack([sign.float() for sign in signs]), terms.float()]))
        return taken

    def losses(
        self,
        output: CamoXpertOutput,
        batch: TrainBatch,
        balance_coefficient: float,
        mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """What a micro-batch's output costs, `[]` each, by the names it is logged under; first the sum that is
        minimised. Collective only with `mean_over_ranks`, which the routing objective says what it is for."""
        objective = self.objective(output, batch.masks, batch.weights)
        total, terms = objective.total, dict[str, Tensor]()
        if self.network.learns_routing:
            loads = {stride: self.network.balance(stride).load for stride in output.routing}
            of_routing, terms = self.routing_objective(output.routing, loads, balance_coefficient, mean_over_ranks)
            total = total + of_routing
        of_task = {f"loss/{name}": value for name, value in objective.terms.items()}
        return {TOTAL: total, **of_task} | {ROUTER_LOSSES[name]: value for name, value in terms.items()}

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.reduce(values, "mean")
        return mean

    def _choices(self, output: CamoXpertOutput) -> Tensor:
        experts = len(self.network.expert_names)
        return torch.stack([count_choices(r.selected, experts) for r in output.routing.values()])

    def _step_or_skip(self, taken: Tensor) -> None:
        # Not by way of the scaler, which would look at the gradients once more, and knows of nothing but infinity.
        optimizer = self.optimizer.optimizer
        if optimizer.defaults["fused"]:
            # The fused kernel reads the flag on the device and leaves weights and moments alone where it is 1.
            optimizer.found_inf = (~taken).float()
            optimizer.step()
            del optimizer.found_inf
        elif taken.item():  # without a fused kernel: one wait for the device per step
            optimizer.step()
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()

    def _restore(self, statistics: list[Tensor], taken: Tensor) -> None:
        # One batch with NaN would stay in BatchNorm's running statistics for good.
        for buffer, before in zip(self._norm_statistics, statistics, strict=True):
            buffer.copy_(torch.where(taken, buffer, before))

    def _update_balance(self, choices: Tensor, taken: Tensor) -> None:
        # Balance counts images: a region is a part of one.
        for stride, of_scale in zip(self.network.scales, choices / self.network.grid**2, strict=True):
            self.network.balance(stride).update(of_scale, taken)

    @torch.no_grad()
    def _meter_batch(self, output: CamoXpertOutput, batch: TrainBatch, losses: dict[str, Tensor]) -> None:
        predicted, mask = output.logits > 0, batch.masks > 0
        union = (predicted | mask).sum(dim=(1, 2, 3))
        # An image without an object counts as right where nothing is predicted.
        iou = torch.where(union > 0, (predicted & mask).sum(dim=(1, 2, 3)) / union.clamp(min=1), 1.0)
        values = {
            "images": torch.full_like(iou, 1).sum(),
            "iou": iou.sum(),
            "batches": torch.ones_like(iou[0]),
        }
        values |= losses
        for stride, routing in output.routing.items():
            sums = routing_sums(routing, self.network.config["logit_limit"])
            values |= {f"{stride}/{name}": value for name, value in sums.items()}
        self._window_meters.add(values)

    def _meter_step(self, norms: GradientNorms, taken: Tensor) -> None:
        values = {"steps": torch.ones_like(norms.total), "taken": taken}
        # Sums over taken steps: one infinite norm would hide all others of the interval.
        measured = {**norms.groups, "total": norms.total}
        values |= {f"norm/{name}": torch.where(taken, norm, 0.0) for name, norm in measured.items()}
        values |= {"clipped/router": norms.router_clipped, "clipped/rest": norms.rest_clipped}
        self.step_meters.add(values)
