"""A dataset with one trap: for every kind of finding, files that have it and what the loader must do with them."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 180, 240


def photograph(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Blobs of colour, unlike for each seed: uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).normal(size=(height // 4, width // 4, 3)).astype(np.float32)
    smooth = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 1.3), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + smooth * 60 / smooth.std(), 1, 254).astype(np.uint8)


def truth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An ellipse away from the border: uint8 [height, width] in {0, 1}."""
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2 - 9, height // 2 + 5), (width // 5, height // 7), 20, 0, 360, 1, -1)
    return mask


TRUTH = truth()


class Pairs:
    """A folder with `Imgs` and `GT`, in which every pair is as it should be until a trap is written into it."""

    def __init__(self, root: Path, clean: int = 2):
        self.images, self.masks = root / "Imgs", root / "GT"
        for folder in (self.images, self.masks):
            folder.mkdir(parents=True)
        for number in range(clean):
            self.image(f"clean_{number}.jpg", photograph(number + 1))
            self.mask(f"clean_{number}.png")

    def image(self, name: str = "trap.jpg", pixels: Any = None, **options: Any) -> Path:
        return _saved(self.images / name, photograph() if pixels is None else pixels, options)

    def mask(self, name: str = "trap.png", levels: Any = None, **options: Any) -> Path:
        return _saved(self.masks / name, TRUTH * 255 if levels is None else levels, options)


def _saved(path: Path, picture: Any, options: dict[str, Any]) -> Path:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


def _pair(image: Callable[[Pairs], Path] | None = None, mask: Callable[[Pairs], Path] | None = None):
    """A trap in the image or the mask of one pair; gives the path of the one that has it."""

    def write(pairs: Pairs) -> Path:
        made = [image(pairs) if image else pairs.image(), mask(pairs) if mask else pairs.mask()]
        return made[0] if image else made[1]

    return write


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _damaged_png(pairs: Pairs) -> Path:
    path = pairs.image("trap.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    return path


def _endless_png(pairs: Pairs) -> Path:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0), b"IDAT"]
    data = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return _written(pairs.images / "trap.png", b"\x89PNG\r\n\x1a\n" + data)


def _palette_mask(pairs: Pairs) -> Path:
    mask = Image.fromarray(TRUTH).convert("P")
    mask.putdata(TRUTH.ravel().tolist())
    mask.putpalette([0, 0, 0, 255, 200, 0])
    return pairs.mask(levels=mask)


def _deep(path: Path, levels: np.ndarray) -> Path:
    cv2.imwrite(str(path), levels)
    return path


def _animated(pairs: Pairs) -> Path:
    first, second = Image.fromarray(photograph()), Image.fromarray(photograph(9))
    return pairs.image("trap.webp", first, save_all=True, append_images=[second], lossless=True)


def _mislabelled(pairs: Pairs) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(photograph()).save(buffer, "PNG")
    return _written(pairs.images / "trap.jpg", buffer.getvalue())


def _soft() -> np.ndarray:
    return cv2.GaussianBlur(TRUTH * 255, (0, 0), 3)


def _two_labels() -> np.ndarray:
    levels = TRUTH * 255
    levels[100:130, 110:150] = 100
    return levels


def _without_image(pairs: Pairs) -> Path:
    return pairs.mask("orphan.png")


def _broken_link(pairs: Pairs) -> Path:
    path = pairs.images / "trap.jpg"
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere.jpg")
    return path


def _same_stem(pairs: Pairs) -> Path:
    pairs.image("clean_0.png")
    return pairs.images / "clean_0.png"


def _no_images(pairs: Pairs) -> Path:
    for path in pairs.images.iterdir():
        path.unlink()
    return pairs.images


def _non_camouflaged(pairs: Pairs) -> Path:
    pairs.image("COD10K-NonCAM-1-Aquatic-1-Fish-5.jpg")
    pairs.mask("COD10K-NonCAM-1-Aquatic-1-Fish-5.png", TRUTH * 0)
    return pairs.images


def _inverted_dataset(pairs: Pairs) -> Path:
    for number in range(2, 12):
        pairs.image(f"clean_{number}.jpg", photograph(number + 1))
        pairs.mask(f"clean_{number}.png", (1 - TRUTH) * 255)
    return pairs.masks


def _image(**options: Any) -> Callable[[Pairs], Path]:
    return _pair(image=lambda pairs: pairs.image(**options))


def _mask(**options: Any) -> Callable[[Pairs], Path]:
    return _pair(mask=lambda pairs: pairs.mask(**options))


def _sized(height: int, width: int) -> Callable[[Pairs], Path]:
    return _pair(
        lambda pairs: pairs.image(pixels=photograph(0, height, width)),
        lambda pairs: pairs.mask(levels=truth(height, width) * 255),
    )


def _turned(orientation: int, mask_shape: tuple[int, int]) -> Callable[[Pairs], Path]:
    return _pair(
        lambda pairs: pairs.image("trap.png", exif=_exif(orientation)),
        lambda pairs: pairs.mask(levels=truth(*mask_shape) * 255),
    )


def _alpha(pixels: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, opaque])


REFUSED = "refused"
"""The dataset cannot be opened, and the message names the file."""
FAILS = "fails"
"""The dataset opens, and the pair is a message naming the file when its turn comes."""
UNSEEN = "unseen"
"""The dataset opens without the file."""

Loads = tuple[np.ndarray | None, np.ndarray | None]
"""Image and mask that the loader gives, where they are known."""

