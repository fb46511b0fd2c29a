"""Predictions with their truths, uint8 [H, W]: at random, at edges, and as networks make them of photographs."""

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def random_pair(seed: int) -> Pair:
    """A prediction that follows its truth more or less; grey levels in both, sizes from 1 to 60."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 61, size=2)
    field = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 3)
    truth = ((field > np.quantile(field, rng.uniform(0.1, 0.95))) * 255).astype(np.uint8)
    truth[rng.random((height, width)) < 0.02] = rng.integers(0, 256)
    noise = cv2.GaussianBlur(rng.random((height, width)), (0, 0), rng.uniform(0.5, 3)) * 255
    mixed = rng.uniform(0, 1) * truth + rng.uniform(0, 1) * noise
    return mixed.clip(0, 255).astype(np.uint8), truth


def scattered_pair(seed: int) -> Pair:
    """What smooth images never hold: truths of noise, few grey levels, flat parts, sums that meet a level exactly."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 25, size=2)
    truth = (rng.random((height, width)) < rng.uniform(0, 1)).astype(np.uint8) * 255
    levels = rng.integers(0, 256, size=rng.integers(1, 5)).astype(np.uint8)
    prediction = rng.choice(levels, size=(height, width))
    if seed % 3 == 0:
        prediction[rng.random((height, width)) < 0.9] = rng.choice(levels)
    if seed % 5 == 0:
        truth[...] = 0
        truth[: height // 2] = 255
    if seed % 7 == 0:
        prediction[height // 2 :] = rng.choice(levels)
    return prediction, truth


def native_pair(seed: int) -> Pair:
    """At the size of a photograph: an object far from most of the image, or pixels of one all over it."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(250, 700, size=2)
    truth = np.zeros((height, width), np.uint8)
    truth[5:9, 7:9] = 255
    if seed % 2:
        truth[rng.random((height, width)) < 0.01] = 255
    return rng.integers(0, 256, size=(height, width), dtype=np.uint8), truth


def likely_pair(seed: int, height: int, width: int, share: float) -> Pair:
    """A blob that covers `share` of the image, and what a network in doubt makes of it: no level is 0 for long."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    row, column = height * rng.uniform(0.35, 0.65), width * rng.uniform(0.35, 0.65)
    field = _smooth_noise(rng, (height, width), max(height, width) / 12)
    field -= 6 * np.hypot((rows - row) / height, (columns - column) / width).astype(np.float32)
    truth = (field > np.quantile(field, 1 - share)).astype(np.uint8)
    doubt = _smooth_noise(rng, (height, width), 8)
    doubt = (doubt - doubt.min()) / (doubt.max() - doubt.min())
    prediction = 0.6 * cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 3) + 0.4 * doubt
    return np.rint(prediction * 255).clip(0, 255).astype(np.uint8), truth * np.uint8(255)


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """Noise at several scales, uint8 [H, W, 3]: to decode and to resize it costs what a photograph costs."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 120, np.float32)
    for scale in (1, 4, 16, 64):
        coarse = rng.normal(size=(height // scale + 1, width // scale + 1, 3)).astype(np.float32)
        pixels += 14 * scale**0.5 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.random(shape, np.float32), (0, 0), sigma)
    return (noise - noise.mean()) / noise.std()


def constant(value: int, shape: tuple[int, int]) -> np.ndarray:
    """One level everywhere."""
    return np.full(shape, value, np.uint8)


def single(row: int, column: int, shape: tuple[int, int] = (17, 23)) -> np.ndarray:
    """One pixel of 255."""
    truth = np.zeros(shape, np.uint8)
    truth[row, column] = 255
    return truth


def _blocks(*columns: tuple[int, int]) -> np.ndarray:
    blocks = np.zeros((30, 140), np.uint8)
    for first, last in columns:
        blocks[10:20, first:last] = 255
    return blocks


RAMP = np.linspace(0, 255, 17 * 23).reshape(17, 23).astype(np.uint8)
EDGES: dict[str, Pair] = {
    "empty truth, empty map": (constant(0, (9, 9)), constant(0, (9, 9))),
    "empty truth, full map": (constant(255, (9, 9)), constant(0, (9, 9))),
    "empty truth, ramp": (RAMP, constant(0, RAMP.shape)),
    "full truth, empty map": (constant(0, (9, 9)), constant(255, (9, 9))),
    "full truth, full map": (constant(255, (9, 9)), constant(255, (9, 9))),
    "full truth, ramp": (RAMP, constant(255, RAMP.shape)),
    "constant map": (constant(100, RAMP.shape), single(5, 5)),
    "empty map": (constant(0, RAMP.shape), single(5, 5)),
    "one pixel": (single(5, 5), single(5, 5)),
    "one pixel, missed": (single(5, 6), single(5, 5)),
    "first pixel": (RAMP, single(0, 0)),
    "last pixel, where the library's S is NaN": (RAMP, single(16, 22)),
    "1×1 object": (constant(200, (1, 1)), constant(255, (1, 1))),
    "1×1 background": (constant(200, (1, 1)), constant(0, (1, 1))),
    "constant half": (np.repeat(np.array([0, 77], np.uint8), [9, 8])[:, None].repeat(23, axis=1), single(5, 5)),
    "two pixels": (np.array([[3, 200]], np.uint8), np.array([[255, 0]], np.uint8)),
    "all but one pixel": (RAMP, 255 - single(5, 5)),
    "border of the image": (RAMP, 255 - np.pad(constant(255, (15, 21)), 1)),
    "twice the mean is a level": (np.array([[0, 0, 0, 0, 0, 100, 250]], np.uint8), single(0, 5, (1, 7))),
    "twice the mean is a level, but for numpy's rounding": (
        np.array([[0, 255, 29, 242, 177, 132, 12]], np.uint8),
        single(0, 3, (1, 7)),
    ),
    "false positives far away": (_blocks((10, 20), (80, 110)), _blocks((10, 20))),
    "one column": (RAMP[:, :1], constant(255, (17, 1)) * (np.arange(17) > 11)[:, None].astype(np.uint8)),
    "one row": (RAMP[:1], constant(255, (1, 23)) * (np.arange(23) > 11).astype(np.uint8)),
    "grey truth around the threshold": (RAMP, RAMP // 2 + 65),
    "inverted": (255 - single(5, 5), single(5, 5)),
}
"""Where definitions need care: no object, nothing else, one value, one pixel, a border."""
