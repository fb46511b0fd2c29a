"""One forward pass: bytes of images become probabilities."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from camox.errors import CheckpointError
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.tracking.wording import listed

Autocast = Callable[[], AbstractContextManager[object]]


@torch.no_grad()
def infer(
    model: CamoXpert, images: Tensor, device: torch.device | str, autocast: Autocast = nullcontext
) -> tuple[CamoXpertOutput, Tensor]:
    """Run the model on uint8 images [B, 3, S, S] RGB; gives its output and probabilities, float32 [B, S, S].

    All are on `device`. The model must be in eval mode.
    """
    batch = images.to(device, non_blocking=True).float().div_(255)
    with autocast():
        output = model(batch)
    return output, output.logits[:, 0].float().sigmoid()


def require_finite(probabilities: np.ndarray, names: Sequence[str]) -> None:
    """Raise CheckpointError, naming the images, where the model gave NaN: finite weights can still overflow."""
    broken = [name for name, map_ in zip(names, probabilities, strict=True) if np.isnan(map_).any()]
    if broken:
        raise CheckpointError(
            f"the model's output is NaN for {listed(broken)}: an activation overflowed (fp16 does so first); "
            "take another checkpoint of the run"
        )
