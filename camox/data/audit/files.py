"""One image and its mask: what is unusual about the two files, and the numbers that statistics are made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from camox.data.audit.findings import Finding
from camox.data.audit.listing import Entry
from camox.data.audit.similarity import small_grey
from camox.data.audit.statistics import Measured, border_share, measure
from camox.data.decoding import (
    DAMAGE,
    Header,
    object_threshold,
    read_header,
    read_image,
    read_levels,
    refuse_photograph,
)
from camox.data.pairing import applies_orientation
from camox.errors import DataError

_TINY_SIDE = 160
_HUGE_MEGAPIXELS = 12
_LONG_RATIO = 3
_FEW_LEVELS = 16
_MOST_LABELS = 64
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24  # where a PNG says how many bits a channel has


@dataclass(frozen=True)
class Examined:
    """What one entry of a listing showed. `measured` is None where image and mask could not both be read, `grey`
    (see `similarity.small_grey`) where the image could not."""

    entry: Entry
    findings: tuple[Finding, ...]
    measured: Measured | None = None
    grey: np.ndarray | None = None


def examine(entry: Entry) -> Examined:
    """Read an image and its mask as the loader would, and find every trap in them. Raises nothing for bad files."""
    try:
        return _examine(entry)
    except OSError as error:  # gone, or out of reach, since its header was read
        return Examined(entry, (Finding("damaged_header", Path(error.filename or entry.image), str(error)),))


def _examine(entry: Entry) -> Examined:
    findings: list[Finding] = []
    image_header, mask_header = (_header(path, findings) for path in (entry.image, entry.mask))
    applied, fits = _belonging(entry, image_header, mask_header, findings)
    image = _examine_image(entry.image, applied, findings) if image_header else None
    mask = _examine_mask(entry.mask, findings) if entry.mask and mask_header else None
    grey = None if image is None else small_grey(image)
    if image is None or mask is None or not fits:
        return Examined(entry, tuple(findings), None, grey)
    return Examined(entry, tuple(findings), measure(image, mask), grey)


def _header(path: Path | None, findings: list[Finding]) -> Header | None:
    if path is None:
        return None
    try:
        return read_header(path)
    except DataError as error:
        kind = "not_an_image" if isinstance(error.__cause__, Image.UnidentifiedImageError) else "damaged_header"
        is_empty = path.is_file() and path.stat().st_size == 0
        findings.append(Finding("empty_file", path) if is_empty else Finding(kind, path, _reason(error, path)))
        return None


def _belonging(entry: Entry, image: Header | None, mask: Header | None, findings: list[Finding]) -> tuple[bool, bool]:
    """Whether the image's EXIF orientation is applied, and whether the mask fits the image."""
    if image is None or mask is None or entry.mask is None:
        return True, False
    applied = applies_orientation(image, mask)
    if applied is None:
        sizes = f"image {_size(image.upright)}, mask {_size(mask.upright)}"
        findings.append(Finding("mask_size", entry.mask, sizes))
        return True, False
    if image.orientation != 1:
        says = f"orientation {image.orientation}"
        if not applied:
            findings.append(Finding("exif_ignored", entry.image, says))
        elif image.stored == image.upright and mask.orientation == 1:
            findings.append(Finding("exif_ambiguous", entry.image, says))
        else:
            findings.append(Finding("exif_rotation", entry.image, says))
    if mask.orientation != 1:
        findings.append(Finding("exif_rotation", entry.mask, f"orientation {mask.orientation}"))
    return applied, True


# ---- images


def _examine_image(path: Path, applied: bool, findings: list[Finding]) -> np.ndarray | None:
    findings += _about_format(path, "image")
    try:
        image = read_image(path, apply_orientation=applied)
    except DataError as error:
        findings.append(_failed(path, error))
        return None
    height, width = image.shape[:2]
    size = _size((width, height))
    if image.min() == image.max():
        findings.append(Finding("constant_image", path, f"level {image.min()} throughout"))
    if min(width, height) < _TINY_SIDE:
        findings.append(Finding("tiny_image", path, size))
    if width * height > _HUGE_MEGAPIXELS * 1e6:
        findings.append(Finding("huge_image", path, size))
    if max(width, height) > _LONG_RATIO * min(width, height):
        findings.append(Finding("long_image", path, size))
    return image


