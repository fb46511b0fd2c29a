"""What the network says, what the losses make of it, and where gradients arrive: before anything is trained."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camox.diagnosis.finding import Finding, Problem
from camox.diagnosis.subject import Subject, cycled_routing
from camox.losses.boundary import boundary_band
from camox.losses.composite import SegmentationObjective
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.models.router import Routing
from camox.training.optimization import GROUPS, group_of
from camox.training.phases import frozen_stages

LARGEST_LOGIT = 30.0
"""Beyond it an untrained network is certain of every pixel: the sigmoid's gradient there is below 1e-12."""

ROUTED_IMAGES = 32
"""Images on which the pairs of experts are counted."""

_EXTREME = 50.0
_BUG = "this is not a setting: look at what was last changed in the model, and run the tests"


def check_outputs(subject: Subject) -> Finding:
    """One training batch through the untrained network: shapes, range, variation, and each image by itself."""
    batch = subject.batch()
    images = batch.images.float() / 255
    network = subject.copy()
    with torch.no_grad(), subject.accelerator.autocast():
        output = network(images)
    logits = output.logits.float()
    low, high, spread = (value.item() for value in (logits.min(), logits.max(), logits.std(dim=(1, 2, 3)).min()))
    problems = [*_wrong_maps(output, images), *_logits_out_of_range(low, high)]
    if not spread > 1e-6 * max(1.0, abs(high)):
        message = f"the prediction is constant over an image (deviation {spread:.1e})"
        problems.append(Problem("fail", message, "no feature reaches the last map: " + _BUG))
    dependence = _dependence_on_others(network.eval(), images)
    if not dependence < 1e-3:
        message = f"a prediction changes by {dependence:.1e} of its range when other images leave the batch"
        remedy = "something in the model reads the whole batch (a maximum, a norm): make it per image"
        problems.append(Problem("fail", message, remedy))
    choices = _choices(subject, network)
    pairs = ", ".join(f"stride {stride} {count}" for stride, count in choices.items())
    notes = [f"combinations of experts that {ROUTED_IMAGES} images choose: {pairs}"] if pairs else []
    return Finding(
        "outputs",
        f"{len(images)} images of {images.shape[-1]}²: logits {low:.2f} … {high:.2f}, each image by itself",
        tuple(problems),
        tuple(notes),
        {"logits": [low, high], "deviation": spread, "dependence": dependence, "combinations": choices},
    )


