"""Maps follow the edges of their photographs: the guided filter (He, Sun and Tang, ECCV 2010) of kornia."""

from typing import Literal

import numpy as np

from camox.errors import DataError

Refinement = Literal["guided"]
RADIUS_SHARE = 1 / 64
"""Radius of the filter's window as a share of the image's shorter side: about a pixel of the finest scale of the
network, stride 4, at usual sizes."""
EPSILON = 1e-3
"""Variance of the grey levels, in [0, 1]², from which on an edge of the photograph counts as one."""
_MOST_PIXELS = 2**20
"""Statistics of larger images are taken at every n-th pixel (He and Sun, Fast Guided Filter, 2015)."""


def require_refinement() -> None:
    """Raise DataError where the library is not installed."""
    try:
        import kornia.filters  # noqa: F401
    except ImportError as error:
        raise DataError(
            "--refine guided needs kornia, which is not installed: pip install 'camox[refine]', or leave the option out"
        ) from error


def refine(probability: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A probability map, float32 [H, W] in [0, 1], made to follow the edges of its image, uint8 [H, W, 3] RGB.

    Takes `require_refinement` to have passed. The guide is the grey image. An image of less than 3 pixels a side, which
    has no window, comes back as it is.
    """
    import cv2
    import torch
    from kornia.filters import guided_blur

    assert image.shape[:2] == probability.shape, (image.shape, probability.shape)
    shorter = min(probability.shape)
    if shorter < 3:
        return probability
    radius = max(1, round(shorter * RADIUS_SHARE))
    subsample = max(1, int(np.ceil(np.sqrt(probability.size / _MOST_PIXELS))))
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    refined = guided_blur(
        torch.from_numpy(guide)[None, None],
        torch.from_numpy(np.ascontiguousarray(probability, np.float32))[None, None],
        2 * radius + 1,
        EPSILON,
        border_type="replicate",
        subsample=min(subsample, radius),
        separable=True,
    )
    return np.clip(refined[0, 0].numpy(), 0, 1)
