"""Files, folders and patterns become a list of images, each with the name that its results get."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from camox.data.pairing import IMAGE_SUFFIXES
from camox.errors import DataError
from camox.tracking.console import Console, counted
from camox.tracking.wording import listed

_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class InputImage:
    """An image file, and the path below the folder for results that they get, without suffix."""

    path: Path
    name: Path


def find_images(images: str | Path | Sequence[str | Path], out: Path, console: Console) -> list[InputImage]:
    """All images of files, folders and patterns, each once, in the order given and by name below that.

    Of a folder its own images are taken, not those of subfolders. A pattern (`*`, `?`, `[…]`, and `**` for folders of
    any depth) names results by the path below its first part without a wildcard, so that subfolders keep theirs. Files
    that are no images by their suffix, and results below `out`, are skipped with a notice; hidden ones without.

    Raises DataError where something given is not there, or has no image.
    """
    given = [images] if isinstance(images, str | Path) else list(images)
    found: dict[Path, InputImage] = {}
    for text in given:
        for image in _of_one(Path(text), out, console):
            found.setdefault(image.path.absolute(), image)  # a link has a name of its own, which gets its result
    if not found:
        raise DataError("no images given: name image files, folders of images, or a pattern such as 'photos/**/*.jpg'")
    return list(found.values())


def _of_one(path: Path, out: Path, console: Console) -> list[InputImage]:
    # A file may have a bracket in its name: what is there is no pattern.
    if path.is_dir():
        return _of_folder(path, console)
    if path.exists():
        return [InputImage(path, Path(path.stem))]
    if _WILDCARDS.isdisjoint(str(path)):
        raise DataError(f"{path}: no such file or folder: give images, folders of images, or a quoted pattern")
    return _of_pattern(path, out, console)


def _of_folder(folder: Path, console: Console) -> list[InputImage]:
    try:
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error}): check its permissions") from error
    images = _images_among(files, str(folder), console)
    if not images:
        raise DataError(
            f"{folder}: has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): give the folder that holds the "
            f"images itself, or '{folder}/**/*' for those of all subfolders"
        )
    return [InputImage(path, Path(path.stem)) for path in images]


def _of_pattern(pattern: Path, out: Path, console: Console) -> list[InputImage]:
    fixed = next(number for number, part in enumerate(pattern.parts) if not _WILDCARDS.isdisjoint(part))
    root = Path(*pattern.parts[:fixed])
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    files = [path for path in matches if path.is_file()]
    inside = out.resolve()
    results = [path for path in files if path.resolve().is_relative_to(inside)]
    if results:
        console.notice(f"{pattern}: {counted(len(results), 'file')} skipped: below {out}, where results go")
    images = _images_among([path for path in files if path not in set(results)], str(pattern), console)
    if not images:
        raise DataError(
            f"{pattern}: matches no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): check the pattern; '**' stands "
            "for folders of any depth"
        )
    return [InputImage(path, path.relative_to(root).with_suffix("")) for path in images]


def _images_among(files: Sequence[Path], where: str, console: Console) -> list[Path]:
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    others = [path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    if images and others:
        console.notice(f"{where}: {counted(len(others), 'file')} skipped, no images by suffix: {listed(others)}")
    return images
