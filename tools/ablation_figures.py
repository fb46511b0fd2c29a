"""The figures of an ablation: scores and time of each row, and which expert each habitat uses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablation_summary import MEASURES, Run, mean_usage
from drawing import Axes, Figure, pyplot

# Of the palette of Okabe and Ito, which people of any colour vision can tell apart.
_DOT, _MEAN = "#0072B2", "#D55E00"
_DOTS_PER_INCH = 160


def draw_figures(study: dict[str, Any], folder: Path) -> list[Path]:
    """Draws `ablation.png` and, where a row selects by a router, `experts_by_habitat.png`; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"ablation.png": scores_and_time(study["runs"])}
    routed = [run for run in study["runs"] if run["routing"]]
    if routed:
        figures["experts_by_habitat.png"] = experts_by_kind([r for r in routed if r["name"] == routed[0]["name"]])
    paths = []
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=_DOTS_PER_INCH, facecolor="white")
        pyplot.close(figure)
        paths.append(folder / name)
    return paths


def scores_and_time(runs: Sequence[Run]) -> Figure:
    """IoU and CPU time of each row, a dot for each seed and a bar at their mean."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    figure, panels = pyplot.subplots(
        1, 2, figsize=(8.5, 1.1 + 0.42 * len(names)), sharey=True, layout="constrained", squeeze=True
    )
    for panel, measure, label in zip(
        panels, ("iou", "cpu_seconds"), ("IoU on the test images", "CPU time of a run, s"), strict=True
    ):
        for position, name in enumerate(names):
            values = [value for run in runs if run["name"] == name and (value := MEASURES[measure](run)) is not None]
            _dots(panel, position, values)
        panel.set_xlabel(label)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[1].set_xlim(left=0)
    seeds = len({run["seed"] for run in runs})
    figure.suptitle(f"Equal steps, {seeds} seed{'s' * (seeds > 1)}: dots are seeds, bars their mean", fontsize=10)
    return figure


def experts_by_kind(runs: Sequence[Run]) -> Figure:
    """For each scale a map of kinds × experts: the expert's share of the kind's choices, mean over runs."""
    routing = runs[0]["routing"]
    experts, scales = routing["experts"], list(routing["scales"])
    kinds = list(routing["scales"][scales[0]]["usage_by_kind"])
    usage = {stride: np.array([mean_usage(runs, stride, kind) for kind in kinds]) for stride in scales}
    most = max(shares.max() for shares in usage.values())
    columns = min(2, len(scales))
    rows = -(-len(scales) // columns)
    figure, panels = pyplot.subplots(
        rows,
        columns,
        figsize=(1.2 + columns * (0.9 + 0.55 * len(experts)), 1.0 + rows * (0.9 + 0.38 * len(kinds))),
        layout="constrained",
        squeeze=False,
    )
    for panel, stride in zip(panels.flat, scales, strict=False):
        picture = panel.imshow(usage[stride], cmap="Blues", vmin=0, vmax=most, aspect="auto")
        panel.set_title(f"stride {stride}", fontsize=10)
        panel.set_xticks(range(len(experts)), experts, rotation=30, ha="right", rotation_mode="anchor", fontsize=8)
        panel.set_yticks(range(len(kinds)), kinds, fontsize=8)
        panel.tick_params(length=0)
        panel.set_xticks(np.arange(1, len(experts)) - 0.5, minor=True)
        panel.set_yticks(np.arange(1, len(kinds)) - 0.5, minor=True)
        panel.grid(which="minor", color="white", linewidth=2)
        panel.tick_params(which="minor", length=0)
        panel.spines[:].set_visible(False)
        for (row, column), share in np.ndenumerate(usage[stride]):
            colour = "white" if share > 0.6 * most else "0.15"
            panel.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=8, color=colour)
    for panel in panels.flat[len(scales) :]:
        panel.set_visible(False)
    bar = figure.colorbar(picture, ax=panels, shrink=0.7, format=lambda share, _: f"{share:.0%}")
    bar.set_label("share of the habitat's choices", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    equal, seeds = 1 / len(experts), len({run["seed"] for run in runs})
    figure.suptitle(
        f"Which expert each habitat uses, by scale ({runs[0]['name']}, mean of {seeds} seed{'s' * (seeds > 1)}; "
        f"an equal share is {equal:.0%})",
        fontsize=10,
    )
    return figure


def _dots(panel: Axes, position: int, values: Sequence[float]) -> None:
    if not values:
        return
    panel.plot(values, [position] * len(values), "o", color=_DOT, alpha=0.75, markersize=6, markeredgewidth=0)
    mean = float(np.mean(values))
    panel.plot([mean, mean], [position - 0.28, position + 0.28], color=_MEAN, linewidth=2)
