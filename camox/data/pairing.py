"""Which image belongs to which mask, found by their names and checked without decoding a pixel."""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from camox.data.decoding import Header, ImageFile, read_header
from camox.data.layouts import Folders, Located
from camox.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
NON_CAMOUFLAGED = "NonCAM"
"""Group of images without a camouflaged object."""
_LISTED = 10  # names in a message, before it says how many more


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file.

    `apply_orientation` is False where the mask fits the stored pixels of the image but not the image turned
    as its EXIF block says.
    """

    name: str
    image: ImageFile
    mask: ImageFile
    group: str
    apply_orientation: bool = True


@dataclass(frozen=True)
class Pairs:
    """The pairs of one dataset in order of their names, and what the user must be told about it."""

    pairs: tuple[Pair, ...]
    notices: tuple[str, ...] = ()


def pair_up(located: Located, super_class: str = "names", non_camouflaged: bool = False) -> Pairs:
    """Pair the image and mask files of a dataset by stem.

    Only where a folder of images has no image file itself are its subfolders read (to any depth): the masks must then
    lie in the same subfolders of the folder of masks, and names are `subfolder/stem`. Hidden files and files that are
    no images by their suffix are left out. Masks without an image are counted in a notice, unless two splits share
    them. Images that COD10K calls non-camouflaged (`COD10K-NonCAM-*`, their masks are black) are left out with a notice
    that counts them.

    Args:
        super_class: where groups come from: "names" (`COD10K-CAM-1-Aquatic-3-Crab-32` is "Aquatic", else the first
            subfolder, else the part's name), "none", or a CSV file with the columns name and super_class, which knows
            images by name or stem.
        non_camouflaged: keep these images; their group is "NonCAM".

    Raises:
        DataError: a missing or empty folder, images without mask, two files of one stem, files whose headers cannot be
            read or whose sizes differ, or a table that cannot be read.
    """
    group_of = grouping(super_class)
    found: dict[str, Pair] = {}
    notices: list[str] = []
    for part in located.parts:
        images, masks = _files_of(part)
        if not non_camouflaged:
            notices += _split_off(images, masks, part.images)
        if not located.shares_masks and (unused := len(masks.keys() - images.keys())):
            notices.append(f"{unused} masks of {part.masks} have no image and are left out")
        _require_masks(images, masks, part)
        for stem, image in images.items():
            name = f"{part.name}/{stem}" if part.name else stem
            found[name] = Pair(name, image, masks[stem], group_of(name))
    notices += notices_of_groups(super_class, found.values())
    return Pairs(checked(list(found.values())), tuple(notices))


def super_class_of(name: str) -> str:
    """The group that a name tells: "Aquatic" of `COD10K-CAM-1-Aquatic-3-Crab-32`, "NonCAM" of an image that COD10K
    calls non-camouflaged, else the first subfolder, else ""."""
    stem = name.rpartition("/")[2]
    if is_non_camouflaged(name):
        return NON_CAMOUFLAGED
    match = re.match(r"COD10K-CAM-\d+-([^-]+)-", stem)
    return match[1] if match else name.split("/")[0] if "/" in name else ""


def is_non_camouflaged(name: str) -> bool:
    """Whether COD10K's name of an image says that it has no camouflaged object."""
    return name.rpartition("/")[2].startswith("COD10K-NonCAM")


def folder(images: str | Path, masks: str | Path) -> Located:
    """A folder of images and a folder of masks as a dataset of its own. Raises `DataError` where one is missing."""
    for what, given in (("images", images), ("masks", masks)):
        if not Path(given).expanduser().is_dir():
            raise DataError(
                f"no folder {Path(given).expanduser()} (layout folder expects the {what} in it): "
                f"correct the path of {what}; relative paths start from {Path.cwd()}"
            )
    return Located("folder", (Folders(Path(images).expanduser(), Path(masks).expanduser()),))


def _files_of(part: Folders) -> tuple[dict[str, Path], dict[str, Path]]:
    return _files_by_stem(part.images), _files_by_stem(part.masks)


def _files_by_stem(root: Path) -> dict[str, Path]:
    """Image files of `root` by stem, or by path without suffix where all lie in subfolders, in order."""
    files = image_files(root)
    if not files:
        raise DataError(
            f"{root}: has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): correct the path or fill the folder"
        )
    by_stem: dict[str, Path] = {}
    twice: list[str] = []
    for stem, path in files:
        if stem in by_stem:
            twice.append(f"{by_stem[stem].name} and {path.name}")
        by_stem[stem] = path
    if twice:
        raise DataError(
            f"{root}: {len(twice)} names occur twice: {first_of(twice)}; keep one file of each name, "
            f"because a mask is found by its name without suffix"
        )
    return dict(sorted(by_stem.items()))


def image_files(root: Path) -> list[tuple[str, Path]]:
    """Image files of `root` in order, each after the name it is paired by, which two files may have.

    Names are stems; where the folder itself has no image file, all of its subfolders are read and names are paths
    without suffix.
    """
    files = [path for path in root.iterdir() if _is_image(path)]
    if not files:
        files = [path for path in root.rglob("*") if _is_image(path)]
    # Archives made on a Mac store accents decomposed; the same name must match in either form.
    return [
        (unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix()), path)
        for path in sorted(files)
    ]


