"""Pictures of scores: precision over recall, measures over the threshold, and what corruptions leave of a score."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camox.measures.breakdown import DatasetScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which people of any colour vision can tell apart; then the same with other lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_STYLES = [{"linestyle": line, "color": colour} for line, colour in product(_LINES, _COLOURS)]


def draw_curves(rows: Mapping[str, Mapping[str, DatasetScores]], path: Path) -> None:
    """Write a PNG: precision and recall, F and E over the threshold; a row of panels for each of `rows`, which has a
    line for each of its members with a mean over images. Where there is no line there is no file afterwards.

    Raises OSError where the file cannot be written.
    """
    shown = {
        title: {label: scores for label, scores in of.items() if {"precision", "e"} <= scores.curves().keys()}
        for title, of in rows.items()
    }
    shown = {title: of for title, of in shown.items() if of}
    if not shown:
        path.unlink(missing_ok=True)  # an earlier result's
        return
    figure, panels = _figure(len(shown), 3)
    for (title, of), row in zip(shown.items(), panels, strict=True):
        for style, (label, scores) in enumerate(of.items()):
            curves, thresholds = scores.curves(), scores.thresholds()
            look = _STYLES[style % len(_STYLES)]
            row[0].plot(curves["recall"], curves["precision"], label=label, **look)
            row[1].plot(thresholds, curves["f"], **look)
            row[2].plot(thresholds, curves["e"], **look)
        name = f"{title}: " if title else ""
        _furnish(row[0], f"{name}precision over recall", "recall", "precision")
        _furnish(row[1], f"{name}F over the threshold", "threshold", "F, β² = 0.3")
        _furnish(row[2], f"{name}E over the threshold", "threshold", "E")
        row[0].legend(loc="best", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    figure.savefig(path, dpi=130, facecolor="white")


def draw_robustness(
    title: str,
    of_measures: Mapping[str, Mapping[str, Sequence[float | None]]],
    clean: Mapping[str, float | None],
    path: Path,
) -> None:
    """Write a PNG with a panel per measure: its value at severity 0 (no corruption) to 5, a line per corruption.

    `of_measures`: measure → corruption → values at severities 1 to 5; `clean`: measure → value at 0. Raises OSError
    where the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (panels,) = _figure(1, len(of_measures))
    for panel, (measure, of_kinds) in zip(panels, of_measures.items(), strict=True):
        for look, (kind, values) in zip(_STYLES, of_kinds.items(), strict=False):
            heights = [float("nan") if value is None else value for value in (clean[measure], *values)]
            panel.plot(range(len(heights)), heights, marker="o", markersize=3.5, label=kind.replace("_", " "), **look)
        highest = max((line.get_ydata().max() for line in panel.lines), default=1.0)
        _furnish(panel, f"{title}: {measure}", "severity (0: no corruption)", "")
        panel.set_xlim(-0.15, 5.15)
        panel.set_ylim(0, 1.15 * highest if measure == "MAE" and highest > 0 else 1)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(loc="best", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    figure.savefig(path, dpi=130, facecolor="white")


def _figure(rows: int, columns: int) -> "tuple[Figure, Any]":
    """A figure, by no pyplot: nothing global, no display; and its panels [rows, columns]."""
    from matplotlib.figure import Figure  # takes a fifth of a second, and training only draws when it is done

    width, height = 4.2 * columns, 3.9 * rows
    figure = Figure(figsize=(width, height))
    # Margins in inches. Constrained layout would find the same ones and draw everything twice.
    figure.subplots_adjust(
        left=0.65 / width, right=1 - 0.2 / width, bottom=0.55 / height, top=1 - 0.4 / height, wspace=0.22, hspace=0.32
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _furnish(panel: "Axes", title: str, x: str, y: str) -> None:
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.set_xlim(-0.01, 1.01)
    panel.set_ylim(-0.01, 1.01)
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