def _wrong_maps(output: CamoXpertOutput, images: Tensor) -> Iterator[Problem]:
    batch, _, height, width = images.shape
    quarter = (-(-height // 32) * 8, -(-width // 32) * 8)
    expected = {"logits": (output.logits, (height, width)), "uncertainty": (output.uncertainty, (height, width))}
    maps = {"boundary": output.boundary, "boundary_log_variance": output.boundary_log_variance}
    maps |= {"deep[-1]": output.deep[-1]} | {f"refinements[{i}]": m for i, m in enumerate(output.refinements)}
    expected |= {name: (value, quarter) for name, value in maps.items()}
    expected["search"] = (output.search, (quarter[0] // 8, quarter[1] // 8))
    for name, (value, size) in expected.items():
        if value.shape != (batch, 1, *size):
            message = f"{name} has the shape {list(value.shape)}, not {[batch, 1, *size]}"
            yield Problem("fail", message, _BUG)
        if not value.isfinite().all():
            remedy = "look for an overflow: compare with precision.dtype=fp32, then check model.weights for NaN"
            yield Problem("fail", f"{name} is not finite", remedy)


def _logits_out_of_range(low: float, high: float) -> Iterator[Problem]:
    if max(abs(low), abs(high)) > LARGEST_LOGIT:
        message = f"logits reach {low:.0f} … {high:.0f} before any training: hardly a pixel has a gradient"
        yield Problem("warn", message, "check model.weights, and that nothing scales the features up")


@torch.no_grad()
def _dependence_on_others(network: CamoXpert, images: Tensor) -> float:
    """Largest change of a logit when half of the batch leaves, relative to the range of the logits; fp32, evaluation.

    Each half in turn: a maximum over the batch stays what it was in the half that holds it. Halves are routed as in the
    batch, else two experts that are nearly level could change places by rounding; what routers compute is compared
    apart.
    """
    together = network(images)
    extent = max(float(together.logits.max() - together.logits.min()), 1e-6)
    half = len(images) // 2
    changes = []
    for part in (slice(0, half), slice(half, None)):
        rows = slice(part.start * network.grid**2, part.stop and part.stop * network.grid**2)
        routing = {stride: Routing(*(values[rows] for values in r)) for stride, r in together.routing.items()}
        apart, own = network(images[part], routing), network(images[part]).routing
        changes.append((apart.logits - together.logits[part]).abs().max() / extent)
        changes += [(own[s].probabilities - r.probabilities).abs().max() for s, r in routing.items()]
    return float(torch.stack(changes).max())


@torch.no_grad()
def _choices(subject: Subject, network: CamoXpert) -> dict[int, int]:
    """Stride → how many different combinations of experts are chosen."""
    chosen: dict[int, set[tuple[int, ...]]] = {stride: set() for stride in network.scales}
    seen, batches = 0, subject.batches(subject.images)
    while seen < ROUTED_IMAGES and chosen:
        images = next(batches).images.float() / 255
        for stride, routing in network(images).routing.items():
            chosen[stride] |= {tuple(sorted(row)) for row in routing.selected.tolist()}
        seen += len(images)
    return {stride: len(combinations) for stride, combinations in chosen.items()}


# ---- losses


def check_losses(subject: Subject) -> Finding:
    """Every configured term by itself, value and gradient, on masks and logits of every kind."""
    batch = subject.batch()
    with torch.no_grad():
        output = subject.copy()(batch.images.float() / 255)
    masks = {
        "the batch's masks": batch.masks.float(),
        "an empty mask": torch.zeros_like(batch.masks, dtype=torch.float32),
        "a mask that is all object": torch.ones_like(batch.masks, dtype=torch.float32),
    }
    outputs = {
        "the network's logits": output,
        "logits of +50": _with_maps(output, lambda m: torch.full_like(m, _EXTREME)),
        "logits of -50": _with_maps(output, lambda m: torch.full_like(m, -_EXTREME)),
    }
    terms = [name for name, weight in subject.experiment.loss.plain().items() if weight > 0]
    problems, values = [], dict[str, float]()
    for term in terms:
        objective = SegmentationObjective({term: 1.0})
        wrong = [
            f"{complaint} for {mask_name} and {output_name}"
            for mask_name, mask in masks.items()
            for output_name, maps in outputs.items()
            if (complaint := _wrong_loss(objective, maps, mask))
        ]
        if wrong:
            message = f"loss.{term} {wrong[0]}" + (f", and in {len(wrong) - 1} more cases" if len(wrong) > 1 else "")
            remedy = f"set loss.{term} = 0 until it is mended; a term must be finite and ≥ 0 for every mask"
            problems.append(Problem("fail", message, remedy))
            continue
        values[term] = float(objective(output, masks["the batch's masks"]).total)
        problems += _rewards_the_wrong(term, objective, output)
    listing = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    summary = f"{len(terms)} terms finite, ≥ 0 and lower for the right mask: {listing}"
    if problems:
        summary = f"{len(problems)} of {len(terms)} terms are wrong"
    return Finding("losses", summary, tuple(problems), values=values)


def _wrong_loss(objective: SegmentationObjective, output: CamoXpertOutput, mask: Tensor) -> str | None:
    leaves: list[Tensor] = []

    def leaf(logits: Tensor) -> Tensor:
        leaves.append(logits.detach().float().requires_grad_())
        return leaves[-1]

    loss = objective(_with_maps(output, leaf), mask).total
    if not loss.isfinite():
        return f"is {loss.item()}"
    if loss < -1e-6:
        return f"is negative ({loss.item():.3g})"
    if not loss.requires_grad:
        return "has no gradient"
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    if not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
        return "has a gradient that is not finite"
    return None


def _with_maps(output: CamoXpertOutput, change: Callable[[Tensor], Tensor]) -> CamoXpertOutput:
    """The output with every map of logits changed. The log-variance stays within its ±7."""
    return replace(
        output,
        logits=change(output.logits),
        search=change(output.search),
        deep=[change(head) for head in output.deep],
        boundary=change(output.boundary),
        boundary_log_variance=change(output.boundary_log_variance).clamp(-7, 7),
        refinements=[change(head) for head in output.refinements],
    )


def _rewards_the_wrong(term: str, objective: SegmentationObjective, output: CamoXpertOutput) -> Iterator[Problem]:
    """A square in the middle, once found and once taken for background."""
    mask = torch.zeros_like(output.logits)
    height, width = mask.shape[-2:]
    mask[..., height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1

    def towards(right: bool) -> float:
        def drawn(target: Tensor) -> Tensor:
            return target.clamp(3e-4, 1 - 3e-4).logit() * (1 if right else -1)

        band = F.adaptive_max_pool2d(boundary_band(mask), output.boundary.shape[-2:])
        maps = replace(
            _with_maps(output, lambda head: drawn(F.interpolate(mask, size=head.shape[-2:], mode="area"))),
            boundary=drawn(band),
            boundary_log_variance=torch.zeros_like(output.boundary),
        )
        return float(objective(maps, mask).total)

    right, wrong = towards(True), towards(False)
    if not right < wrong:
        message = f"loss.{term} is {right:.3g} for a right prediction and {wrong:.3g} for its opposite"
        yield Problem("fail", message, f"it rewards error: set loss.{term} = 0 until it is mended")


# ---- gradients


def check_gradients(subject: Subject) -> Finding:
    """A backward pass of the task's loss in fp32, for each set of frozen stages that the run has.

    Twice for each: with the routers' own choices, for the norms and for the routers; and with every expert at work and
    nothing behind a gain of zero, for the rest.
    """
    phases = subject.experiment.phases_resolved()
    frozen = dict.fromkeys(frozen_stages(epoch, phases) for epoch in range(subject.experiment.epochs))
    problems: dict[str, Problem] = {}  # by message: what holds for all sets is said once
    norms: dict[int, dict[str, float]] = {}
    for stages in frozen:
        network = subject.copy()
        network.freeze_backbone(stages)
        _backward(subject, network)
        norms[stages] = _norms(network)
        found = [*_not_finite(network), *_routers_without_gradient(network)]
        _lift_zeros(network)
        _backward(subject, network, cycled=True)
        found += [*_not_finite(network), *_untrained(network)]
        problems |= {problem.message: problem for problem in found}
    zero = _names(network, lambda p: p.grad is not None and not p.grad.any())
    listing = ", ".join(f"{group} {norm:.2g}" for group, norm in norms[subject.frozen_stages].items())
    return Finding(
        "gradients",
        f"norms: {listing}" if problems else f"every trained parameter has one; norms: {listing}",
        tuple(problems.values()),
        (f"zero for this batch in {_some(zero)}",) if zero else (),
        {"norms_by_frozen_stages": norms, "zero": zero},
    )


def _backward(subject: Subject, network: CamoXpert, cycled: bool = False) -> None:
    network.zero_grad(set_to_none=True)
    batch = subject.batch()
    images = batch.images.float() / 255
    output = network(images, cycled_routing(network, images) if cycled else None)
    SegmentationObjective(subject.experiment.loss.plain())(output, batch.masks).total.backward()


def _not_finite(network: CamoXpert) -> Iterator[Problem]:
    if names := _names(network, lambda p: p.grad is not None and not p.grad.isfinite().all()):
        remedy = (
            "if a loss failed above, that is why; else look for a root or a division at zero, and check the weights"
        )
        yield Problem("fail", f"the gradient of {_some(names)} is not finite", remedy)


def _routers_without_gradient(network: CamoXpert) -> Iterator[Problem]:
    routers = _names(network, lambda p: p.requires_grad and (p.grad is None or not p.grad.any()))
    if routers := [name for name in routers if group_of(name) == "router"]:
        remedy = "experts must be weighted by what the router computed: look for a detach or an .item() on the way"
        yield Problem("fail", f"no gradient of the task reaches {_some(routers)}", remedy)


def _untrained(network: CamoXpert) -> Iterator[Problem]:
    names = _names(network, lambda p: p.requires_grad and p.grad is None)
    if names := [name for name in names if group_of(name) != "router"]:
        remedy = "give the term of [loss] that trains it a weight, or look for a detach between it and the loss"
        yield Problem("fail", f"no gradient of the loss reaches {_some(names)}", remedy)
    if frozen := _names(network, lambda p: p.grad is not None and not p.requires_grad):
        yield Problem("fail", f"{_some(frozen)} is frozen and has a gradient", _BUG)


def _names(network: nn.Module, holds: Callable[[nn.Parameter], Any]) -> list[str]:
    return [name for name, parameter in network.named_parameters() if holds(parameter)]


def _norms(network: nn.Module) -> dict[str, float]:
    by_group: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            by_group[group_of(name)].append(parameter.grad)
    return {group: float(nn.utils.get_total_norm(members)) for group, members in by_group.items() if members}


@torch.no_grad()
def _lift_zeros(network: nn.Module) -> None:
    # Residual branches often start at a gain of zero: at the first step nothing inside them has a gradient.
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _some(names: list[str]) -> str:
    """Up to three names, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more parameters"
