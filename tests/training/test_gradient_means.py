"""Every loss is such that the average over ranks, or over micro-batches, of gradients is that of the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camox.losses.composite import TERMS, SegmentationObjective
from camox.models.balance import BALANCE_KINDS, RoutingObjective
from camox.models.router import Routing
from camox.training.step import ROUTER_LOSSES
from tests.losses.test_composite import Maps

few = settings(max_examples=10, deadline=None)
ROUTING_TERMS = [name for name in ROUTER_LOSSES if name != "balance"]
EXPERTS = 6


def assert_same(whole: Tensor, parts: Tensor) -> None:
    assert whole.norm() > 0
    assert (whole - parts).norm() <= 1e-5 * whole.norm()


def random_maps(images: int, generator: torch.Generator) -> Maps:
    def head(stride: int) -> Tensor:
        return 2 * torch.randn(images, 1, 32 // stride, 32 // stride, generator=generator)

    return Maps(head(1), head(32), [head(16), head(8), head(4)], head(4), head(4), [head(4), head(4)])


def rows(maps: Maps, images: slice) -> Maps:
    """Those images' maps, each a leaf of its own."""

    def leaf(head: Tensor) -> Tensor:
        return head[images].clone().requires_grad_()

    def leaves(heads: list[Tensor]) -> list[Tensor]:
        return [leaf(head) for head in heads]

    return Maps(
        leaf(maps.logits),
        leaf(maps.search),
        leaves(maps.deep),
        leaf(maps.boundary),
        leaf(maps.boundary_log_variance),
        leaves(maps.refinements),
    )


@pytest.mark.parametrize("term", TERMS)
@few
@given(seed=st.integers(0, 10**6), half=st.integers(1, 3), data=st.data())
def test_of_a_segmentation_loss(term, seed, half, data):
    """Also where images that count for nothing are in one half only, or fill it."""
    counting = data.draw(st.lists(st.booleans(), min_size=2 * half, max_size=2 * half).filter(any))
    generator = torch.Generator().manual_seed(seed)
    maps, weights = random_maps(2 * half, generator), torch.tensor(counting).float()
    # Objects of any size, none and nothing else among them: what is divided by an area differs between the halves.
    limits = torch.rand(2 * half, 1, 1, 1, generator=generator) * 1.4 - 0.2
    masks = (torch.rand(2 * half, 1, 32, 32, generator=generator) < limits).float()
    objective = SegmentationObjective({term: 1.0})

    def gradient(images: slice) -> tuple[Tensor, Tensor]:
        part = rows(maps, images)
        total = objective(part, masks[images], weights[images]).total
        total.backward()
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in part.leaves()]
        return torch.cat([grad.flatten(1) for grad in grads], dim=1), total.detach()

    (whole, value), parts = gradient(slice(None)), [gradient(slice(0, half)), gradient(slice(half, None))]
    assert_same(whole, torch.cat([grad for grad, _ in parts]) / 2)
    assert torch.stack([value for _, value in parts]).mean().item() == pytest.approx(value.item(), rel=1e-5)


def routing_of(logits: Tensor) -> Routing:
    selected = logits.detach().topk(2, dim=1).indices
    return Routing(logits, logits.softmax(dim=1), selected, logits.gather(1, selected).softmax(dim=1))


class Batch:
    """Images at two scales, with the load that has been there before; no share of an expert is the equal one."""

    def __init__(self, seed: int, half: int):
        generator = torch.Generator().manual_seed(seed)
        lean = torch.linspace(-1, 1, EXPERTS)
        self.half = half
        self.logits = {stride: lean + torch.randn(2 * half, EXPERTS, generator=generator) for stride in (8, 32)}
        self.loads = {stride: (torch.rand(EXPERTS, generator=generator)).softmax(dim=0) for stride in (8, 32)}

    def gradient(
        self, objective: RoutingObjective, images: slice, mean_over_ranks: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        leaves = {stride: logits[images].clone().requires_grad_() for stride, logits in self.logits.items()}
        routings = {stride: routing_of(leaf) for stride, leaf in leaves.items()}
        total, _ = objective(routings, self.loads, 1.0, mean_over_ranks)
        total.backward()
        grads: list[Any] = [leaf.grad for leaf in leaves.values()]
        return torch.cat(grads, dim=1), total.detach()

    def averaged(
        self, objective: RoutingObjective, mean_over_ranks: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        halves = [slice(0, self.half), slice(self.half, None)]
        of_halves = [self.gradient(objective, images, mean_over_ranks) for images in halves]
        return torch.cat([grad for grad, _ in of_halves]) / 2, torch.stack([total for _, total in of_halves]).mean()


def objective_of(name: str) -> RoutingObjective:
    if name in BALANCE_KINDS:
        return RoutingObjective(name, 0.0)
    return RoutingObjective("none", **({"z_loss": 0.0} | {name: 1.0}))


REAL_TERMS = [*(kind for kind in BALANCE_KINDS if kind != "none"), *ROUTING_TERMS]
OF_THE_BATCH = {"switch", "importance", "entropy", "mutual_information"}


@pytest.mark.parametrize("name", REAL_TERMS)
@few
@given(seed=st.integers(0, 10**6), half=st.integers(1, 4))
def test_of_a_routing_loss_over_ranks(name, seed, half):
    objective, batch = objective_of(name), Batch(seed, half)
    seen: list[Tensor] = []

    def note(shares: Tensor) -> Tensor:
        assert not shares.requires_grad
        seen.append(shares)
        return shares

    batch.averaged(objective, note)
    # One reduction on each rank and micro-batch for what needs one, and none for what does not.
    assert len(seen) == (2 if name in OF_THE_BATCH else 0)
    averaged, total = batch.averaged(objective, lambda _: torch.stack(seen).mean(dim=0))
    whole, value = batch.gradient(objective, slice(None))
    assert_same(whole, averaged)
    assert total.item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", REAL_TERMS)
def test_of_a_routing_loss_over_micro_batches(name):
    """Exact for means over images. What the others would need of micro-batches to come is not known yet."""
    objective, batch = objective_of(name), Batch(0, 4)
    averaged, _ = batch.averaged(objective)
    whole, _ = batch.gradient(objective, slice(None))
    if name in OF_THE_BATCH:
        assert (whole - averaged).norm() > 0.02 * whole.norm()
    else:
        assert_same(whole, averaged)
