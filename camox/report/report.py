"""`camox report`: reads runs, looks at what their models see, and writes the page."""

import os
from collections.abc import Sequence
from pathlib import Path

from camox.errors import CamoxError, ExperimentError
from camox.report.gallery import Examined
from camox.report.page import render
from camox.report.run import Run, read_run

NAME = "report.html"


def write_report(runs: Sequence[str | Path], out: str | Path | None = None, with_gallery: bool = True) -> Path:
    """Write the page of one run, or of several side by side, and give its place; an older page is replaced.

    Args:
        runs: folders of runs; one that is still going or was damaged is shown as far as it goes.
        out: the file, by default `report.html` in the run's folder; its folder is made where it is missing.
        with_gallery: whether to load the model and show its predictions.

    Raises:
        ExperimentError: a path holds no run, or the page cannot be written.
    """
    read = [read_run(Path(path)) for path in dict.fromkeys(map(Path, runs))]
    place = _place(read, out)
    # Before what takes long: a place that cannot be written is known at once.
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("")
        try:
            page = render(read, [_examined(run, with_gallery) for run in read])
            # Names of files may be no text: their odd bytes are spelled out.
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)  # renamed away if all went well
    except OSError as error:
        raise ExperimentError(
            f"{place}: cannot be written ({error.strerror}): free space, or give another place with --out FILE.html"
        ) from error
    return place


def _place(runs: Sequence[Run], out: str | Path | None) -> Path:
    if out is None:
        if len(runs) > 1:
            raise ExperimentError("a report of several runs lies in no run's folder: give --out FILE.html")
        return runs[0].path / NAME
    place = Path(out)
    if place.is_dir():
        raise ExperimentError(f"{place}: is a folder: give a file, such as --out {place / NAME}")
    if place.parent.exists() and not place.parent.is_dir():
        raise ExperimentError(f"{place.parent}: is a file: give a place in a folder as --out")
    if place.suffix.lower() not in (".html", ".htm"):
        raise ExperimentError(f"{place}: the report is a page: give a file that ends in .html")
    return place


def _examined(run: Run, with_gallery: bool) -> Examined:
    if not with_gallery:
        return Examined(trouble="No predictions: left out as asked (--no-gallery).")
    from camox.report.examination import examine  # imports torch

    try:
        return examine(run)
    except (CamoxError, OSError, RuntimeError, ValueError, LookupError) as error:
        # RuntimeError is torch's, also for a full device. The rest of the page does not need the model.
        reason = str(error).strip().splitlines()
        return Examined(trouble=f"No predictions: {reason[0] if reason else type(error).__name__}")
