"""The mixture at one scale: images sorted by expert, each expert run once on its own sub-batch."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

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

    kinds: ClassVar[dict[str, type[nn.Module]]] = EXPERTS

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
        self.experts = nn.ModuleDict({name: self.kinds[name](channels) for name in experts})
        # A small start: the mixture begins near the identity and the task decides how much of it to use.
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))
        self.shared = self.kinds["hybrid"](channels) if shared else None
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
        back = dispatch.order.argsort().view_as(routing.selected)
        sub_batches = _Spread.apply(x, dispatch.order, back).split(dispatch.counts)
        responses = torch.cat(
            [
                self._run(expert, sub_batch)
                for expert, sub_batch in zip(self.experts.values(), sub_batches, strict=True)
                if len(sub_batch)
            ]
        )
        weights = routing.weights
        if self.training and 0 in dispatch.counts:
            weights = weights + self._touch_idle(dispatch.counts)
        mixed: Tensor = _WeightedSum.apply(responses, weights, dispatch.order, back)
        return mixed

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


# Below, `order` `[N·k]` sorts pairs by expert, and `back` `[N, k]` says where each pair went. Written out because no
# row is taken twice for one choice: the backward of indexing does not know that and adds, which is slow on a CPU and
# not deterministic on a GPU. Sums are made in place where they can: at stride 4 and 416² a copy of the pairs of
# 12 images is 130 MB.


class _Spread(torch.autograd.Function):
    """Each row of `x` `[N, …]` once for each of its choices, sorted by expert: `[N·k, …]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _take(x, order // back.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        first, *others = back.unbind(dim=1)
        total = _take(gradient, first)
        for places in others:
            total += _take(gradient, places)
        return total, None, None


class _WeightedSum(torch.autograd.Function):
    """Responses `[N·k, …]`, sorted by expert, weighted by fp32 `[N, k]` and summed for each row: `[N, …]`."""

    @staticmethod
    def forward(ctx: Any, responses: Tensor, weights: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(responses, weights, order, back)
        (first, weight), *others = zip(back.unbind(dim=1), weights.unbind(dim=1), strict=True)
        total = _take(responses, first).mul_(_like(weight, responses))
        for places, weight in others:
            total.addcmul_(_take(responses, places), _like(weight, responses))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        responses, weights, order, back = ctx.saved_tensors
        spread = _take(gradient, order // back.shape[1])
        of_weights = None
        if ctx.needs_input_grad[1]:
            of_weights = (spread * responses).sum(dim=(1, 2, 3), dtype=weights.dtype)[back]
        return spread.mul_(_like(weights.flatten()[order], spread)), of_weights, None, None


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]` of `[N, C, H, W]` in a quarter of the time on a CPU; NHWC stays NHWC, which `index_select` forgets."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(0, rows)
    return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def _like(weights: Tensor, responses: Tensor) -> Tensor:
    """One weight for each row of `responses`, in their type."""
    return weights.to(responses.dtype)[:, None, None, None]
