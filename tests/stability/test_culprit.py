"""Whatever makes the first NaN or Inf, in whichever module, forward or backward, is named exactly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camox.losses.composite import SegmentationObjective
from camox.models.camoxpert import CamoXpert
from camox.stability.culprit import Culprit, find_culprit

MODULES = [
    "backbone.network.layer3.0.conv2", "laterals.2", "mixtures.stride_8.experts.texture.mix.2", "mixtures.stride_32",
    "decoder.blocks.2.norm", "search", "search.search.2", "routers.stride_16",
]  # fmt: skip


def network(**options: Any) -> CamoXpert:
    torch.manual_seed(0)
    # Dense: every expert is called.
    arguments = {"backbone": "resnet10t", "pretrained": False, "width": 8, "mode": "dense"} | options
    return CamoXpert(**arguments).train()


def culprit_of(model: nn.Module, images: Tensor | None = None, objective: Callable | None = None) -> Culprit | None:
    torch.manual_seed(1)
    images = torch.rand(3, 3, 32, 32) if images is None else images
    mask = (torch.rand(3, 1, 32, 32) > 0.5).float()
    objective = objective or SegmentationObjective({"structure": 1, "deep": 1, "boundary": 1, "uncertainty": 1})
    return find_culprit(model, {"images": images}, lambda: objective(model(images), mask).total.backward())


class DividedByZero(torch.autograd.Function):
    """Nothing forward; backward the gradient divided by zero."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return (gradient + 1) / torch.zeros_like(gradient)


def break_module(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Lets a module change the first tensor it gives."""
    module = model.get_submodule(name)
    forward = module.forward

    def broken(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        if isinstance(output, Tensor):
            return change(output)
        first, *others = output
        if isinstance(first, list):
            return type(output)([change(first[0]), *first[1:]], *others)
        return type(output)(*[change(first), *others]) if hasattr(output, "_fields") else (change(first), *others)

    module.forward = broken


@pytest.mark.parametrize("name", MODULES)
def test_a_division_by_zero_in_the_forward_pass_is_named(name):
    model = network()
    break_module(model, name, lambda values: (values + 1) / torch.zeros_like(values))
    culprit = culprit_of(model)
    assert culprit is not None
    assert (culprit.stage, culprit.module, culprit.operation) == ("forward", name, "aten.div.Tensor")
    assert culprit.line.startswith("tests/stability/test_culprit.py:")
    assert culprit.nan + culprit.inf == culprit.size


@pytest.mark.parametrize("name", MODULES[:-1])  # what routers give first, logits, gets no gradient here
def test_a_division_by_zero_in_the_backward_pass_is_named(name):
    model = network()
    break_module(model, name, DividedByZero.apply)
    culprit = culprit_of(model)
    assert culprit is not None
    assert (culprit.stage, culprit.module, culprit.operation) == ("backward", name, "aten.div.Tensor")
    assert culprit.line.startswith("tests/stability/test_culprit.py:")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_gradient_checkpointing_too(checkpointing):
    model = network(gradient_checkpointing=checkpointing)
    break_module(model, "decoder.blocks.2.norm", DividedByZero.apply)
    culprit = culprit_of(model)
    assert culprit is not None
    assert (culprit.stage, culprit.module) == ("backward", "decoder.blocks.2.norm")


@pytest.mark.parametrize("mode", ["sparse", "dense", "static", "random"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_where_all_is_finite_nobody_is_blamed(mode, checkpointing):
    assert culprit_of(network(mode=mode, gradient_checkpointing=checkpointing)) is None


def test_a_weight_that_is_nan_is_named_before_anything_else():
    model = network()
    with torch.no_grad():
        model.get_parameter("laterals.2.weight").flatten()[5] = float("nan")
    culprit = culprit_of(model)
    assert culprit is not None
    assert (culprit.stage, culprit.module, culprit.nan) == ("weights", "laterals.2.weight", 1)


def test_an_image_that_is_infinite_is_named():
    images = torch.rand(3, 3, 32, 32)
    images[1, 0, 3, 3] = float("inf")
    culprit = culprit_of(network(), images)
    assert culprit is not None
    assert (culprit.stage, culprit.module, culprit.inf) == ("input", "images", 1)


def test_the_images_that_have_such_values_are_told():
    model, weights = network(), torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1, 1)
    break_module(model, "decoder.blocks.2.norm", lambda values: (values + 1) / weights)
    culprit = culprit_of(model)
    assert culprit is not None
    assert culprit.rows == (2,)


def test_a_loss_is_outside_of_all_modules_and_its_line_is_named():
    class Objective:
        def __call__(self, output: Any, mask: Tensor) -> Any:
            self.total = (output.logits.mean() * 0 - 1).log()
            return self

    culprit = culprit_of(network(), objective=Objective())
    assert culprit is not None
    assert (culprit.stage, culprit.module, culprit.operation) == ("forward", "", "aten.log.default")
    assert str(culprit).startswith("the loss: aten.log.default (tests/stability/test_culprit.py:")


def test_a_mask_of_infinities_is_no_fault_but_what_is_made_of_it_may_be():
    class Masked(nn.Module):
        def __init__(self, bad: bool):
            super().__init__()
            self.layer, self.bad = nn.Linear(4, 4), bad

        def forward(self, values: Tensor) -> Tensor:
            hidden = torch.ones(4, dtype=torch.bool) if self.bad else torch.tensor([True, False, False, False])
            return self.layer(values).masked_fill(hidden, float("-inf")).softmax(dim=-1)

    def culprit(bad: bool) -> Culprit | None:
        model, values = Masked(bad), torch.rand(3, 4)
        return find_culprit(model, {"values": values}, lambda: model(values)[:, 1].sum().backward())

    assert culprit(bad=False) is None
    found = culprit(bad=True)
    assert found is not None
    assert found.operation in ("aten._softmax.default", "aten.masked_fill.Scalar")