def _is_image(path: Path) -> bool:
    # "._name.jpg" beside every file is what a Mac leaves on foreign disks.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _split_off(images: dict[str, Path], masks: dict[str, Path], folder: Path) -> list[str]:
    """Takes non-camouflaged images and their masks out; the notice that counts them."""
    left_out = [stem for stem, path in images.items() if is_non_camouflaged(path.name)]
    if not left_out:
        return []
    if len(left_out) == len(images):
        raise DataError(
            f"{folder}: all {len(left_out)} images are non-camouflaged (COD10K-NonCAM-*): "
            "non_camouflaged = true uses them"
        )
    for stem in left_out:
        del images[stem]
        masks.pop(stem, None)
    return [f"{len(left_out)} non-camouflaged images of {folder} are left out (non_camouflaged = true keeps them)"]


def _require_masks(images: Mapping[str, Path], masks: Mapping[str, Path], part: Folders) -> None:
    without = [path.name for stem, path in images.items() if stem not in masks]
    if without:
        raise DataError(
            f"{len(without)} of {len(images)} images in {part.images} have no mask of the same name in "
            f"{part.masks}: {first_of(without)}; add the masks or remove these images"
        )


# ---- groups


def grouping(super_class: str) -> Callable[[str], str]:
    """Name of a pair → its group, by `super_class` as `pair_up` takes it. Raises `DataError` for a bad table."""
    if super_class in _RULES:
        return _RULES[super_class]
    table = _read_table(Path(super_class).expanduser())
    return lambda name: table.get(name, table.get(name.rpartition("/")[2], ""))


def notices_of_groups(super_class: str, pairs: Iterable[Pair]) -> list[str]:
    """What the user must be told about pairs that a table of super-classes does not know."""
    unknown = [pair.name for pair in pairs if not pair.group] if super_class not in _RULES else []
    if not unknown:
        return []
    return [f"{len(unknown)} images are not in {super_class} and have no super-class: {first_of(unknown)}"]


_RULES: Mapping[str, Callable[[str], str]] = {"names": super_class_of, "none": lambda name: ""}


def _read_table(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := {"name", "super_class"} - set(rows.fieldnames or ()):
                raise DataError(
                    f"{path}: has no column {' and '.join(sorted(missing))}: data.super_class names a CSV file with "
                    "the columns name and super_class"
                )
            return {stem_of(row["name"] or ""): row["super_class"] or "" for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: the table of super-classes cannot be read ({error}): correct data.super_class, or set it to "
            '"names"'
        ) from error


def stem_of(name: str) -> str:
    """A name without the suffix of an image file, if it has one."""
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else path.as_posix()


# ---- headers


def checked(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Read every header (0.1 ms a pair), choose orientations, and raise one error for all that do not fit."""
    fitting: list[Pair] = []
    unreadable: list[str] = []
    mismatches: list[str] = []
    for pair in pairs:
        try:
            image, mask = read_header(pair.image), read_header(pair.mask)
        except DataError as error:
            unreadable.append(str(error))
            continue
        if (applies := applies_orientation(image, mask)) is None:
            mismatches.append(f"{pair.image} {_size(image.upright)}, mask {_size(mask.upright)}")
            continue
        fitting.append(replace(pair, apply_orientation=applies))
    complaints = []
    if unreadable:
        complaints.append(f"{len(unreadable)} files cannot be read:{_lines(unreadable)}")
    if mismatches:
        complaints.append(
            f"{len(mismatches)} masks differ from their image in size:{_lines(mismatches)}\n"
            f"Make each mask again at its image's size, or remove the pair."
        )
    if complaints:
        raise DataError("\n".join(complaints))
    return tuple(fitting)


def applies_orientation(image: Header, mask: Header) -> bool | None:
    """Whether an image is turned as its EXIF block says to fit its mask; None where it does not fit either way."""
    if mask.upright not in (image.upright, image.stored):
        return None
    return mask.upright == image.upright


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def first_of(items: Sequence[str]) -> str:
    """The first of the items for a message, and how many more there are."""
    return ", ".join([*items[:_LISTED], *_more(items)])


def _lines(items: Sequence[str]) -> str:
    return "".join(f"\n  {item}" for item in [*items[:_LISTED], *_more(items)])


def _more(items: Sequence[str]) -> list[str]:
    return [f"… and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
