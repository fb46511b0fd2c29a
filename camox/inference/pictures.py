"""Predictions become pictures for people: an overlay on the image, and a panel of image, masks and uncertainty."""

import cv2
import numpy as np

_OBJECT = np.array([255, 64, 0], np.float32)  # an orange that neither vegetation nor water has
_TINT = 0.4
_CAPTION_HEIGHT = 18
_GAP = 4
_WHITE = 255


def overlay(image: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Tint and outline what is predicted as object.

    image: uint8 [H, W, 3] RGB; probability: float [H, W] in [0, 1]. Gives uint8 [H, W, 3] RGB; pixels below
    `threshold` and away from an outline stay as they are.
    """
    assert image.shape[:2] == probability.shape, (image.shape, probability.shape)
    mask = (probability >= threshold).astype(np.uint8)
    picture = image.copy()
    tinted = image[mask > 0] * (1 - _TINT) + _OBJECT * _TINT
    picture[mask > 0] = np.rint(tinted).astype(np.uint8)
    return outlined(picture, mask)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Outline the object: image uint8 [H, W, 3] RGB, mask uint8 [H, W] in {0, 1}; gives a new image."""
    picture = image.copy()
    # An outline that can be seen in a photograph of any size: 1 px at 300 px, 10 px at 3000 px.
    thickness = max(1, round(min(mask.shape) / 300))
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, kernel) > 0
    picture[outline] = _OBJECT.astype(np.uint8)
    return picture


def prediction_panel(
    image: np.ndarray,
    truth: np.ndarray | None,
    probability: np.ndarray,
    uncertainty: np.ndarray | None = None,
    size: int = 256,
    boundary: np.ndarray | None = None,
) -> np.ndarray:
    """Image, truth, prediction, boundary uncertainty and boundary side by side, each under its caption.

    image: uint8 [H, W, 3] RGB; truth: uint8 [H, W] in {0, 1}; probability, uncertainty and boundary (the predicted
    one): float [h, w] in [0, 1], each of its own size, shown at the image's. Gives uint8 RGB on white; the longer side
    of each tile is `size` pixels. What is None is left out.
    """
    height, width = image.shape[:2]
    tiles = [("image", image)]
    if truth is not None:
        assert truth.shape == (height, width), (truth.shape, image.shape)
        tiles.append(("truth", grey(truth.astype(np.float32))))
    tiles.append(("prediction", grey(probability)))
    if uncertainty is not None:
        tiles.append(("boundary uncertainty", heat(uncertainty)))
    if boundary is not None:
        tiles.append(("boundary", grey(boundary)))
    scale = size / max(height, width)
    tile_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = [_captioned(caption, _fitted(tile, tile_size)) for caption, tile in tiles]
    gap = np.full((columns[0].shape[0], _GAP, 3), _WHITE, np.uint8)
    return np.hstack([part for column in columns for part in (column, gap)][:-1])


def grey(values: np.ndarray) -> np.ndarray:
    """Float [H, W] in [0, 1] as uint8 [H, W, 3], black to white."""
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)


def heat(values: np.ndarray) -> np.ndarray:
    """Float [H, W] in [0, 1] as uint8 [H, W, 3] RGB in viridis, which is dark blue for 0 and yellow for 1."""
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _fitted(tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] <= tile.shape[1] and size[1] <= tile.shape[0]
    return cv2.resize(tile, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _captioned(caption: str, tile: np.ndarray) -> np.ndarray:
    """The tile under its caption, as wide as the wider of the two."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    (text_width, _), _ = cv2.getTextSize(caption, font, scale, 1)
    width = max(tile.shape[1], text_width + 4)
    picture = np.full((_CAPTION_HEIGHT + tile.shape[0], width, 3), _WHITE, np.uint8)
    cv2.putText(picture, caption, (2, 12), font, scale, (40, 40, 40), 1, cv2.LINE_AA)
    picture[_CAPTION_HEIGHT:, : tile.shape[1]] = tile
    return picture
