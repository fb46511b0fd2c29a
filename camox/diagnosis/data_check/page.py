"""The page of a data check: one HTML file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

import camox
from camox.data.audit.dataset import Duplicate
from camox.data.audit.findings import KINDS
from camox.data.audit.statistics import Measured, summarise
from camox.diagnosis.data_check.figures import figures
from camox.diagnosis.data_check.result import Result, groups_of
from camox.diagnosis.data_check.tiles import Tile, thumbnail

_MOST_DUPLICATES = 60
_MOST_FILES = 500
_SIDE = 220
_QUALITY = 82


def write_page(result: Result, tiles: Sequence[Tile], path: Path) -> None:
    """Write the page: verdict, datasets, problems, near-duplicates, plots, the contact sheet's tiles, and notes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("camox.diagnosis.data_check", "."), autoescape=True, trim_blocks=True
    )
    kinds = [_kind(result, kind) for kind in result.by_kind]
    text = environment.get_template("page.html").render(
        title=result.path.resolve().name,
        path=result.path,
        version=camox.__version__,
        verdict=result.verdict,
        is_clean=not result.problems,
        notices=result.notices,
        datasets=[_row(one.dataset.title, one.measured, len(one.examined)) for one in result.audited],
        groups=_groups(result),
        problems=[kind for kind in kinds if kind["severity"] == "problem"],
        notes=[kind for kind in kinds if kind["severity"] == "note"],
        duplicates=[_duplicate(result, one) for one in result.duplicates[:_MOST_DUPLICATES]],
        duplicate_count=len(result.duplicates),
        figures=figures(result.audited),
        tiles=[{"tile": tile, "source": _embedded(tile.picture)} for tile in tiles],
        images=result.images,
    )
    path.write_text(text, encoding="utf-8")


def _kind(result: Result, kind: str) -> dict[str, Any]:
    findings = result.by_kind[kind]
    shown = [{"path": result.shown(one.path), "detail": one.detail} for one in findings[:_MOST_FILES]]
    return {**vars(KINDS[kind]), "count": len(findings), "files": shown}


def _row(title: str, measured: Sequence[Measured], images: int) -> dict[str, Any]:
    return {"title": title, "images": images, "numbers": summarise(measured), "measured": len(measured)}


def _groups(result: Result) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Rows by dataset, of those that have groups."""
    return {
        audited.dataset.title: [
            _row(name or "(none)", [one.measured for one in members if one.measured is not None], len(members))
            for name, members in groups.items()
        ]
        for audited in result.audited
        if (groups := groups_of(audited))
    }


def _duplicate(result: Result, duplicate: Duplicate) -> dict[str, Any]:
    sides = []
    for place in (duplicate.first, duplicate.second):
        one = result.at(place)
        picture = thumbnail(one, _SIDE)
        sides.append(
            {
                "source": _embedded(picture),
                "path": result.shown(one.entry.image),
                "dataset": result.audited[place[0]].dataset.title,
            }
        )
    return {"sides": sides, "match": duplicate}


def _embedded(picture: np.ndarray) -> str:
    """A picture uint8 [h, w, 3] RGB as the source of an <img>."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
