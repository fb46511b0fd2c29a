"""One optimizer step: accumulate, unscale once, clip by group, step or skip on every rank alike."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from camox.data.loading import TrainBatch
from camox.losses.composite import SegmentationObjective
from camox.models.balance import RoutingObjective
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.models.router import count_choices
from camox.stability.guards import SkippedSteps
from camox.training.ema import WeightAverage
from camox.training.meters import Meters
from camox.training.optimization import GradientNorms, clip_gradients, set_learning_rate
from camox.training.routing import routing_sums

ROUTER_LOSSES = {
    "balance": "router/balance_loss",
    "z_loss": "router/z_loss",
    "entropy": "router/entropy_loss",
    "mutual_information": "router/mutual_information_loss",
}
"""Logged names of the routing objective's terms."""


@dataclass(frozen=True)
class Controls:
    """What the schedule sets for one step."""

    learning_rate: float
    balance_coefficient: float
    noise_share: float


class TrainingStep:
    """Takes one optimizer step at a time; nothing in it waits for the device but the routing's one copy.

    A step whose gradient is not finite is skipped on every rank (the norm is of reduced gradients, so ranks
    agree without asking) and leaves weights, norm statistics, average and balance as they were. Only the
    position in the schedule moves on: it is a function of attempted steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: CamoXpert,
        optimizer: AcceleratedOptimizer,
        objective: SegmentationObjective,
        average: WeightAverage | None,
        skipped: SkippedSteps,
        routing_objective: RoutingObjective,
        clip: float,
        router_clip: float,
    ):
        self.accelerator = accelerator
        self.network = network
        self.optimizer = optimizer
        self.objective = objective
        self.average = average
        self.skipped = skipped
        self.routing_objective = routing_objective
        self.clip = clip
        self.router_clip = router_clip
        self.batch_meters = Meters()
        self.step_meters = Meters()
        self._norm_statistics = [
            buffer
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for buffer in module.buffers()
        ]

    def __call__(self, shell: nn.Module, window: Sequence[TrainBatch], controls: Controls) -> None:
        """Trains `shell`, the prepared wrapper of the network, on the micro-batches of `window`."""
        set_learning_rate(self.optimizer, controls.learning_rate)
        self.network.anneal_routing_noise(controls.noise_share)
        statistics = [buffer.clone() for buffer in self._norm_statistics]
        choices: list[Tensor] = []
        for position, batch in enumerate(window):
            last = position == len(window) - 1
            # Gradients travel between ranks once per step, with the last micro-batch.
            with nullcontext() if last else self.accelerator.no_sync(shell):
                output = shell(batch.images.float() / 255)
                loss = self._loss(output, batch, controls.balance_coefficient)
                # The true length of the window: the short one at an epoch's end weighs as much per image.
                self.accelerator.backward(loss / len(window))
            if self.network.learns_routing:
                choices.append(self._choices(output))
        self.accelerator.unscale_gradients(self.optimizer)
        norms = clip_gradients(self.network.named_parameters(), self.router_clip, self.clip)
        taken = torch.isfinite(norms.total)
        self._step_or_skip(taken)
        self._restore(statistics, taken)
        if choices:
            self._update_balance(torch.stack(choices).sum(dim=0), taken)
        if self.average is not None:
            self.average.update(taken)
        self.skipped.update(taken)
        self._meter_step(norms, taken)

    def _loss(self, output: CamoXpertOutput, batch: TrainBatch, balance_coefficient: float) -> Tensor:
        objective = self.objective(output, batch.masks)
        total, terms = objective.total, dict[str, Tensor]()
        if self.network.learns_routing:
            loads = {stride: self.network.balance(stride).load for stride in output.routing}
            of_routing, terms = self.routing_objective(output.routing, loads, balance_coefficient)
            total = total + of_routing
        losses = {f"loss/{name}": value for name, value in {"loss": total, **objective.terms}.items()}
        self._meter_batch(output, batch, losses | {ROUTER_LOSSES[name]: value for name, value in terms.items()})
        return total

    def _choices(self, output: CamoXpertOutput) -> Tensor:
        experts = len(self.network.expert_names)
        return torch.stack([count_choices(r.selected, experts) for r in output.routing.values()])

    def _step_or_skip(self, taken: Tensor) -> None:
        optimizer = self.optimizer.optimizer
        if self.accelerator.scaler is not None:
            self.optimizer.step()  # the scaler looks at the same gradients and skips by itself
        elif optimizer.defaults["fused"]:
            # The fused kernel reads the flag on the device and leaves weights and moments alone where it is 1.
            optimizer.found_inf = (~taken).float()
            self.optimizer.step()
            del optimizer.found_inf
        elif taken.item():  # without a fused kernel: one wait for the device per step
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _restore(self, statistics: list[Tensor], taken: Tensor) -> None:
        # One batch with NaN would stay in BatchNorm's running statistics for good.
        for buffer, before in zip(self._norm_statistics, statistics, strict=True):
            buffer.copy_(torch.where(taken, buffer, before))

    def _update_balance(self, choices: Tensor, taken: Tensor) -> None:
        # Balance counts images: a region is a part of one.
        counts = self.accelerator.reduce(choices.float(), "sum") / self.network.grid**2
        for stride, of_scale in zip(self.network.scales, counts, strict=True):
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
        self.batch_meters.add(values)

    def _meter_step(self, norms: GradientNorms, taken: Tensor) -> None:
        values = {"steps": torch.ones_like(norms.total), "taken": taken}
        # Sums over taken steps: one infinite norm would hide all others of the interval.
        measured = {**norms.groups, "total": norms.total}
        values |= {f"norm/{name}": torch.where(taken, norm, 0.0) for name, norm in measured.items()}
        values |= {"clipped/router": norms.router_clipped, "clipped/rest": norms.rest_clipped}
        self.step_meters.add(values)
