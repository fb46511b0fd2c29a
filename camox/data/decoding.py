"""Files become arrays: images to uint8 RGB, masks to {0, 1}, damaged files to a `DataError` naming them."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import cv2
import numpy as np
from PIL import Image

from camox.errors import DataError

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error)
"""What Pillow's readers raise on damaged files, depending on the format and on the damaged place."""
_EXIF_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG in which an orientation may stand: EXIF itself, or a text that a program has put it into.
_TURNING = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
# The flags named COLOR would give BGR, and swapping the channels takes a tenth of decoding.
REDUCTIONS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    1: cv2.IMREAD_COLOR_RGB,
}
"""By what a JPEG's sides can be divided while it is decoded, which saves most of the work, largest first."""


class Encoded(Protocol):
    """An encoded image that is no file of its own; `str()` of it is what messages call it."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Its bytes, as those of a file. Raises `OSError` where they cannot be read."""

    def stamp(self) -> str:
        """A text that is another one when the bytes are, found without reading them where that is possible."""


ImageFile = Path | Encoded


def stamp(file: ImageFile) -> str:
    """A text that is another one when an image file is: its path, size and time, which need no reading."""
    if not isinstance(file, Path):
        return file.stamp()
    try:
        status = file.stat()
    except OSError:  # told when it is read
        return f"{file.absolute()} missing"
    return f"{file.absolute()} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels: stored size in pixels and EXIF orientation (1 to 8)."""

    width: int
    height: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """(width, height) of the pixels as stored."""
        return self.width, self.height

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) once the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(path: ImageFile) -> Header:
    """Size and orientation of an image file without decoding it (0.1 ms). Raises `DataError`."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            # Pillow decodes a whole PNG, 3 ms for a mask, to see whether an orientation comes behind the pixels.
            chunks = {kind for kind, *_ in _png_chunks(_read_bytes(path))} if image.format == "PNG" else _TURNING
            return Header(image.width, image.height, 1 if _TURNING.isdisjoint(chunks) else _orientation(image))
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def read_image(path: ImageFile, apply_orientation: bool = True, at_least: int | None = None) -> np.ndarray:
    """Decode an image file to uint8 [H, W, 3], RGB.

    Grey, palette and CMYK images become RGB, 16-bit levels are divided by 256, alpha is dropped (the colours
    below it stay). EXIF orientation is applied unless `apply_orientation` is False. With `at_least` a JPEG may come
    with its sides divided by 2, 4 or 8 (rounded up), as long as neither is below so many pixels. Raises `DataError`
    naming the file when it is missing, empty, no image, truncated, or has floating-point pixels.
    """
    data = _read_bytes(path)
    size = _plain_jpeg_size(data)
    if size is not None:
        return _decode_jpeg(data, path, _reduction(size, at_least))
    try:
        with Image.open(io.BytesIO(data)) as image:
            _require_intact(image.format, data, path)
            orientation = _orientation(image)
            pixels = _rgb(image, data, path, _reduction(image.size, at_least))
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return _oriented(pixels, orientation) if apply_orientation else pixels


def read_mask(path: ImageFile) -> np.ndarray:
    """Decode a mask file to uint8 [H, W] in {0, 1}; 1 is the object.

    The level of a pixel is its grey value or, in a colour or palette mask, its largest channel; transparent
    pixels count as 0. Where the file has levels above 128, the object is what exceeds 128 (the convention of
    the field's measures; a 1 or 2 beside 255 is background). Where it has none, its levels are labels (0
    background; 1, 2, … objects) and the object is what exceeds 0. 16-bit levels above 255 are scaled to 8
    bits first. EXIF orientation is applied. Raises `DataError` as `read_image` does, and where a photograph stands in
    the mask's place.
    """
    levels = read_levels(path)
    refuse_photograph(levels, path)
    _, mask = cv2.threshold(levels, object_threshold(levels), 1, cv2.THRESH_BINARY)  # a quarter of numpy's time
    return mask


def read_levels(path: ImageFile) -> np.ndarray:
    """Decode a mask file to its levels, uint8 [H, W], before `read_mask` puts a threshold to them."""
    data = _read_bytes(path)
    if _is_plain_png(data):  # two thirds of Pillow's time, for what most masks are
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if levels is not None:
            return levels
    try:
        with Image.open(io.BytesIO(data)) as image:
            _require_intact(image.format, data, path)
            orientation = _orientation(image)
            levels = _levels(image, data, path)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return _oriented(levels, orientation)


def object_threshold(levels: np.ndarray) -> int:
    """The level that an object's pixels exceed: 128, or 0 in a mask of labels."""
    return 128 if levels.max() > 128 else 0


