"""The mixture at one scale: images sorted by expert, each expert run once on its own sub-batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from camox.models.experts import EXPERTS
from camox.models.regions import join_regions, split_regions
from camox.models.router import Routing, count_choices


class Dispatch(NamedTuple):
    """Where each (image, choice) pair of a batch goes: pairs ordered by expert, and how many each expert gets.

    Where regions are routed, a region takes the place of an image.
    """

    order: Tensor
    """`[N·k]`, int64, on the device: pairs sorted by expert; pair p belongs to image p // k."""

    counts: list[int]
    """Pairs per expert, on the host: the sizes of the sub-batches."""


def plan_dispatch(routings: Sequence[Routing], experts: int) -> list[Dispatch]:
    """Plans every scale's dispatch with one device-to-host copy for all of them together."""
    counts = torch.stack([count_choices(routing.selected, experts) for routing in routings])
    orders = [routing.selected.flatten().argsort(stable=True) for routing in routings]
    return [Dispatch(order, sizes) for order, sizes in zip(orders, counts.tolist(), strict=True)]


class MixtureOfExperts(nn.Module):
    """`x + shared + scale · Σ_e w_e · Expert_e(norm x)` over the experts selected for each image, or region of it.

    `x` is `[B, C, H, W]`. Without a dispatch plan every expert runs on every image and is masked (the
    reference, and the dense mode); with one, each runs only on its images. Both give the same to rounding.

    Args:
        channels: C, a multiple of 8.
        experts: names of the experts, in the order of the router's logits.
        shared: one more expert, that every image passes through whatever the router says.
        grid: regions are routed on a grid of this many rows and columns; 1 routes whole images.
        gradient_checkpointing: compute each expert again in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        experts: Sequence[str],
        shared: bool = False,
        grid: int = 1,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.grid = grid
        self.gradient_checkpointing = gradient_checkpointing
        self.norm = nn.GroupNorm(8, channels)
        self.experts = nn.ModuleDict({name: EXPERTS[name](channels) for name in experts})
        # A small start: the mixture begins near the identity and the task decides how much of it to use.
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))
        self.shared = EXPERTS["hybrid"](channels) if shared else None
        self.shared_scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.1)) if shared else None

    def forward(self, x: Tensor, routing: Routing, dispatch: Dispatch | None) -> Tensor:
        normalised = self.norm(x).to(x.dtype)  # autocast gives fp32 norms on a GPU: twice the bytes to sort and keep
        routed = split_regions(normalised, self.grid)
        mixed = self._masked(routed, routing) if dispatch is None else self._sorted(routed, routing, dispatch)
        mixed = join_regions(mixed, self.grid, *x.shape[-2:])
        mixed = x + self.scale.to(mixed.dtype) * mixed
        if self.shared is None or self.shared_scale is None:
            return mixed
        response = self._run(self.shared, normalised)
        return mixed + self.shared_scale.to(response.dtype) * response

    def _masked(self, x: Tensor, routing: Routing) -> Tensor:
        weights = torch.zeros_like(routing.probabilities).scatter(1, routing.selected, routing.weights)
        mixed = torch.zeros((), device=x.device)
        for column, expert in zip(weights.unbind(dim=1), self.experts.values(), strict=True):
            response = self._run(expert, x)
            mixed = mixed + column[:, None, None, None].to(response.dtype) * response
        return mixed

    def _sorted(self, x: Tensor, routing: Routing, dispatch: Dispatch) -> Tensor:
        batch, top_k = routing.selected.shape
        back = dispatch.order.argsort()
        sub_batches = _Spread.apply(x, dispatch.order, back, top_k).split(dispatch.counts)
        responses = torch.cat(
            [
                self._run(expert, sub_batch)
                for expert, sub_batch in zip(self.experts.values(), sub_batches, strict=True)
                if len(sub_batch)
            ]
        )
        responses = _Permute.apply(responses, back, dispatch.order).unflatten(0, (batch, top_k))
        weights = routing.weights
        if self.training and 0 in dispatch.counts:
            weights = weights + self._touch_idle(dispatch.counts)
        # With the type named: on a GPU autocast would make the sum, and all maps after it, fp32.
        return (weights[:, :, None, None, None].to(responses.dtype) * responses).sum(dim=1, dtype=responses.dtype)

    def _run(self, expert: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(expert, x, use_reentrant=False, preserve_rng_state=False)  # experts draw nothing
        return expert(x)

    def _touch_idle(self, counts: list[int]) -> Tensor:
        """Zero, but connected to every parameter of the experts that got no image.

        DDP waits for a gradient of each parameter on each rank; without this it raises on the next step.
        """
        touched = self.scale.new_zeros(())
        for expert, count in zip(self.experts.values(), counts, strict=True):
            if count == 0:
                touched = touched + sum(parameter.flatten()[0] for parameter in expert.parameters())
        return 0.0 * touched


class _Permute(torch.autograd.Function):
    """Rows in another order. The backward of indexing does not know that no row occurs twice: it adds, four times
    slower on a CPU, and on a GPU either sorts or is not deterministic. Indexing keeps NHWC, `index_select` does not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x[order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient[back], None, None


class _Spread(torch.autograd.Function):
    """Each row `top_k` times, in the order of the pairs; its gradient is the sum over its own pairs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.top_k = top_k
        return x[order // top_k]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return gradient[back].unflatten(0, (-1, ctx.top_k)).sum(dim=1), None, None, None
