"""`camox data check`: examine, tell, write."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from camox.data.audit.dataset import examine_dataset, find_duplicates
from camox.data.audit.findings import KINDS, Finding, Kind, Severity
from camox.data.audit.statistics import Measured, summarise
from camox.diagnosis.data_check.result import Result
from camox.diagnosis.data_check.subject import datasets_at
from camox.errors import DataError
from camox.tracking.console import Console

_SHOWN = 3  # names of one kind on a terminal; files and page have all
_SHOWN_DUPLICATES = 10


def check_data(
    path: Path, out: Path | None = None, count: int = 48, workers: int | None = None, console: Console | None = None
) -> int:
    """Examine the datasets of a folder or an experiment and print what was found.

    Args:
        path: a dataset's folder, a folder of several, or an experiment file, of which all sources are taken.
        out: folder for data_check.html, data_check.json and contact_sheet.png; None writes nothing.
        count: images on the contact sheet.
        workers: threads; None takes one for each core.

    Returns:
        0 where there is no problem, 1 where there is one.

    Raises:
        CamoxError: there is no dataset to examine, or `out` cannot be written.
    """
    console = console or Console()
    datasets, notices = datasets_at(path)
    if out is not None:
        _make(out)
    for notice in notices:
        console.warning(notice)
    total = sum(len(one.listing.entries) for one in datasets)
    with console.counting("examining", total) as advance, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # its doubts about single files, without their names
        audited = tuple(examine_dataset(one, workers, advance) for one in datasets)
    result = Result(path, audited, tuple(find_duplicates(audited)), tuple(notices))
    _tell(result, console)
    if out is not None:
        _write(result, out, count)
        console.notice(f"data_check.html, contact_sheet.png and data_check.json are in {out}")
    return 1 if result.problems else 0


# ---- on the terminal


def _tell(result: Result, console: Console) -> None:
    console.notice(f"camox data check: {result.path}")
    columns = ["", "images", "median size", "object area", "empty", "contrast"]
    console.table("", columns, [_row(one.dataset.title, one.measured, len(one.examined)) for one in result.audited])
    severities: tuple[Severity, ...] = ("problem", "note")
    for severity in severities:
        for kind, findings in result.by_kind.items():
            if KINDS[kind].severity == severity:
                _tell_kind(KINDS[kind], findings, result, console)
        _tell_duplicates(severity, result, console)
    console.notice(f"\n{result.verdict}")


def _tell_kind(kind: Kind, findings: Sequence[Finding], result: Result, console: Console) -> None:
    files = ", ".join(result.shown(one.path) + (f" ({one.detail})" if one.detail else "") for one in findings[:_SHOWN])
    if len(findings) > _SHOWN:
        files += f", … and {len(findings) - _SHOWN} more"
    loader = f"the loader {kind.loader}"
    problems, notes = ([(files, kind.remedy)], [loader]) if kind.severity == "problem" else ([], [loader, files])
    notes += [f"→ {kind.remedy}"] if kind.severity == "note" and kind.remedy else []
    console.verdict(kind.severity, str(len(findings)), kind.title, problems, notes)


def _row(title: str, measured: Sequence[Measured], images: int) -> list[object]:
    numbers = summarise(measured)
    if not measured:
        return [title, images, "–", "–", "–", "–"]
    size = f"{numbers['width']['median']:.0f}x{numbers['height']['median']:.0f}"
    area, contrast = numbers["area"], numbers["contrast"]
    return [
        title,
        images,
        size,
        f"{area['median']:.1%}" if area else "–",
        numbers["empty"],
        f"{contrast['median']:.1f}" if contrast else "–",
    ]


def _tell_duplicates(severity: Severity, result: Result, console: Console) -> None:
    pairs = [one for one in result.duplicates if one.severity == severity]
    if not pairs:
        return
    lines = [
        f"{result.shown(result.at(one.first).entry.image)} = {result.shown(result.at(one.second).entry.image)}"
        f" ({one.distance} bits{', mirrored' if one.mirrored else ''})"
        for one in pairs[:_SHOWN_DUPLICATES]
    ]
    if len(pairs) > _SHOWN_DUPLICATES:
        lines.append(f"… and {len(pairs) - _SHOWN_DUPLICATES} more")
    if severity == "problem":
        problems = [("\n      ".join(lines), "remove one of each pair, or scores will flatter")]
        console.verdict(severity, str(len(pairs)), "near-duplicates between sets of different use", problems)
    else:
        notes = ["the loader takes both", *lines, "→ a part that is held out may hold a copy: remove one of each pair"]
        console.verdict(severity, str(len(pairs)), "near-duplicates within one use", (), notes)


# ---- to files


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error}): give another --out") from error


def _write(result: Result, out: Path, count: int) -> None:
    from camox.diagnosis.data_check.page import write_page
    from camox.diagnosis.data_check.tiles import choose_tiles, write_sheet

    document = json.dumps(result.plain(), indent=2, allow_nan=False, ensure_ascii=False)
    tiles = choose_tiles(result, count)
    try:
        (out / "data_check.json").write_text(document + "\n", encoding="utf-8")
        write_sheet(result, tiles, out / "contact_sheet.png")
        write_page(result, tiles, out / "data_check.html")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}): give another --out") from error
