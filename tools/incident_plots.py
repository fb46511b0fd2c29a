"""The plots of incidents: the score of a run without guards and of one with them, validation by validation."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drawing import Axes, pyplot

# Of the palette of Okabe and Ito, which people of any colour vision can tell apart.
_WITHOUT, _WITH, _CLEAN = "#D55E00", "#0072B2", "0.6"
_COLUMNS = 3


def draw_incidents(incidents: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws a panel for each incident that has curves, in order, into one PNG."""
    shown = [record for record in incidents if "validations" in record["with"]]
    rows = -(-len(shown) // _COLUMNS)
    figure, panels = pyplot.subplots(
        rows, _COLUMNS, figsize=(9.6, 0.7 + 2.15 * rows), layout="constrained", squeeze=False
    )
    for panel, record in zip(panels.flat, shown, strict=False):
        _draw(panel, record)
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(file, dpi=130, facecolor="white")
    pyplot.close(figure)


def _draw(panel: Axes, record: Mapping[str, Any]) -> None:
    scored = record["plotted"] == "IoU"
    if "clean" in record and scored:
        panel.axhline(record["clean"]["iou"], color=_CLEAN, linewidth=1, linestyle="--", label="end of the clean run")
    for name, colour, label in (("without", _WITHOUT, "without guards"), ("with", _WITH, "with guards")):
        seen = record[name]
        steps, scores = _curve(seen)
        panel.plot(steps, scores, "o-", color=colour, markersize=3, linewidth=1.4, label=label)
        if seen.get("error"):
            panel.plot(steps[-1:] or [0], scores[-1:] or [0], "x", color=colour, markersize=9, markeredgewidth=2)
    for number, step in enumerate(e["step"] for e in record["with"]["events"] if e["kind"] == "rollback"):
        panel.axvline(step, color=_WITH, linewidth=0.8, linestyle=":", label="rollback" if number == 0 else None)
    panel.set_title(textwrap.fill(f"{record['number']}. {record['title']}", 38), fontsize=8, loc="left")
    panel.set_ylabel(record["plotted"], fontsize=8)
    if scored:
        panel.set_ylim(-0.03, 1)
    else:
        panel.set_ylim(bottom=0)
    panel.set_xlim(left=-1)
    panel.set_xlabel("step", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _curve(seen: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Steps of the validations, and at each what is plotted: as a rule the better score of raw and averaged weights."""
    validations = seen.get("validations", [])
    scores = [max(row["iou"], row.get("iou_ema", 0.0)) for row in validations]
    values = [row.get("plotted", score) for row, score in zip(validations, scores, strict=True)]
    return [row["step"] for row in validations], values
