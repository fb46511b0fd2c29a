"""What several models, and several views of an image, say together: the mean of their logits, as a probability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from camox.data.transforms import resize_image
from camox.errors import CheckpointError
from camox.inference.augmentation import View, check_augmentations, views
from camox.inference.forward import infer
from camox.inference.loading.loaded_model import UNKNOWN_THRESHOLD, LoadedModel, Weights, load_model

Average = Literal["probability", "logit"]


@dataclass(frozen=True)
class Ensemble:
    """Models that predict together, each at its own image size, and the views that each of them sees.

    All are on one device. `average`: whether maps are averaged as logits or as probabilities; docs/inference.md has
    both measured.
    """

    members: tuple[LoadedModel, ...]
    augmentations: tuple[str, ...] = ()
    average: Average = "logit"

    @classmethod
    def load(
        cls,
        first: str | Path | LoadedModel,
        others: Sequence[str | Path | LoadedModel] = (),
        augmentations: Sequence[str] = (),
        weights: Weights = "auto",
        image_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> "Ensemble":
        """Load what is not loaded yet, as `load_model` does. Raises as it does, ExperimentError for an augmentation
        that is none, and CheckpointError for models that are on different devices."""
        augmentations = check_augmentations(augmentations)
        members = tuple(
            path if isinstance(path, LoadedModel) else load_model(path, weights, image_size, device)
            for path in (first, *others)
        )
        if len({member.device for member in members}) > 1:
            raise CheckpointError("the models of an ensemble are on different devices: load all of them on one")
        return cls(members, augmentations)

    @property
    def first(self) -> LoadedModel:
        return self.members[0]

    @property
    def device(self) -> torch.device:
        return self.first.device

    @property
    def is_plain(self) -> bool:
        """Whether it is one model that sees every image once."""
        return len(self.members) == 1 and not self.augmentations

    @property
    def views(self) -> list[tuple[LoadedModel, View]]:
        """Every forward pass that an image costs."""
        return [(model, view) for model in self.members for view in views(model.image_size, self.augmentations)]

    @property
    def sizes(self) -> list[int]:
        """The sizes in pixels at which images are asked for, each once; of a plain one that of the model."""
        return list(dict.fromkeys(view.size for _, view in self.views))

    @property
    def threshold(self) -> tuple[float, str]:
        """From which probability on a pixel is object, and a sentence that says why: the mean of the models' own."""
        chosen = [member.threshold for member in self.members]
        if len(chosen) == 1:
            return chosen[0], self.first.threshold_reason
        mean = float(np.mean(chosen))
        reason = f"{mean:.4f}: mean of the models' own, {', '.join(f'{threshold:.4f}' for threshold in chosen)}"
        if unknown := sum(member.threshold_reason == UNKNOWN_THRESHOLD for member in self.members):
            reason += f"; for {unknown} of {len(chosen)} no held-out images chose one, and 0.5 stands for it"
        return mean, reason

    def resized(self, image: np.ndarray) -> dict[int, np.ndarray]:
        """An image, uint8 [H, W, 3] RGB, at each of the `sizes`: uint8 [3, S, S]."""
        return {size: np.ascontiguousarray(resize_image(image, size).transpose(2, 0, 1)) for size in self.sizes}

    @torch.no_grad()
    def probabilities(self, images: Mapping[int, Tensor]) -> Tensor:
        """Maps, float32 [B, S, S] in [0, 1] on the device, S being the largest of the models' own image sizes.

        images: the same B images at each of the `sizes`, uint8 [B, 3, size, size] RGB.
        """
        if self.is_plain:
            return infer(self.first.model, images[self.first.image_size], self.device)[1]
        common = max(member.image_size for member in self.members)
        total: Tensor | None = None
        for model, view in self.views:
            output, probability = infer(model.model, view.mirrored(images[view.size]), self.device)
            values = probability if self.average == "probability" else output.logits[:, 0].float()
            values = _resized(view.mirrored(values), common)
            total = values if total is None else total + values
        assert total is not None
        mean = total / len(self.views)
        return mean if self.average == "probability" else mean.sigmoid()

    def describe(self) -> dict[str, Any]:
        """What a result depends on besides the first model, as JSON values."""
        return {
            "tta": list(self.augmentations),
            "ensemble": [
                {"checkpoint": str(one.checkpoint), "weights": one.weights, "image_size": one.image_size}
                for one in self.members[1:]
            ],
            "average": None if self.is_plain else self.average,
        }

    def summary(self) -> str:
        """A sentence on what predicts."""
        lines = [
            f"{one.checkpoint}: {one.reason}; images at {one.image_size} px on {one.device}" for one in self.members
        ]
        if self.augmentations:
            lines.append(f"test-time augmentation {', '.join(self.augmentations)}")
        passes = "" if self.is_plain else f"; {len(self.views)} forward passes for each image"
        return "; with ".join(lines) + passes


def _resized(maps: Tensor, size: int) -> Tensor:
    """Maps [B, s, s] at [B, size, size], bilinearly."""
    if maps.shape[-1] == size:
        return maps
    return functional.interpolate(maps[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
