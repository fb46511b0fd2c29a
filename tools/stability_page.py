"""Joins what the tests of incidents have recorded, and puts the table and the plots into the page about stability.

    CAMOX_INCIDENTS=build/incidents python -m pytest tests/incidents
    python tools/stability_page.py --records build/incidents     # a folder → benchmarks/results/incidents.json
    python tools/stability_page.py                               # the JSON → docs/stability.md, docs/incidents.png

Records of incidents that a folder does not have are kept as they are in the JSON.
"""

import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camox.errors import ArgumentParser, CamoxError, DataError
from incident_plots import draw_incidents
from machine import machine, versions
from pages import SHAPE_ERRORS, fill_block, read_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "incidents.json"
PAGE = ROOT / "docs" / "stability.md"
COMMAND = "make incidents"


def join_records(folder: Path, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The results of `earlier` with those in a folder in place of theirs, in the order of the incidents.

    Raises:
        DataError: the folder has no record, or one that is none.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder}: holds no record; run the tests with CAMOX_INCIDENTS={folder}")
    records = {record["test"]: record for record in (earlier or {}).get("incidents", [])}
    for file in files:
        record = read_results(file)
        missing = [name for name in ("test", "number", "title", "without", "with") if name not in record]
        if missing:
            raise DataError(f"{file}: has no {', '.join(missing)}; take it out of {folder}")
        records[record["test"]] = record
    incidents = sorted(records.values(), key=lambda record: (record["number"], record["test"]))
    about = {"command": COMMAND, "machine": machine(), "versions": versions()}
    return about | {"incidents": incidents}


def markdown_table(results: Mapping[str, Any]) -> str:
    """A row for each record, equal sentences being one: how the run ended without guards and with them, its events."""
    rows = [
        "| | incident | without guards | with guards | events | clean run |",
        "|---|---|---|---|---|---|",
    ]
    told = [(record["number"], record["title"], record["with"].get("told")) for record in results["incidents"]]
    for record, this in zip(results["incidents"], told, strict=True):
        first = this[2] is None or told.index(this) == results["incidents"].index(record)
        if not first:
            continue
        times = f"{told.count(this)} × " if this[2] is not None and told.count(this) > 1 else ""
        clean = f"{record['clean']['iou']:.3f}" if "clean" in record else "–"
        cells = [_end(record["without"]), times + _end(record["with"]), _acts(record["with"]), clean]
        rows.append(f"| {record['number']} | {record['title']} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _end(seen: Mapping[str, Any]) -> str:
    if "told" in seen:
        return str(seen["told"])
    if seen["error"]:
        # Such a message is a whole diagnosis, with what to try. A cell holds its beginning, incidents.json all of it.
        return textwrap.shorten(seen["error"], 70, placeholder=" …")
    return f"IoU {seen['iou']:.3f}" + (f" {seen['measured']}" if seen.get("measured") else "")


def _acts(seen: Mapping[str, Any]) -> str:
    """How often the guards' events of each kind came, in the order of the first of each."""
    kinds = [event["kind"].replace("_", " ") for event in seen.get("events", []) if event["kind"] != "end"]
    counted = [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join(counted) or "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool; gives 0, or 2 where something is missing."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, help="folder that the tests have recorded into: renews the JSON")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the results (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to fill, plot beside it (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.records is not None:
            earlier = read_results(options.json) if options.json.exists() else None
            joined = join_records(options.records, earlier)
            options.json.write_text(json.dumps(joined, indent=1) + "\n", encoding="utf-8")
        results = read_results(options.json)
        try:
            fill_block(options.page, "incidents", markdown_table(results))
            draw_incidents(results["incidents"], options.page.parent / "incidents.png")
        except SHAPE_ERRORS as error:
            raise DataError(f"{options.json}: holds no results of incidents: {error!r}; run `{COMMAND}`") from error
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
