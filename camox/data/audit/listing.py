"""Which files a dataset has, paired as the loader pairs them but without giving up at the first that is missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from camox.data.audit.findings import Finding
from camox.data.layouts import Folders, Located
from camox.data.pairing import IMAGE_SUFFIXES, grouping, image_files, is_non_camouflaged

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})


@dataclass(frozen=True)
class Entry:
    """An image file, and its mask file where there is one."""

    name: str
    group: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Listing:
    """The images of one split of a dataset in order, and what their names alone show."""

    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]


def list_dataset(located: Located, super_class: str = "names", non_camouflaged: bool = False) -> Listing:
    """List what `pairing.pair_up` would pair or refuse; the arguments are its. Reads no file.

    Raises:
        DataError: the table of super-classes cannot be read.
    """
    group_of = grouping(super_class)
    entries: list[Entry] = []
    findings: list[Finding] = []
    for part in located.parts:
        images = _by_stem(part.images, findings)
        masks = _by_stem(part.masks, findings)
        if not non_camouflaged:
            _split_off(images, masks, part, findings)
        if not located.shares_masks:
            unused = (path for stem, path in masks.items() if stem not in images)
            findings += [Finding("mask_without_image", path) for path in unused]
        for stem, image in images.items():
            name = f"{part.name}/{stem}" if part.name else stem
            entries.append(Entry(name, group_of(name), image, masks.get(stem)))
    findings += _unpaired(entries)
    for entry in entries:
        findings += _names(entry)
    return Listing(tuple(entries), tuple(findings))


def _by_stem(root: Path, findings: list[Finding]) -> dict[str, Path]:
    """The first image file of each name; what else lies in the folder goes to the findings."""
    by_stem: dict[str, Path] = {}
    files = image_files(root)
    for stem, path in files:
        if stem in by_stem:
            findings.append(Finding("same_stem", path, f"beside {by_stem[stem].name}"))
        by_stem.setdefault(stem, path)
    if not files:
        findings.append(Finding("no_images", root))
    taken = {path for _, path in files}
    findings += filter(None, (_stray(path) for path in sorted(root.rglob("*")) if path not in taken))
    return by_stem


def _stray(path: Path) -> Finding | None:
    if path.is_symlink() and not path.exists():
        return Finding("broken_link", path, f"points to {path.readlink()}")
    if not path.is_file():
        return None
    if path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
        return Finding("system_file", path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Finding("nested_file", path)
    return Finding("other_file", path)


def _split_off(images: dict[str, Path], masks: dict[str, Path], part: Folders, findings: list[Finding]) -> None:
    left_out = [stem for stem, path in images.items() if is_non_camouflaged(path.name)]
    if left_out:
        findings.append(Finding("non_camouflaged", part.images, f"{len(left_out)} of {len(images)} images"))
    for stem in left_out:
        del images[stem]
        masks.pop(stem, None)


def _unpaired(entries: Iterable[Entry]) -> list[Finding]:
    return [Finding("image_without_mask", entry.image) for entry in entries if entry.mask is None]


def _names(entry: Entry) -> list[Finding]:
    findings = []
    for path in filter(None, (entry.image, entry.mask)):
        if not path.name.isascii() or " " in path.name:
            findings.append(Finding("unusual_name", path))
        if path.suffix != path.suffix.lower():
            findings.append(Finding("suffix_case", path))
    return findings