def refuse_photograph(levels: np.ndarray, path: ImageFile) -> None:
    """Raise `DataError` where the levels [H, W] of the mask file `path` are those of a photograph."""
    most = int(levels.max())
    # Blurred edges of a soft mask are a small part of it, and labels are few.
    some = np.ascontiguousarray(levels[:: max(1, len(levels) // 128)])  # of a photograph a few rows tell as much
    counts = cv2.calcHist([some], [0], None, [256], [0, 256])  # a sixth of bincount
    between = counts[int(0.1 * most) + 1 : int(0.9 * most)].sum() / some.size
    if between > 0.6 and np.count_nonzero(counts) > 64:
        raise DataError(
            f"{path}: is no mask: {between:.0%} of its pixels are neither background nor object, as in a photograph: "
            "put the mask in its place"
        )


def _reduction(size: tuple[int, int], at_least: int | None) -> int:
    if at_least is None:
        return 1
    return next((factor for factor in REDUCTIONS if min(size) // factor >= at_least), 1)


def _rgb(image: Image.Image, data: bytes, path: ImageFile, reduction: int) -> np.ndarray:
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        return _decode_jpeg(data, path, reduction)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = (_integer_levels(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    _reject_float(image, path)
    return np.array(image.convert("RGB"))


def _levels(image: Image.Image, data: bytes, path: ImageFile) -> np.ndarray:
    """Levels of a mask as uint8 [H, W]."""
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        return _decode_jpeg(data, path).max(axis=2)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = _integer_levels(image)
        return (levels // 257 if levels.max() > 255 else levels).astype(np.uint8)
    _reject_float(image, path)
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        levels = rgba[:, :, :3].max(axis=2)
        levels[rgba[:, :, 3] < 128] = 0
        return levels
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))
    return np.array(image.convert("RGB")).max(axis=2)


def _integer_levels(image: Image.Image) -> np.ndarray:
    """Pixels of a 16-bit grey image as int64 [H, W] in [0, 65535]."""
    return np.clip(np.array(image).astype(np.int64), 0, 65535)


def _reject_float(image: Image.Image, path: ImageFile) -> None:
    if image.mode == "F":
        raise DataError(f"{path}: has floating-point pixels, whose range is not known: save it with 8 or 16 bits")


def _decode_jpeg(data: bytes, path: ImageFile, reduction: int = 1) -> np.ndarray:
    # OpenCV decodes a JPEG in less than half of Pillow's time, but fills what a truncated file lacks with
    # grey and says so on stderr only.
    if not _jpeg_is_complete(data):
        raise DataError(f"{path}: the JPEG is truncated (its end marker is missing): copy or download it again")
    flags = REDUCTIONS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _unreadable(path, error) from error
    if pixels is None:
        raise DataError(f"{path}: the JPEG is damaged and cannot be decoded: copy or download it again")
    return pixels


def _is_plain_png(data: bytes) -> bool:
    """Whether it is a whole PNG of 8-bit grey levels and nothing else that its pixels depend on: what OpenCV decodes as
    Pillow does, and without a word on stderr."""
    if not data.startswith(_PNG) or data[24:26] != b"\x08\x00":  # depth and colour type of the first chunk, IHDR
        return False
    kind = b""
    for kind, begin, end in _png_chunks(data):
        if kind == b"tRNS" or kind in _TURNING or not _is_intact(data, begin, end):
            return False
    return kind == b"IEND"


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, where it begins and where its checksum does, up to the last one that is there. (PNG
    specification, third edition, section 5.)"""
    position = len(_PNG)
    while position + 12 <= len(data):
        kind, length = data[position + 4 : position + 8], int.from_bytes(data[position : position + 4], "big")
        end = position + 8 + length
        yield kind, position + 4, end
        if kind == b"IEND":
            return
        position = end + 4


def _is_intact(data: bytes, begin: int, end: int) -> bool:
    return zlib.crc32(data[begin:end]).to_bytes(4, "big") == data[end : end + 4]  # 1 ms for 1 MB


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment up to the first scan's header, whose end is that of the data.

    They are skipped by their lengths, because an EXIF thumbnail is a JPEG of its own. (ITU-T T.81, annex B.)
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:
            yield marker, position, len(data)
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position + 4, end
        position = end


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan: in the scan itself FF D9 cannot occur (FF is followed by a
    stuffed 00)."""
    scan = next((begin for marker, begin, _ in _jpeg_segments(data) if marker == 0xDA), len(data))
    return data.rfind(b"\xff\xd9", scan) >= 0  # mostly the last two bytes


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that needs none of Pillow's care, which takes a tenth of decoding: 8 bits, grey or
    three channels, and no EXIF block, whose orientation would count."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    size = None
    for marker, begin, end in _jpeg_segments(data):
        if marker == 0xE1 and data.startswith(b"Exif", begin):
            return None
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            depth, height, width, channels = struct.unpack_from(">BHHB", data.ljust(end), begin)
            if depth != 8 or channels not in (1, 3) or not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):
                return None
            size = width, height
        if marker == 0xDA:
            return size
    return None


def _require_intact(form: str | None, data: bytes, path: ImageFile) -> None:
    """Raise `DataError` where a chunk of a PNG does not match its checksum: Pillow would show what is left of it."""
    if form == "PNG" and not all(_is_intact(data, begin, end) for _, begin, end in _png_chunks(data)):
        raise DataError(f"{path}: the PNG is damaged (a checksum does not match): copy or download it again")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or where the EXIF block is damaged, as image viewers do."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels [H, W, ...] upright (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _read_bytes(path: ImageFile) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes): copy or download it again")
    return data


def _unreadable(path: ImageFile, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        gone = ""
        if isinstance(path, Path) and not path.parent.is_dir():
            gone = f": its folder {path.parent} is gone; is the disk or share that held it there?"
        return DataError(f"{path}: no such file{gone}")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{path}: has too many pixels to be a photograph ({error}): make it smaller")
    if isinstance(error, Image.UnidentifiedImageError):
        what = "the file is empty (0 bytes)" if _is_empty(path) else "not an image of a known format"
        return DataError(f"{path}: {what}: copy or download it again, or remove it")
    return DataError(f"{path}: cannot be read ({error}): copy or download it again")


def _is_empty(path: ImageFile) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return not file.read(1)
    return False
