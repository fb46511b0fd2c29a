"""Each check passes on the tiny experiment and finds what was broken on purpose."""

import pytest
import torch

from camox.diagnosis.checks import check_gradients, check_losses, check_outputs
from camox.losses import composite
from camox.models.camoxpert import CamoXpert
from camox.models.refinement import BoundaryUncertainty
from camox.models.router import Router

ALL_TERMS = [f"loss.{name}=1" for name in composite.TERMS]
KINDS = [[], ["model.moe.mode=dense"], ["model.moe.mode=random"], ["model.moe.scales=[]"], ["model.compile=true"]]


# ---- outputs


@pytest.mark.parametrize("overrides", KINDS, ids=str)
def test_outputs_of_a_sound_network_pass(subject, overrides):
    finding = check_outputs(subject(*overrides))
    assert finding.status == "pass", finding.problems
    assert set(finding.values["combinations"]) == (set() if "scales" in str(overrides) else {4, 8, 16, 32})


def test_outputs_leave_the_network_as_it_was(subject):
    sound = subject()
    before = {name: tensor.clone() for name, tensor in sound.network.state_dict().items()}
    check_outputs(sound)
    check_gradients(sound)
    assert all(torch.equal(before[name], tensor) for name, tensor in sound.network.state_dict().items())
    assert all(parameter.grad is None for parameter in sound.network.parameters())


def changed_forward(monkeypatch, change):
    """Every network from now on with `change(output)` after its forward pass."""
    forward = CamoXpert.forward

    def changed(self, *arguments):
        output = forward(self, *arguments)
        change(output)
        return output

    monkeypatch.setattr(CamoXpert, "forward", changed)


def constant(output):
    output.logits = output.logits * 0 + 0.3


def large(output):
    output.logits = output.logits * 1000


def nan(output):
    output.boundary = output.boundary / 0 * 0


def small_search(output):
    output.search = output.search[:, :, :0]


def normalised_by_the_batch(output):
    output.logits = output.logits / output.logits.abs().max()


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (constant, "fail", "constant over an image"),
        (large, "warn", "before any training"),
        (nan, "fail", "boundary is not finite"),
        (small_search, "fail", "search has the shape"),
        (normalised_by_the_batch, "fail", "when other images leave the batch"),
    ],
)
def test_wrong_outputs_are_found(subject, monkeypatch, messages, change, status, said):
    sound = subject()
    changed_forward(monkeypatch, change)
    finding = check_outputs(sound)
    assert finding.status == status
    assert said in messages(finding)


def test_a_router_that_reads_its_batch_mates_is_found(subject, monkeypatch, messages):
    raw_logits = Router._raw_logits
    monkeypatch.setattr(Router, "_raw_logits", lambda self, x: 100 * raw_logits(self, x - x.mean(dim=0)))
    finding = check_outputs(subject())
    assert "when other images leave the batch" in messages(finding)


# ---- losses


@pytest.mark.parametrize("overrides", [[], ALL_TERMS], ids=["default", "all terms"])
@pytest.mark.parametrize("size", [32, 80])
def test_losses_pass(subject, overrides, size):
    finding = check_losses(subject(*overrides, f"data.image_size={size}"))
    assert finding.status == "pass", finding.problems


def nan_on_empty(logits, mask):
    return logits.sigmoid().mean(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)) - 1


def negative(logits, mask):
    return composite.iou_loss(logits, mask) - 1


def rewards_error(logits, mask):
    return 1 - composite.iou_loss(logits, mask)


def root(logits, mask):
    return composite.bce_loss(logits, mask) + (logits - logits.detach()).square().sum(dim=(1, 2, 3)).sqrt()


def overflow(logits, mask):
    return composite.bce_loss(logits, mask) + (logits.abs() * 2).exp().mean(dim=(1, 2, 3)) * 1e-3


def detached(logits, mask):
    return composite.bce_loss(logits.detach(), mask)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (nan_on_empty, "loss.structure is nan for an empty mask"),
        (negative, "loss.structure is negative"),
        (rewards_error, "rewards error"),
        (root, "has a gradient that is not finite"),
        (overflow, "loss.structure is inf for the batch's masks and logits of +50"),
        (detached, "has no gradient"),
    ],
)
def test_a_wrong_term_is_found_and_only_that(subject, monkeypatch, messages, term, said):
    sound = subject()
    monkeypatch.setitem(composite.FINAL_TERMS, "structure", term)
    finding = check_losses(sound)
    assert finding.status == "fail"
    assert len(finding.problems) == 1
    assert said in messages(finding)


# ---- gradients


@pytest.mark.parametrize("overrides", KINDS, ids=str)
def test_gradients_pass_with_the_backbone_frozen_and_not(subject, overrides):
    finding = check_gradients(subject(*overrides))
    assert finding.status == "pass", finding.problems
    frozen, full = finding.values["norms_by_frozen_stages"][4], finding.values["norms_by_frozen_stages"][0]
    assert "backbone" not in frozen
    # Nothing behind the zero gains that residual branches start with.
    assert not any(name.startswith("backbone.") for name in finding.values["zero"])
    assert full["backbone"] > 0
    assert ("router" in full) == (overrides in ([], ["model.moe.mode=dense"], ["model.compile=true"]))


def test_a_progressive_phase_is_looked_at_stage_by_stage(subject):
    finding = check_gradients(subject("phases.full.unfreeze=progressive", "phases.full.epochs=4"))
    assert set(finding.values["norms_by_frozen_stages"]) == {4, 3, 2, 1, 0}
    assert finding.status == "pass"


def test_a_head_detached_from_the_loss_is_found(subject, monkeypatch, messages):
    forward = BoundaryUncertainty.forward
    monkeypatch.setattr(BoundaryUncertainty, "forward", lambda self, x: tuple(m.detach() for m in forward(self, x)))
    finding = check_gradients(subject())
    assert finding.status == "fail"
    assert "no gradient of the loss reaches boundary." in messages(finding)


def test_an_expert_that_no_gradient_reaches_is_found_though_routers_may_not_choose_it(subject, messages):
    broken = subject()
    expert = broken.network.mixtures["stride_8"].experts["edge"]
    expert.register_forward_hook(lambda module, inputs, output: output.detach())
    assert "mixtures.stride_8.experts.edge" in messages(check_gradients(broken))


def test_a_router_without_the_task_is_found(subject, monkeypatch, messages):
    forward = Router.forward

    def untrained(self, features, bias):
        routing = forward(self, features, bias)
        return routing._replace(weights=routing.weights.detach())

    monkeypatch.setattr(Router, "forward", untrained)
    finding = check_gradients(subject())
    assert "no gradient of the task reaches routers.stride_4" in messages(finding)


def test_a_gradient_that_is_not_finite_is_found(subject, monkeypatch, messages):
    sound = subject()
    monkeypatch.setitem(composite.FINAL_TERMS, "structure", root)
    assert "is not finite" in messages(check_gradients(sound))
