"""All terms of the objective, each with its weight, from one model output and one mask."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from camox.losses.boundary import boundary_band, boundary_loss, uncertainty_loss
from camox.losses.frequency import frequency_loss
from camox.losses.segmentation import (
    balanced_bce,
    bce_loss,
    dice_loss,
    difficulty_weight,
    focal_loss,
    iou_loss,
    structure_legacy_loss,
    structure_loss,
    tversky_loss,
)

FINAL_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "structure": lambda logits, mask: structure_loss(logits, mask, difficulty_weight(mask)),
    "structure_legacy": structure_legacy_loss,
    "bce": bce_loss,
    "iou": iou_loss,
    "dice": dice_loss,
    "tversky": tversky_loss,
    "focal": focal_loss,
    "frequency": frequency_loss,
}
"""Terms that compare the final logits with the mask, pixel by pixel, `[B, 1, H, W]` both."""

TERMS = (*FINAL_TERMS, "boundary", "uncertainty", "search", "foreground", "deep", "refinement")


class SegmentationOutput(Protocol):
    """The maps a model must offer to be trained with these losses; all `[B, 1, h, w]` logits."""

    logits: Tensor
    search: Tensor
    deep: list[Tensor]
    boundary: Tensor
    boundary_log_variance: Tensor
    refinements: list[Tensor]


class Objective(NamedTuple):
    """The sum to minimise and its parts, unweighted, as 0-dimensional fp32 tensors."""

    total: Tensor
    terms: dict[str, Tensor]


class SegmentationObjective:
    """The weighted mean of the terms; weights are normalised to sum to one, so adding a term re-scales nothing.

    Args:
        weights: a weight ≥ 0 for each of `TERMS`; a term of weight 0 is not computed.
    """

    def __init__(self, weights: Mapping[str, float]):
        assert set(weights) <= set(TERMS), set(weights) - set(TERMS)
        active = {name: weight for name, weight in weights.items() if weight > 0}
        assert active, "an objective needs a term"
        self.weights = {name: weight / sum(active.values()) for name, weight in active.items()}

    def __call__(self, output: SegmentationOutput, mask: Tensor, weights: Tensor | None = None) -> Objective:
        """The terms as means over the batch.

        Args:
            output: of the model.
            mask: `[B, 1, H, W]` in {0, 1} at the size of `output.logits`.
            weights: `[B]`, 0 for images that count for nothing and 1 for all others. The mean is over all B, so the
                others weigh what they weigh without them.
        """
        with torch.autocast(mask.device.type, enabled=False):
            terms = {
                name: self._term(name, output, mask.float()) if weight > 0 else _silent(output.deep, len(mask))
                for name, weight in self.weights.items()
            }
            if weights is not None:
                terms = {name: torch.where(weights > 0, values, 0.0) for name, values in terms.items()}
            terms = {name: values.mean() for name, values in terms.items()}
            total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return Objective(total, terms)

    def leave_out_deep(self) -> None:
        """Gives deep supervision no weight any more. Its heads keep a gradient, of zeros, even if they give NaN:
        without one, processes would wait for each other."""
        rest = sum(weight for term, weight in self.weights.items() if term != "deep")
        assert rest > 0
        self.weights = {term: 0.0 if term == "deep" else weight / rest for term, weight in self.weights.items()}

    def _term(self, name: str, output: SegmentationOutput, mask: Tensor) -> Tensor:
        if name in FINAL_TERMS:
            return FINAL_TERMS[name](output.logits, mask)
        match name:
            case "boundary":
                return boundary_loss(output.boundary, _band_at(output.boundary, mask))
            case "uncertainty":
                band = _band_at(output.boundary, mask)
                return uncertainty_loss(output.boundary_log_variance, output.boundary, band)
            case "search":
                return _coarse_structure([output.search], mask)
            case "foreground":
                return balanced_bce(output.deep[-1], _shrink(mask, output.deep[-1]))
            case "deep":
                return _coarse_structure(output.deep, mask)
            case "refinement":
                return _coarse_structure(output.refinements or [output.deep[-1]], mask)
        raise AssertionError(name)


def _silent(heads: list[Tensor], images: int) -> Tensor:
    """`[B]` zeros that depend on the heads. Zero times NaN would be NaN, forward and backward."""
    return torch.stack([(head.float().nan_to_num(0.0, 0.0, 0.0) * 0).sum() for head in heads]).sum().expand(images)


def _coarse_structure(logits: list[Tensor], mask: Tensor) -> Tensor:
    """Mean structure loss of several heads, each against the mask averaged down to its own size.

    Averaging the mask down costs far less than interpolating every head up, and says the same.
    """
    losses = []
    for head in logits:
        target = _shrink(mask, head)
        losses.append(structure_loss(head, target, difficulty_weight(target, _stride(mask, head))))
    return torch.stack(losses).mean(dim=0)


def _band_at(head: Tensor, mask: Tensor) -> Tensor:
    """Cells of the head that a boundary runs through. Found at full size: a thin part would not survive shrinking."""
    stride, band = _stride(mask, head), boundary_band(mask)
    height, width = head.shape[-2] * stride, head.shape[-1] * stride
    return F.max_pool2d(F.pad(band, (0, width - mask.shape[-1], 0, height - mask.shape[-2])), stride)


def _shrink(mask: Tensor, head: Tensor) -> Tensor:
    """The mask at the head's size. Heads see the image padded to a multiple of 32: the mask is padded likewise."""
    stride = _stride(mask, head)
    height, width = head.shape[-2] * stride, head.shape[-1] * stride
    padded = F.pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2]), mode="replicate")
    return F.avg_pool2d(padded, stride)


def _stride(mask: Tensor, head: Tensor) -> int:
    """Image pixels per head pixel."""
    padded_width = mask.shape[-1] + -mask.shape[-1] % 32
    return padded_width // head.shape[-1]
