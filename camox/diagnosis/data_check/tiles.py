"""Small pictures of images with their masks outlined, and which of a dataset are shown."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from camox.data.audit.files import Examined
from camox.data.audit.findings import KINDS
from camox.data.audit.statistics import border_share
from camox.data.decoding import read_header, read_image, read_mask
from camox.data.pairing import applies_orientation
from camox.diagnosis.contact_sheet import draw_sheet
from camox.diagnosis.data_check.result import Result
from camox.errors import DataError
from camox.inference.pictures import outlined, overlay

_GREY = 210


@dataclass(frozen=True)
class Tile:
    """One image on a contact sheet.

    `picture` is uint8 [h, w, 3] RGB, grey throughout where the image cannot be read. `title` is the worst that was
    found about the pair, else "".
    """

    picture: np.ndarray
    dataset: str
    name: str
    title: str
    is_problem: bool
    area: float | None
    contrast: float | None


def choose_tiles(result: Result, count: int, side: int = 240) -> list[Tile]:
    """At most `count` tiles, problems first but, where others are left, in no more than half of them.

    The rest is drawn evenly from all datasets, with notes before without; the choice depends on names alone. Each
    image is decoded once more.
    """
    duplicated = {place for one in result.duplicates if one.severity == "problem" for place in (one.first, one.second)}
    ranked: list[list[tuple[int, int]]] = [[], []]
    for i, audited in enumerate(result.audited):
        # A checksum orders alike on every machine and mixes classes that names would keep together.
        order = sorted(range(len(audited.examined)), key=lambda j: _draw(audited.examined[j]))
        for j in order:
            is_problem = (i, j) in duplicated or _worst(audited.examined[j])[1]
            ranked[0 if is_problem else 1].append((i, j))
    problems, others = (_in_turns(places) for places in ranked)
    shown = problems[: max(count - len(others), -(-count // 2))]
    shown += others[: count - len(shown)]
    return [_tile(result, place, place in duplicated, side) for place in shown]


def write_sheet(result: Result, tiles: Sequence[Tile], path: Path) -> None:
    """Write a PNG of the tiles in rows, with names, share of the object and contrast, or what is wrong, below each."""
    shown = f"{len(tiles)} of {result.images} images, masks outlined"
    title = f"{result.path.name or result.path}: {result.verdict}"
    draw_sheet([(tile.picture, *_caption(tile)) for tile in tiles], title, shown).save(path)


def thumbnail(one: Examined, side: int) -> np.ndarray:
    """The image of an entry with its mask outlined, its longer side `side` pixels: uint8 [h, w, 3] RGB."""
    try:
        image, mask = _read(one)
    except DataError:
        return np.full((side * 3 // 4, side, 3), _GREY, np.uint8)
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if mask is None:
        return small
    small_mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    # An outline does not say which side of it is object; where that may be the outer one, a tint does.
    return overlay(small, small_mask) if border_share(mask) > 0.5 else outlined(small, small_mask)


def _read(one: Examined) -> tuple[np.ndarray, np.ndarray | None]:
    """Image and mask as the loader takes them; no mask where it cannot be read or does not fit."""
    path, mask_path = one.entry.image, one.entry.mask
    if one.measured is None or mask_path is None:
        return read_image(path), None
    applied = applies_orientation(read_header(path), read_header(mask_path))
    return read_image(path, apply_orientation=applied is not False), read_mask(mask_path)


def _tile(result: Result, place: tuple[int, int], is_duplicate: bool, side: int) -> Tile:
    one = result.at(place)
    title, is_problem = _worst(one)
    if is_duplicate and not is_problem:
        title, is_problem = "near-duplicate in another set", True
    measured = one.measured
    return Tile(
        picture=thumbnail(one, side),
        dataset=result.audited[place[0]].dataset.title,
        name=one.entry.name,
        title=title,
        is_problem=is_problem,
        area=measured.area if measured else None,
        contrast=measured.contrast if measured else None,
    )


def _worst(one: Examined) -> tuple[str, bool]:
    """Title of the worst finding about a pair, and whether it is a problem."""
    kinds = {finding.kind for finding in one.findings}
    if one.entry.mask is None:
        kinds.add("image_without_mask")
    ordered = sorted((KINDS[kind].severity != "problem", list(KINDS).index(kind)) for kind in kinds)
    if not ordered:
        return "", False
    is_note, position = ordered[0]
    return list(KINDS.values())[position].title, not is_note


def _draw(one: Examined) -> tuple[bool, int]:
    return not one.findings, zlib.crc32(one.entry.name.encode())


def _in_turns(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same places, one of each dataset after the other."""
    turns: dict[int, int] = {}
    keyed = []
    for dataset, file in places:
        turns[dataset] = turns.get(dataset, 0) + 1
        keyed.append((turns[dataset], dataset, file))
    return [(dataset, file) for _, dataset, file in sorted(keyed, key=lambda key: key[:2])]


def _caption(tile: Tile) -> tuple[str, str, bool]:
    if tile.title:
        return tile.name, tile.title, tile.is_problem
    contrast = "" if tile.contrast is None else f", contrast {tile.contrast:.0f}"
    return tile.name, "" if tile.area is None else f"object {tile.area:.1%}{contrast}", False
