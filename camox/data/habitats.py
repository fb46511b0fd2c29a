"""Synthetic camouflage made from a seed: the object differs from its surroundings by one known cue only.

`forest` (orientation of the texture), `desert` (local contrast), `underwater` (spatial frequency), `rock`
(only a thin line along the contour) and `mixture` (two or three of these at once, each weaker). Everything
else is drawn alike in all habitats: one palette, one distribution of tones, the same illumination, the same
shapes. So a sample's habitat says which cue a model has to use, and colour does not say which habitat it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np

from camox.data.samples import Sample
from camox.errors import DataError

KINDS = ("forest", "desert", "underwater", "rock", "mixture")
CUES_IN_MIXTURE = ("orientation", "contrast", "frequency", "line")
CUE_OF_KIND = {"forest": "orientation", "desert": "contrast", "underwater": "frequency", "rock": "line"}
SMALLEST_SIZE = 32
RANKS = 4096

# Dark, middle and light colour (RGB) of each material; an image mixes two of them.
PALETTE = (
    ((34, 38, 22), (104, 112, 66), (188, 190, 138)),  # moss
    ((38, 28, 20), (116, 92, 68), (202, 180, 148)),  # bark
    ((62, 46, 30), (158, 130, 92), (228, 208, 170)),  # sand
    ((28, 34, 38), (98, 106, 110), (190, 196, 194)),  # slate
    ((16, 40, 44), (70, 112, 110), (166, 196, 184)),  # shallow water
    ((52, 26, 20), (140, 86, 64), (214, 168, 138)),  # clay
)

Field = np.ndarray  # float32 [H, W]
Mask = np.ndarray  # uint8 [H, W] in {0, 1}


class Habitats:
    """`count` synthetic samples; `groups` holds each sample's habitat.

    Sample `i` depends only on `seed`, `i`, `size`, `kinds`, `empty` and `tiny`: not on `count`, on the
    samples asked for before, on the process, or on the number of threads. On one machine with the same numpy
    and OpenCV it is the same to the bit. Other processors or library versions draw the same random numbers
    and the same scene, but their exponentials and Fourier transforms may round differently, which can move a
    pixel by a few grey levels. `kinds` and the shares change what a given `i` shows.

    Args:
        count: number of samples, at least 1.
        seed: any integer >= 0.
        size: height and width in pixels, at least 32. Shapes, texture and lines scale with it, except that
            texture and lines become no finer below 77 pixels.
        kinds: habitats to draw from. Each round of `len(kinds)` samples holds every one of them once.
        empty: share of samples without any object.
        tiny: share of samples whose objects are all tiny (together below 2 % of the image).

    The other samples have one to three objects that together cover about 5 to 30 % of the image.

    Raises:
        DataError: an argument is outside its range, or a habitat is unknown or named twice.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: int = 128,
        kinds: Sequence[str] = KINDS,
        empty: float = 0.05,
        tiny: float = 0.1,
    ):
        kinds = tuple(kinds)
        _check_arguments(count, seed, size, kinds, empty, tiny)
        self.seed, self.size, self.empty, self.tiny = seed, size, empty, tiny
        self.groups = _balanced_kinds(count, seed, kinds)
        self.names = [f"habitats-{seed}-{i:06d}-{kind}" for i, kind in enumerate(self.groups)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`: image uint8 [size, size, 3] RGB, mask uint8 [size, size] in {0, 1}."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng([self.seed, index])
        kind = self.groups[index]
        mask = _draw_mask(rng, self.size, self.empty, self.tiny)
        image = _paint(rng, mask, _draw_cues(rng, kind))
        return Sample(name=self.names[index], group=kind, image=image, mask=mask)

    def content(self, index: int) -> str:
        """All that the sample depends on."""
        return f"habitats {self.seed} {index} {self.groups[index]} {self.size} {self.empty} {self.tiny}"


def _check_arguments(count: int, seed: int, size: int, kinds: tuple[str, ...], empty: float, tiny: float) -> None:
    for kind in kinds:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(KINDS)}"
            raise DataError(f"habitats: unknown kind {kind!r}: {hint}")
    if not kinds or len(set(kinds)) != len(kinds):
        raise DataError(f"habitats: kinds must name at least one habitat, each once, not {list(kinds)}")
    if count < 1:
        raise DataError(f"habitats: count must be at least 1, not {count}")
    if seed < 0:
        raise DataError(f"habitats: seed must not be negative, not {seed}")
    if size < SMALLEST_SIZE:
        raise DataError(f"habitats: size must be at least {SMALLEST_SIZE} pixels, not {size}")
    for name, share in (("empty", empty), ("tiny", tiny)):
        if not 0.0 <= share <= 1.0:
            raise DataError(f"habitats: {name} is a share from 0 to 1, not {share}")
    if empty + tiny > 1.0:
        raise DataError(f"habitats: empty + tiny must not exceed 1, not {empty} + {tiny}")


def _balanced_kinds(count: int, seed: int, kinds: tuple[str, ...]) -> list[str]:
    """Each round of `len(kinds)` samples holds every kind once, in an order drawn for that round."""
    groups: list[str] = []
    for turn in range(-(-count // len(kinds))):
        # The third number keeps this stream apart from the samples' own [seed, index].
        order = np.random.default_rng([seed, turn, 1]).permutation(len(kinds))
        groups.extend(kinds[k] for k in order)
    return groups[:count]


# ------------------------------------------------------------ objects


def _draw_mask(rng: np.random.Generator, size: int, empty: float, tiny: float) -> Mask:
    mask = np.zeros((size, size), np.uint8)
    fate = rng.random()
    if fate < empty:
        return mask
    objects = int(rng.choice((1, 2, 3), p=(0.55, 0.3, 0.15)))
    if fate < empty + tiny:
        objects = min(objects, 2)
        areas = np.full(objects, rng.uniform(0.008, 0.016) / objects)
    else:
        shares = rng.uniform(0.6, 1.0, objects)
        areas = rng.uniform(0.07, 0.27) * shares / shares.sum()
    for area in areas:
        _place_blob(rng, mask, float(np.sqrt(area / np.pi)) * size)
    return mask


def _place_blob(rng: np.random.Generator, mask: Mask, radius: float) -> None:
    """Draw one irregular blob where it touches no other; without room it joins its neighbour."""
    size = len(mask)
    outline = _blob_outline(rng, radius)
    low = np.minimum(-outline.min(axis=0) + 2, size / 2)
    high = np.maximum(size - 3 - outline.max(axis=0), size / 2)
    blob = np.zeros_like(mask)
    for _ in range(8):
        corners = np.rint((outline + rng.uniform(low, high)) * 16).astype(np.int32)  # 4 fractional bits
        blob[:] = 0
        cv2.fillPoly(blob, [corners], 1, shift=4)
        if not (cv2.dilate(blob, np.ones((7, 7), np.uint8)) & mask).any():
            break
    mask |= blob


def _blob_outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Points [72, 2] (x, y) of a closed smooth curve about the origin that encloses about pi * radius²."""
    angle = np.arange(72) * (2 * np.pi / 72)
    order = np.arange(2, 7)
    amplitude = rng.normal(0.0, 0.5, 5) / order**1.3
    phase = rng.uniform(0.0, 2 * np.pi, 5)
    wobble = (amplitude[:, None] * np.cos(order[:, None] * angle + phase[:, None])).sum(axis=0)
    distance = np.exp(wobble)
    distance *= radius / np.sqrt(np.mean(distance**2))
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)


# ------------------------------------------------------------ cues


@dataclass(frozen=True)
class Cues:
    """How the object differs from its surroundings; the defaults are no difference at all."""

    turn: float = 0.0  # radians between the texture's directions
    gain: float = 1.0  # factor on the texture's amplitude
    pitch: float = 1.0  # factor on the texture's frequency
    groove: float = 0.0  # height of the contour's line in deviations of the texture; negative is dark


def _draw_cues(rng: np.random.Generator, kind: str) -> Cues:
    if kind != "mixture":
        return _cues_of_strength(rng, (CUE_OF_KIND[kind],), 1.0)
    chosen = rng.permutation(4)[: rng.integers(2, 4)]
    return _cues_of_strength(rng, tuple(CUES_IN_MIXTURE[k] for k in sorted(chosen)), 0.65)


def _cues_of_strength(rng: np.random.Generator, cues: tuple[str, ...], strength: float) -> Cues:
    """Named cues, drawn from the ranges below; `strength` below 1 weakens each (factors in the logarithm)."""
    turn, gain, pitch, groove = rng.uniform((70.0, 2.8, 2.3, 3.4), (90.0, 3.4, 2.9, 4.0))
    turn_sign, pitch_sign = rng.choice((-1.0, 1.0), 2)
    # Mostly quieter than the surroundings: were all of them, a threshold on the deviation would go too far.
    gain_sign = 1.0 if rng.random() < 0.12 else -1.0
    return Cues(
        turn=float(np.deg2rad(turn) * turn_sign * strength) if "orientation" in cues else 0.0,
        gain=float(gain ** (gain_sign * strength)) if "contrast" in cues else 1.0,
        pitch=float(pitch ** (pitch_sign * strength)) if "frequency" in cues else 1.0,
        groove=float(-groove * strength) if "line" in cues else 0.0,
    )


# ------------------------------------------------------------ painting


def _paint(rng: np.random.Generator, mask: Mask, cues: Cues) -> np.ndarray:
    """The scene as uint8 [H, W, 3]: texture times local contrast, lines, illumination, then the palette."""
    size = len(mask)
    scale = max(size / 128, 0.6)  # below 77 pixels finer texture would pass the sampling limit
    inside = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.6 * scale)

    scene = _texture(rng, inside, cues, scale)
    contrast = np.exp(0.35 * _smooth_field(rng, size, 3))
    scene *= contrast * np.exp(np.float32(np.log(cues.gain)) * inside)
    if cues.groove:
        scene += np.float32(cues.groove) * _line_heights(rng, mask, scale) * contrast
    scene += np.float32(rng.uniform(0.3, 1.0)) * _smooth_field(rng, size, 5)
    scene += np.float32(0.15) * rng.standard_normal((size, size), np.float32)
    return _colour(rng, scene)


def _texture(rng: np.random.Generator, inside: Field, cues: Cues, scale: float) -> Field:
    """Noise of unit variance [H, W] whose direction and frequency change where `inside` goes from 0 to 1."""
    size = len(inside)
    upright = rng.normal(0.0, np.deg2rad(12))  # stems stand, so a turned texture is one across the stems
    sharpness = rng.uniform(3.0, 4.5) if cues.turn else rng.uniform(0.0, 1.0)
    # Cycles per pixel at 128². With two frequencies either may be the object's and the range is as wide as
    # the sampling allows, so that no frequency belongs to objects.
    shift = np.log(cues.pitch) / 2
    lowest, highest = (0.05, 0.26) if shift else (0.08, 0.2)
    middle = rng.uniform(np.log(lowest) + abs(shift), np.log(highest) - abs(shift))

    white = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    outside = _band(white, size, upright, sharpness, middle - shift - np.log(scale))
    if not cues.turn and not shift:
        return outside
    object_ = _band(white, size, upright + cues.turn, sharpness, middle + shift - np.log(scale))
    return outside + inside * (object_ - outside)


def _band(white: np.ndarray, size: int, direction: float, sharpness: float, peak: float) -> Field:
    """White noise through a band at exp(peak) cycles per pixel, von Mises in direction; variance 1."""
    log_frequency, cosine, sine = _frequency_grid(size)
    towards = np.float32(np.cos(2 * direction)) * cosine + np.float32(np.sin(2 * direction)) * sine
    octaves = (log_frequency - np.float32(peak)) / np.float32(0.4)
    gain = np.exp(np.float32(sharpness / 2) * (towards - 1) - octaves * octaves / 2)
    gain[0, 0] = 0
    texture = np.fft.irfft2(white * gain, s=(size, size)).astype(np.float32, copy=False)
    return texture / texture.std()


@lru_cache(maxsize=8)
def _frequency_grid(size: int) -> tuple[Field, Field, Field]:
    """Log of the frequency (cycles per pixel), cosine and sine of the double angle, each [H, W // 2 + 1]."""
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    square = x * x + y * y
    square[0, 0] = 1.0
    grids = (np.log(square) / 2, (x * x - y * y) / square, 2 * x * y / square)
    log_frequency, cosine, sine = (grid.astype(np.float32) for grid in grids)
    return log_frequency, cosine, sine


def _smooth_field(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Smooth noise [H, W] of zero mean and about unit variance with `cells` knots per side."""
    knots = rng.standard_normal((cells + 2, cells + 2), np.float32)
    # Cubic to a quarter, then linear: a third of the time of cubic all the way, and no edge to be seen.
    step = max(size // (4 * cells), 1)
    coarse = cv2.resize(knots, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)[step:-step, step:-step]
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    mean, deviation = cv2.meanStdDev(smooth)
    return (smooth - np.float32(mean[0, 0])) / np.float32(deviation[0, 0] + 1e-6)


# ------------------------------------------------------------ lines


def _line_heights(rng: np.random.Generator, mask: Mask, scale: float) -> Field:
    """Height [H, W] in [0, 1] of the contour's line and of stray lines that close no region."""
    width = max(2, round(3 * scale))
    contour = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((width + 1, width + 1), np.uint8))
    gap = np.ones((2 * round(4 * scale) + 1,) * 2, np.uint8)
    taken = cv2.dilate(contour, gap)
    lines = contour * np.uint8(255)
    for _ in range(int(rng.integers(1, 4))):
        stray = np.zeros_like(mask)
        path = np.rint(_stray_path(rng, len(mask)) * 16).astype(np.int32)
        cv2.polylines(stray, [path], False, 1, thickness=max(1, width - 1), shift=4)  # drawn one pixel wider
        # Parts that would touch another line are left out: no two lines may close a region together.
        lines[(stray > 0) & (taken == 0)] = 255
        taken[cv2.dilate(stray, gap) > 0] = 1
    return cv2.GaussianBlur(lines, (0, 0), 0.5 * scale).astype(np.float32) / np.float32(255)


def _stray_path(rng: np.random.Generator, size: int) -> np.ndarray:
    """Points [24, 2] (x, y) of an open curve that bends by less than half a turn."""
    length = rng.uniform(0.15, 0.45) * size
    bend = rng.uniform(-2.2, 2.2)
    along = np.linspace(0.0, 1.0, 24)
    wave = 0.4 * np.sin(2 * np.pi * along * rng.uniform(0.5, 1.5))
    angle = rng.uniform(0.0, 2 * np.pi) + bend * along + wave
    steps = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (length / 24)
    path = np.cumsum(steps, axis=0)
    return path - path.mean(axis=0) + rng.uniform(0.0, size, 2)


# ------------------------------------------------------------ colour


def _colour(rng: np.random.Generator, scene: Field) -> np.ndarray:
    """Uint8 [H, W, 3]: heights by rank, more or less haze, and two materials in smooth patches."""
    haze = float(np.exp(rng.uniform(np.log(0.09), np.log(0.25))))
    tone = np.clip(0.5 + haze * _normal_scores(), 0, 1) * 255
    grey = np.rint(tone).astype(np.uint8)[_ranks(scene)]
    first, second = rng.permutation(len(PALETTE))[:2]
    grey = cv2.merge([grey, grey, grey])
    one, two = cv2.LUT(grey, _ramps()[first]), cv2.LUT(grey, _ramps()[second])
    share = np.clip(np.float32(0.5) + np.float32(0.35) * _smooth_field(rng, len(scene), 4), 0, 1)
    return cv2.blendLinear(one, two, share, 1 - share)


def _ranks(scene: Field) -> np.ndarray:
    """Each pixel's rank in its image, uint16 [H, W] below `RANKS`: every scene gets the same histogram."""
    low, high = scene.min(), scene.max()
    level = ((scene - low) * ((RANKS - 1) / (high - low))).astype(np.uint16)
    counts = np.bincount(level.ravel(), minlength=RANKS)
    share_below = (np.cumsum(counts) - counts / 2) / scene.size
    return (share_below * RANKS).astype(np.uint16)[level]


@lru_cache(maxsize=1)
def _normal_scores() -> np.ndarray:
    """Standard normal value [RANKS] of each rank, so that middle tones are the most frequent."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((rank + 0.5) / RANKS) for rank in range(RANKS)])


@lru_cache(maxsize=1)
def _ramps() -> np.ndarray:
    """Colours uint8 [materials, 1, 256, 3] by tone."""
    tones = np.linspace(0.0, 1.0, 256)
    ramps = [
        np.stack([np.interp(tones, (0, 0.5, 1), channel) for channel in zip(*stops, strict=True)], axis=1)
        for stops in PALETTE
    ]
    return np.rint(ramps).astype(np.uint8)[:, None]
