"""Where a dataset keeps its images and masks: the layouts of the field, called by name or recognised."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from camox.errors import DataError

LAYOUTS = ("auto", "cod10k", "camo", "sinet", "pairs")
"""Layouts of one folder: COD10K-v3 (`{Train,Test}/{Image,GT_Object}`), CAMO (`Images/{Train,Test}` with one `GT`),
SINet's collection (`TrainDataset/{Imgs,GT}`, `TestDataset/<set>/{Imgs,GT}`), and a folder of images beside one of masks
(CHAMELEON, NC4K and most others), alone, in `train` and `test`, or with these in them. "auto" is whichever of these
it is."""

SPLITS = ("train", "test")
IMAGE_FOLDERS = ("imgs", "images", "image", "img", "im")
MASK_FOLDERS = ("gt_object", "gt", "gts", "masks", "mask")
_COLLECTION = {"train": "TrainDataset", "test": "TestDataset"}


@dataclass(frozen=True)
class Folders:
    """A folder of images and the folder of their masks; `name` tells several of one dataset apart, else ""."""

    images: Path
    masks: Path
    name: str = ""


@dataclass(frozen=True)
class Located:
    """Where one split of a dataset lies.

    `shares_masks` is True where masks of both splits lie in one folder.
    """

    layout: str
    parts: tuple[Folders, ...]
    shares_masks: bool = False

    @property
    def explanation(self) -> str:
        """What was recognised, for people."""
        first = self.parts[0]
        several = f" and {len(self.parts) - 1} more sets" if len(self.parts) > 1 else ""
        return f"layout {self.layout}: images in {first.images}, masks in {first.masks}{several}"


def locate(path: str | Path, layout: str = "auto", split: str = "train") -> Located:
    """Find one split of the dataset in a folder. Names of folders may be written in capitals or not.

    Args:
        path: the dataset's own folder. For "auto" and "pairs" it may also be that of one split or of one set.
        layout: one of `LAYOUTS`.
        split: "train" or "test". Of a set that has no splits everything is taken, for either.

    Raises:
        DataError: there is no such folder, it is laid out otherwise, or it lacks the split.
    """
    if split not in SPLITS:
        raise DataError(f'layout {layout}: split is "{split}": use "train" or "test"')
    if layout not in LAYOUTS:
        raise DataError(f'layout "{layout}" is unknown: use one of {", ".join(LAYOUTS)}')
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(
            f"no folder {root} ({_expectation(layout)}): correct the path, or download the dataset to there; "
            f"relative paths start from {Path.cwd()}"
        )
    if found := _look(root, layout, split):
        return found
    raise DataError(_complaint(root, layout, split))


def splits_of(path: str | Path) -> tuple[str, ...]:
    """Which of "train" and "test" a folder holds, both where its set has no splits."""
    root = Path(path).expanduser()
    return tuple(split for split in SPLITS if root.is_dir() and _look(root, "auto", split))


def _look(root: Path, layout: str, split: str) -> Located | None:
    finders = {"cod10k": _cod10k, "camo": _camo, "sinet": _collection, "pairs": _pairs}
    names = finders if layout == "auto" else (layout,)
    return next((found for name in names if (found := finders[name](root, split))), None)


def _cod10k(root: Path, split: str) -> Located | None:
    images, masks = _inner(root, split, "Image"), _inner(root, split, "GT_Object")
    return Located("cod10k", (Folders(images, masks),)) if images and masks else None


def _camo(root: Path, split: str) -> Located | None:
    images, masks = _inner(root, "Images"), _inner(root, "GT")
    return _divided("camo", Folders(images, masks), split) if images and masks else None


def _collection(root: Path, split: str) -> Located | None:
    """SINet's folder, or its `TestDataset` alone: several sets, of which each is one part."""
    if split == "train":
        pair = (folder := _inner(root, _COLLECTION["train"])) and _pair_in(folder)
        return Located("sinet", (pair,)) if pair else None
    folder = _inner(root, _COLLECTION["test"]) or (root if root.name.lower() == "testdataset" else None)
    sets = [(child.name, pair) for child in _folders(folder) if (pair := _pair_in(child))] if folder else []
    parts = tuple(Folders(pair.images, pair.masks, name) for name, pair in sets)
    return Located("sinet", parts) if parts else None