_GREY = cv2.cvtColor(photograph(), cv2.COLOR_RGB2GRAY)
_WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)

TRAPS: dict[str, tuple[Callable[[Pairs], Path], str | Loads]] = {
    "no_images": (_no_images, REFUSED),
    "image_without_mask": (lambda pairs: pairs.image(), REFUSED),
    "same_stem": (_same_stem, REFUSED),
    "broken_link": (_broken_link, UNSEEN),
    "mask_without_image": (_without_image, UNSEEN),
    "nested_file": (lambda pairs: _written(pairs.images / "more" / "a.jpg", b"x"), UNSEEN),
    "non_camouflaged": (_non_camouflaged, UNSEEN),
    "system_file": (lambda pairs: _written(pairs.images / "._clean_0.jpg", b"x"), UNSEEN),
    "other_file": (lambda pairs: _written(pairs.masks / "readme.txt", b"x"), UNSEEN),
    "empty_file": (_pair(lambda pairs: _written(pairs.images / "trap.jpg", b"")), REFUSED),
    "not_an_image": (_pair(mask=lambda pairs: _written(pairs.masks / "trap.png", b"<html>")), REFUSED),
    "damaged_header": (_pair(_endless_png), REFUSED),
    "truncated_jpeg": (_pair(lambda pairs: _cut(pairs.image(), 0.7)), FAILS),
    "damaged_file": (_pair(_damaged_png), FAILS),
    "floating_point": (_image(name="trap.tif", pixels=_GREY.astype(np.float32)), FAILS),
    "mask_size": (_mask(levels=truth(90, 120) * 255), REFUSED),
    "photograph_mask": (_mask(levels=_GREY), FAILS),
    "exif_ignored": (_turned(6, (HEIGHT, WIDTH)), (photograph(), TRUTH)),
    "exif_ambiguous": (_turned(3, (HEIGHT, WIDTH)), (photograph()[::-1, ::-1], TRUTH)),
    "exif_rotation": (_turned(6, (WIDTH, HEIGHT)), (np.rot90(photograph(), -1), truth(WIDTH, HEIGHT))),
    "inverted_dataset": (_inverted_dataset, UNSEEN),
    "inverted_mask": (_mask(levels=(1 - TRUTH) * 255), (None, 1 - TRUTH)),
    "full_mask": (_mask(levels=TRUTH * 0 + 255), (None, TRUTH * 0 + 1)),
    "label_below_threshold": (_mask(levels=_two_labels()), (None, (_two_labels() > 128).astype(np.uint8))),
    "dark_mask": (_mask(name="trap.jpg", levels=TRUTH * 60, quality=60), (None, None)),
    "empty_mask": (_mask(levels=TRUTH * 0), (None, TRUTH * 0)),
    "grey_mask": (_mask(levels=_soft()), (None, (_soft() > 128).astype(np.uint8))),
    "faint_label": (_mask(levels=TRUTH * 253 + 2), (None, TRUTH)),
    "low_labels": (_mask(levels=TRUTH), (None, TRUTH)),
    "colour_mask": (_mask(levels=np.dstack([TRUTH * 200, TRUTH * 20, TRUTH * 0])), (None, TRUTH)),
    "palette_mask": (_pair(mask=_palette_mask), (None, TRUTH)),
    "alpha_mask": (_mask(levels=_alpha(_WHITE, TRUTH * 255)), (None, TRUTH)),
    "deep_mask": (
        _pair(mask=lambda pairs: _deep(pairs.masks / "trap.png", TRUTH.astype(np.uint16) * 65535)),
        (None, TRUTH),
    ),
    "jpeg_mask": (_mask(name="trap.jpg", quality=75), (None, TRUTH)),
    "constant_image": (_image(pixels=_WHITE // 2), FAILS),
    "tiny_image": (_sized(141, 154), (None, truth(141, 154))),
    "huge_image": (_sized(3001, 4001), (None, truth(3001, 4001))),
    "long_image": (_sized(180, 600), (None, truth(180, 600))),
    "grey_image": (_image(name="trap.png", pixels=_GREY), (np.dstack([_GREY] * 3), TRUTH)),
    "palette_image": (
        _image(name="trap.png", pixels=Image.fromarray(photograph()).convert("P")),
        (np.array(Image.fromarray(photograph()).convert("P").convert("RGB")), TRUTH),
    ),
    "cmyk_image": (
        _image(name="trap.tif", pixels=Image.fromarray(photograph()).convert("CMYK")),
        (photograph(), TRUTH),
    ),
    "alpha_image": (_image(name="trap.png", pixels=_alpha(photograph(), TRUTH * 255)), (photograph(), TRUTH)),
    "deep_image": (
        _pair(lambda pairs: _deep(pairs.images / "trap.png", photograph()[..., ::-1].astype(np.uint16) * 257)),
        (photograph(), TRUTH),
    ),
    "several_frames": (_pair(_animated), (photograph(), TRUTH)),
    "progressive_jpeg": (_image(progressive=True), (None, TRUTH)),
    "unusual_name": (
        _pair(lambda pairs: pairs.image("ein Frösch 蛙.jpg"), lambda pairs: pairs.mask("ein Fro\u0308sch 蛙.png")),
        (None, TRUTH),
    ),
    "suffix_case": (_image(name="trap.JPG"), (None, TRUTH)),
    "wrong_suffix": (_pair(_mislabelled), (photograph(), TRUTH)),
}
