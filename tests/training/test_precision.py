"""Whatever the network computes in, what is minimised and who decides on experts are the numbers of fp32."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from camox.losses.composite import TERMS, SegmentationObjective
from camox.models.balance import BALANCE_KINDS, RoutingObjective
from camox.models.router import Router
from camox.training.step import TrainingStep
from camox.training.trainer import Trainer
from tests.conftest import fp16_accelerator
from tests.losses.test_composite import Maps, blob, maps

HALVES = [torch.float16, torch.bfloat16]


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=dtype)


def converted(output: Maps, dtype: torch.dtype) -> Maps:
    """A copy whose maps have this type, as leaves."""

    def one(value: Tensor) -> Tensor:
        return value.detach().to(dtype).requires_grad_()

    return Maps(**{
        name: [one(head) for head in value] if isinstance(value, list) else one(value)
        for name, value in vars(output).items()
    })  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_half_precision_logits_is_that_of_the_same_logits_in_fp32(term, dtype, scale):
    """1e4 is far beyond what a network says, and near fp16's largest: a square, or a sum of pixels, is beyond it."""
    half = converted(maps(scale=scale), dtype)
    whole = converted(half, torch.float32)
    with autocast(dtype):
        ours = SegmentationObjective({term: 1.0})(half, blob())
    theirs = SegmentationObjective({term: 1.0})(whole, blob())
    assert ours.terms[term].dtype == ours.total.dtype == torch.float32
    assert ours.terms[term].isfinite()
    assert torch.equal(ours.terms[term], theirs.terms[term])
    ours.total.backward()
    theirs.total.backward()
    for found, expected in zip(half.leaves(), whole.leaves(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", BALANCE_KINDS)
@pytest.mark.parametrize("mode", ["tanh", "clamp"])
def test_routing_and_its_losses_are_those_of_fp32_for_logits_beyond_half_precision(kind, mode, dtype):
    torch.manual_seed(0)
    router = Router(8, experts=6, top_k=2, logit_limit=100.0, logit_limit_mode=mode).eval()
    with torch.no_grad():
        router.gate.weight.mul_(2e5)
    features = torch.randn(5, 8, 4, 4).to(dtype)
    objective = RoutingObjective(kind, z_loss=1e-4, entropy=0.1, mutual_information=0.1)
    loads = {8: torch.full((6,), 1 / 6)}
    with autocast(dtype):
        ours = router(features, torch.zeros(6))
        total, terms = objective({8: ours}, loads, 1e-3)
    theirs = router(features.float(), torch.zeros(6))
    expected_total, expected_terms = objective({8: theirs}, loads, 1e-3)
    assert theirs.raw_logits.abs().max() > torch.finfo(torch.float16).max / 10
    for found, expected in zip(
        (*ours, total, *terms.values()), (*theirs, expected_total, *expected_terms.values()), strict=True
    ):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert {value.dtype for value in (total, *terms.values())} == {torch.float32}
    assert all(value.isfinite() for value in (total, *terms.values()))


def bf16_accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="bf16")


@pytest.mark.parametrize("accelerator", [bf16_accelerator, fp16_accelerator])
def test_in_a_run_of_half_precision_every_loss_is_that_of_its_output_in_fp32(
    tiny_experiment, monkeypatch, accelerator: Callable[[], Accelerator]
):
    losses, seen = TrainingStep.losses, list[tuple[Any, dict[str, Tensor], dict[str, Tensor]]]()

    def compared(step: TrainingStep, output: Any, *arguments: Any) -> dict[str, Tensor]:
        found = losses(step, output, *arguments)
        heads = ("logits", "search", "boundary", "boundary_log_variance")
        whole = replace(
            output,
            **{name: getattr(output, name).float() for name in heads},
            **{name: [head.float() for head in getattr(output, name)] for name in ("deep", "refinements")},
        )
        with torch.autocast("cpu", enabled=False):
            seen.append((output, found, losses(step, whole, *arguments)))
        return found

    monkeypatch.setattr(TrainingStep, "losses", compared)
    every_term = [f"loss.{term}=1.0" for term in TERMS]
    routing = ["model.moe.balance.entropy=0.1", "model.moe.balance.mutual_information=0.1"]
    Trainer(tiny_experiment(*every_term, *routing), None, accelerator()).run()
    assert len(seen) == 4
    for output, found, expected in seen:
        assert output.deep[0].dtype in HALVES
        assert found.keys() >= {f"loss/{term}" for term in TERMS}
        for name, value in found.items():
            assert value.dtype == torch.float32, name
            assert torch.equal(value, expected[name]), name
        for routed in output.routing.values():
            assert {part.dtype for part in routed if part.is_floating_point()} == {torch.float32}