def _pairs(root: Path, split: str) -> Located | None:
    half = _inner(root, split)
    if half and (pair := _pair_in(half)):
        return Located("pairs", (pair,))
    pair = _pair_in(root)
    if pair is None:
        return None
    if divided := _divided("pairs", pair, split):
        return divided
    # Else the images of the other split would be taken for those of this one.
    is_whole = not any(_inner(pair.images, name) for name in SPLITS) or any(
        child.is_file() and not child.name.startswith(".") for child in pair.images.iterdir()
    )
    return Located("pairs", (pair,)) if is_whole else None


def _divided(layout: str, pair: Folders, split: str) -> Located | None:
    """The split as a folder in that of the images; the masks' may be divided alike, or hold those of both."""
    images, masks = _inner(pair.images, split), _inner(pair.masks, split)
    return Located(layout, (Folders(images, masks or pair.masks),), shares_masks=masks is None) if images else None


def _pair_in(root: Path) -> Folders | None:
    """The folder of images and the folder of masks in `root`, by the names that datasets give them."""
    images = next(filter(None, (_inner(root, name) for name in IMAGE_FOLDERS)), None)
    masks = next(filter(None, (_inner(root, name) for name in MASK_FOLDERS)), None)
    return Folders(images, masks) if images and masks else None


def _inner(root: Path, *names: str) -> Path | None:
    """The folder of those names in `root`, one in the other; None where there is none."""
    for name in names:
        same = [child for child in _folders(root) if child.name.lower() == name.lower()]
        if not same:
            return None
        root = next((child for child in same if child.name == name), same[0])
    return root


def _folders(root: Path) -> Sequence[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _expectation(layout: str) -> str:
    if layout == "cod10k":
        return "layout cod10k expects Train/Image and Train/GT_Object, or the same under Test, in it"
    if layout == "camo":
        return "layout camo expects Images/Train, Images/Test and GT in it"
    if layout == "sinet":
        return "layout sinet expects TrainDataset/Imgs and TrainDataset/GT, or sets with Imgs and GT in TestDataset"
    pair = f"a folder of images ({', '.join(IMAGE_FOLDERS)}) and one of masks ({', '.join(MASK_FOLDERS)})"
    return f"layout {layout} expects {pair} in it" + (", or the layout of COD10K, CAMO or SINet" * (layout == "auto"))


def _complaint(root: Path, layout: str, split: str) -> str:
    """Why nothing was found, and what to do: another split, a folder further down, or another layout."""
    other = next(name for name in SPLITS if name != split)
    if _look(root, layout, other):
        return f'{root}: has no {split} part, only a {other} part: give split = "{other}" to use that'
    if deeper := [child for child in _folders(root) if _look(child, layout, split)]:
        more = f" (and {len(deeper) - 1} more)" if len(deeper) > 1 else ""
        return f"{root}: holds no dataset itself, but {deeper[0]}{more} does: use that path"
    if layout != "auto" and (found := _look(root, "auto", split)):
        return f'{root}: is not laid out so ({_expectation(layout)}): it has layout = "{found.layout}"'
    if layout == "auto" and any(path.suffix in (".parquet", ".arrow") for path in _top_files(root)):
        return f'{root}: holds parquet or arrow files and no images: an experiment reads them by {{ hub = "{root}" }}'
    holds = ", ".join(_shown(root)) or "no folder"
    what = "no known layout of images and masks" if layout == "auto" else f"no {split} part in the layout {layout}"
    return (
        f"{root}: {what}: {_expectation(layout)}; it holds {holds}. "
        'Name the two folders: layout = "folder" with images and masks'
    )


def _top_files(root: Path) -> Iterator[Path]:
    """Files of a folder and of the folders in it."""
    for folder in (root, *_folders(root)):
        yield from (child for child in folder.iterdir() if child.is_file())


def _shown(root: Path, most: int = 8) -> Iterator[str]:
    folders = _folders(root)
    yield from (folder.name for folder in folders[:most])
    if len(folders) > most:
        yield f"… and {len(folders) - most} more"
