"""How runs ended, and what a test of an incident writes down of that for the page about stability."""

import json
from pathlib import Path
from typing import Any, NamedTuple

NOT_TRIED = "not tried: cannot be switched off"


class Outcome(NamedTuple):
    """How a run ended."""

    iou: float
    """Of the last validation, the better of raw and averaged weights; 0 where the run ended early or in NaN."""
    error: str
    """What ended it, empty where it reached its last epoch."""
    events: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    """Of each validation "step", "iou" of the raw weights and "iou_ema" of their average, where there is one, NaN being
    0; and the measures of the first scale's router under "router"."""

    measured: str = ""
    """What else was measured, in words."""

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def outcome_of(run: Path, error: str) -> Outcome:
    """What a run's folder tells of how it ended, with `error` or without. Of paths only the run's part is left."""
    events, rows = _lines(run / "events.jsonl"), _lines(run / "metrics.jsonl")
    for event in events:
        event["message"] = event["message"].replace(f"{run}/", "")
    names = {"iou": "val/iou", "iou_ema": "val_ema/iou"}
    validations = [
        {"step": row["step"], "router": _router(row)}
        | {name: row[logged] or 0.0 for name, logged in names.items() if logged in row}
        for row in rows
        if "val/iou" in row
    ]
    last = validations[-1] if validations and not error else {}
    iou = max(last.get("iou", 0.0), last.get("iou_ema", 0.0))
    return Outcome(iou, error.replace(f"{run}/", ""), events, validations)


def write_record(
    folder: Path,
    test: str,
    number: int,
    title: str,
    with_guards: Outcome | str,
    without: Outcome | str = NOT_TRIED,
    clean: Outcome | None = None,
    plotted: str = "IoU",
) -> None:
    """Writes one JSON file into `folder`.

    Args:
        folder: made where it is missing.
        test: name of the test, which names the file.
        number: of the incident, 1 to 14.
        title: what happens, in a few words.
        with_guards: how the run ended with guards. Where that is no curve, a sentence; records of one number and title
            with the same sentence are counted.
        without: how it ended without them.
        clean: the run to compare with.
        plotted: what is plotted; where validations have a value "plotted", that one.
    """
    seen = {"without": without, "with": with_guards, "clean": clean}
    runs = {name: _json_ready(what) for name, what in seen.items() if what is not None}
    name = "".join(letter if letter.isalnum() else "_" for letter in test).strip("_")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {"number": number, "title": title, "test": test, "plotted": plotted, **runs}, indent=1, allow_nan=False
    )
    (folder / f"{number:02d}_{name}.json").write_text(text, encoding="utf-8")


def _json_ready(seen: Outcome | str) -> dict[str, Any]:
    if isinstance(seen, str):
        return {"told": seen}
    told = [
        {name: event[name] for name in ("kind", "step", "severity", "message")}
        for event in seen.events
        if event["severity"] != "info"
    ]
    scores = [{name: value for name, value in row.items() if name != "router"} for row in seen.validations]
    return {"error": seen.error, "iou": seen.iou, "measured": seen.measured, "validations": scores, "events": told}


def _router(row: dict[str, Any]) -> dict[str, Any]:
    places = [name.rpartition("/")[0] for name in row if name.startswith("val/router/") and name.endswith("/entropy")]
    start = f"{places[0]}/" if places else "none"
    return {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}


def _lines(file: Path) -> list[dict[str, Any]]:
    """None where a run ended before it had any."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