def _about_format(path: Path, role: str) -> Iterator[Finding]:
    """What the header of a readable file says about how pixels are stored; `role` is "image" or "mask"."""
    with Image.open(path) as image:
        mode, form = image.mode, image.format or ""
        frames = _frames(image)
        transparent = image.has_transparency_data
        progressive = bool(image.info.get("progressive"))
    # An MPO is a JPEG with more of them behind it, as phones write it.
    if Image.registered_extensions().get(path.suffix.lower()) != ("JPEG" if form == "MPO" else form):
        yield Finding("wrong_suffix", path, f"is {form}")
    if frames > 1:
        yield Finding("several_frames", path, f"{frames} frames")
    if progressive:
        yield Finding("progressive_jpeg", path)
    if mode == "P":
        yield Finding(f"palette_{role}", path)
    if transparent:
        yield Finding(f"alpha_{role}", path, f"mode {mode}")
    if mode == "I" or mode.startswith("I;16") or _is_deep_png(path):
        yield Finding(f"deep_{role}", path)
    if role == "image":
        if mode in ("1", "L", "LA"):
            yield Finding("grey_image", path)
        if mode == "CMYK":
            yield Finding("cmyk_image", path)
    else:
        if mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
            yield Finding("colour_mask", path, f"mode {mode}")
        if form in ("JPEG", "MPO"):
            yield Finding("jpeg_mask", path)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except DAMAGE:  # the directories of a TIFF are only followed here
        return 1


def _is_deep_png(path: Path) -> bool:
    # Pillow opens a PNG of 16 bits and three channels as one of 8.
    with path.open("rb") as file:
        start = file.read(_PNG_DEPTH + 1)
    return start.startswith(_PNG_SIGNATURE) and len(start) > _PNG_DEPTH and start[_PNG_DEPTH] == 16


# ---- masks


def _examine_mask(path: Path, findings: list[Finding]) -> np.ndarray | None:
    about = list(_about_format(path, "mask"))
    findings += about
    try:
        levels = read_levels(path)
    except DataError as error:
        findings.append(_failed(path, error))
        return None
    try:
        refuse_photograph(levels, path)
    except DataError as error:
        findings.append(Finding("photograph_mask", path, _reason(error, path)))
        return None
    is_jpeg = any(finding.kind == "jpeg_mask" for finding in about)
    findings += _about_levels(levels, path, is_jpeg)
    mask = (levels > object_threshold(levels)).astype(np.uint8)
    findings += _about_object(mask, path)
    return mask


def _about_levels(levels: np.ndarray, path: Path, is_jpeg: bool) -> Iterator[Finding]:
    """What the levels uint8 [H, W] of a mask mean for its object."""
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel()
    used = np.flatnonzero(counts)
    highest = int(used[-1])
    if 0 < highest <= 128:
        is_smeared = is_jpeg or len(used) > _MOST_LABELS
        yield Finding("dark_mask" if is_smeared else "low_labels", path, f"levels {_listed(used)}")
    if highest <= 128:
        return
    if lost := [level for level in range(3, 129) if counts[level] > 0.005 * levels.size and _is_area(levels, level)]:
        share = sum(counts[level] for level in lost) / levels.size
        yield Finding("label_below_threshold", path, f"level {_listed(lost)}: {share:.1%} of the image")
    elif len(used) > _FEW_LEVELS and not is_jpeg:
        between = counts[3:253].sum() / levels.size
        yield Finding("grey_mask", path, f"{len(used)} levels, {between:.1%} of the image neither black nor white")
    if not is_jpeg and len(used) <= _FEW_LEVELS and (counts[1] or counts[2]):
        yield Finding("faint_label", path, f"levels {_listed(used)}")


def _is_area(levels: np.ndarray, level: int) -> bool:
    """Whether pixels of a level lie together: a label, and not the soft edge or the ringing of another."""
    inner = cv2.erode((levels == level).astype(np.uint8), np.ones((5, 5), np.uint8))
    return bool(inner.sum() > 0.001 * levels.size)


def _about_object(mask: np.ndarray, path: Path) -> Iterator[Finding]:
    area = float(mask.mean())
    if area == 0:
        yield Finding("empty_mask", path)
    elif area == 1:
        yield Finding("full_mask", path)
    elif area > 0.5 and (border := border_share(mask)) > 0.9:
        yield Finding("inverted_mask", path, f"{area:.0%} of the image and {border:.0%} of its border are object")


# ---- words


def _failed(path: Path, error: DataError) -> Finding:
    """Why pixels could not be read below a header that could."""
    detail = _reason(error, path)
    with Image.open(path) as image:
        mode, form = image.mode, image.format
    if mode == "F":
        return Finding("floating_point", path)
    return Finding("truncated_jpeg" if form == "JPEG" and "truncated" in detail else "damaged_file", path, detail)


def _reason(error: DataError, path: Path) -> str:
    """What an error says about a file, without its path and the remedy, which the kind has."""
    text = str(error).removeprefix(f"{path}: ")
    return text.rpartition(": ")[0] or text


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _listed(levels: Iterable[int]) -> str:
    shown = [str(int(level)) for level in levels]
    return ", ".join(shown) if len(shown) <= 6 else ", ".join([*shown[:5], f"… {shown[-1]}"])
