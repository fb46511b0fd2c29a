"""How datasets lie on disk: which image belongs to which mask, found and checked without decoding a pixel."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from camox.data.decoding import read_header
from camox.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_LISTED = 10  # names in a message, before it says how many more


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file.

    `apply_orientation` is False where the mask fits the stored pixels of the image but not the image turned
    as its EXIF block says.
    """

    name: str
    image: Path
    mask: Path
    group: str
    apply_orientation: bool = True


@dataclass(frozen=True)
class Layout:
    """The pairs of one dataset in order of their names, and what the user must be told about it."""

    pairs: tuple[Pair, ...]
    notices: tuple[str, ...] = ()


def cod10k(path: str | Path, split: str, non_camouflaged: bool = False) -> Layout:
    """Open COD10K-v3: `{Train,Test}/Image` with `{Train,Test}/GT_Object`.

    `split` is "train" or "test". The group of a pair is the super-class in its name
    (`COD10K-CAM-1-Aquatic-3-Crab-32` is "Aquatic"). Non-camouflaged images (`COD10K-NonCAM-*`, black masks)
    are left out with a notice that counts them, unless `non_camouflaged`; then their group is "NonCAM".
    Raises `DataError` as `folder` does.
    """
    if split not in ("train", "test"):
        raise DataError(f'layout cod10k: split is "{split}": use "train" or "test"')
    root = Path(path).expanduser()
    part = split.capitalize()
    _require_folders(root, "cod10k", (f"{part}/Image", f"{part}/GT_Object"))
    images = _files_by_stem(root / part / "Image")
    masks = _files_by_stem(root / part / "GT_Object")

    notices: tuple[str, ...] = ()
    if not non_camouflaged:
        left_out = [stem for stem in images if stem.startswith("COD10K-NonCAM")]
        for stem in left_out:
            del images[stem]
            masks.pop(stem, None)
        if left_out:
            notices = (
                f"{len(left_out)} non-camouflaged images of {root / part} are left out "
                f"(non_camouflaged = true keeps them)",
            )
        if left_out and not images:
            raise DataError(
                f"{root / part / 'Image'}: all {len(left_out)} images are non-camouflaged (COD10K-NonCAM-*): "
                f"non_camouflaged = true uses them"
            )
    groups = {stem: _super_class(stem) for stem in images}
    return _paired(images, masks, groups, root / part / "Image", root / part / "GT_Object", notices)


def folder(images: str | Path, masks: str | Path) -> Layout:
    """Open a folder of images and a folder of masks whose files have the same stems.

    The group of every pair is "". Only where `images` has no image file itself are its subfolders read (to
    any depth): the masks must then lie in the same subfolders of `masks`, names are `subfolder/stem`, and the
    group is the first subfolder's name. Hidden files and files that are no images by their suffix are left
    out. Masks without an image are counted in a notice. Raises `DataError` for a missing or empty folder,
    images without mask, two files of one stem, and files whose headers cannot be read or whose sizes differ.
    """
    image_folder, mask_folder = Path(images).expanduser(), Path(masks).expanduser()
    for what, given in (("images", image_folder), ("masks", mask_folder)):
        if not given.is_dir():
            raise DataError(
                f"no folder {given} (layout folder expects the {what} in it): "
                f"correct the path of {what}; relative paths start from {Path.cwd()}"
            )
    image_files, mask_files = _files_by_stem(image_folder), _files_by_stem(mask_folder)
    groups = {name: name.split("/")[0] if "/" in name else "" for name in image_files}
    unused = len(mask_files.keys() - image_files.keys())
    notices = (f"{unused} masks of {mask_folder} have no image and are left out",) if unused else ()
    return _paired(image_files, mask_files, groups, image_folder, mask_folder, notices)


def _require_folders(root: Path, layout: str, expected: Sequence[str]) -> None:
    missing = [name for name in expected if not (root / name).is_dir()]
    if not missing:
        return
    expects = f"layout {layout} expects {' and '.join(expected)} in it"
    if not root.is_dir():
        raise DataError(
            f"no folder {root} ({expects}): correct the path, or download the dataset to there; "
            f"relative paths start from {Path.cwd()}"
        )
    deeper = [p for p in sorted(root.iterdir()) if p.is_dir() and all((p / name).is_dir() for name in expected)]
    remedy = f"{deeper[0]} has them: use that path" if deeper else "correct the path or complete the dataset"
    raise DataError(f"{root}: no folder {', '.join(missing)} ({expects}): {remedy}")


def _files_by_stem(root: Path) -> dict[str, Path]:
    """Image files of `root` by stem, or by path without suffix where all lie in subfolders, in order."""
    files = [path for path in root.iterdir() if _is_image(path)]
    if not files:
        files = [path for path in root.rglob("*") if _is_image(path)]
    if not files:
        raise DataError(
            f"{root}: has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): correct the path or fill the folder"
        )
    by_stem: dict[str, Path] = {}
    twice: list[str] = []
    for path in sorted(files):
        # Archives made on a Mac store accents decomposed; the same name must match in either form.
        stem = unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix())
        if stem in by_stem:
            twice.append(f"{by_stem[stem].name} and {path.name}")
        by_stem[stem] = path
    if twice:
        raise DataError(
            f"{root}: {len(twice)} names occur twice: {_first(twice)}; keep one file of each name, "
            f"because a mask is found by its name without suffix"
        )
    return dict(sorted(by_stem.items()))


def _is_image(path: Path) -> bool:
    # "._name.jpg" beside every file is what a Mac leaves on foreign disks.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _paired(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    groups: Mapping[str, str],
    image_folder: Path,
    mask_folder: Path,
    notices: tuple[str, ...],
) -> Layout:
    without = [path.name for stem, path in images.items() if stem not in masks]
    if without:
        raise DataError(
            f"{len(without)} of {len(images)} images in {image_folder} have no mask of the same name in "
            f"{mask_folder}: {_first(without)}; add the masks or remove these images"
        )
    pairs = [Pair(stem, path, masks[stem], groups[stem]) for stem, path in images.items()]
    return Layout(_checked(pairs), notices)


def _checked(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Read every header (0.1 ms a pair), choose orientations, and raise one error for all that do not fit."""
    checked: list[Pair] = []
    unreadable: list[str] = []
    mismatches: list[str] = []
    for pair in pairs:
        try:
            image, mask = read_header(pair.image), read_header(pair.mask)
        except DataError as error:
            unreadable.append(str(error))
            continue
        if mask.upright not in (image.upright, image.stored):
            mismatches.append(f"{pair.image} {_size(image.upright)}, mask {_size(mask.upright)}")
            continue
        checked.append(replace(pair, apply_orientation=mask.upright == image.upright))
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
    return tuple(checked)


def _super_class(stem: str) -> str:
    if stem.startswith("COD10K-NonCAM"):
        return "NonCAM"
    match = re.match(r"COD10K-CAM-\d+-([^-]+)-", stem)
    return match[1] if match else ""


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _first(items: Sequence[str]) -> str:
    return ", ".join([*items[:_LISTED], *_more(items)])


def _lines(items: Sequence[str]) -> str:
    return "".join(f"\n  {item}" for item in [*items[:_LISTED], *_more(items)])


def _more(items: Sequence[str]) -> list[str]:
    return [f"… and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
