"""Plots of a page as SVG: areas, contrast, sizes, and where objects are."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from camox.data.audit.dataset import Audited
from camox.data.audit.statistics import Measured, heat_map

# Of the palette of Okabe and Ito, which people of any colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_BINS = 24
_WIDTH = 5.6  # inches: two plots beside each other on a page
_MOST_SETS = 8


def figures(audited: Sequence[Audited]) -> Mapping[str, str]:
    """SVG elements by caption, of the first datasets of which at least one pair could be measured; else none."""
    sets = {one.dataset.title: one.measured for one in audited if one.measured}
    sets = dict(list(sets.items())[:_MOST_SETS])
    if not sets:
        return {}
    areas = {name: [one.area for one in measured if one.area > 0] for name, measured in sets.items()}
    contrasts = {
        name: [one.contrast for one in measured if one.contrast is not None] for name, measured in sets.items()
    }
    return {
        "Area of the object, as a share of the image": _histograms(areas, logarithmic=True),
        "Contrast: colour difference ΔE between the object and what surrounds it": _histograms(contrasts),
        "Sizes of images, in pixels": _sizes(sets),
        "Where objects are: the mean of all masks, stretched to a square": _heat_maps(sets),
    }


def _histograms(values: Mapping[str, Sequence[float]], logarithmic: bool = False) -> str:
    """One row for each dataset over a common axis: drawn over each other, more than two cannot be told apart."""
    every = [value for of_set in values.values() for value in of_set] or [1.0]
    if logarithmic:
        edges = np.geomspace(max(1e-5, min(every) / 1.1), 1, _BINS + 1)
    else:
        edges = np.linspace(0, max(*every, 1.0), _BINS + 1)
    figure = Figure(figsize=(_WIDTH, 0.7 + 0.75 * max(len(values), 2)), layout="constrained")
    panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for position, (panel, (name, of_set)) in enumerate(zip(panels, values.items(), strict=True)):
        counts, _ = np.histogram(of_set, edges)
        panel.stairs(counts, edges, color=_COLOURS[position % len(_COLOURS)], fill=True, alpha=0.85)
        panel.set_title(name, loc="left", fontsize=8.5, pad=2)
        panel.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        panel.tick_params(labelsize=8)
        if logarithmic:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        _tidy(panel)
    figure.supylabel("images", fontsize=9)
    return _svg(figure)


def _sizes(sets: Mapping[str, Sequence[Measured]]) -> str:
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    panel = figure.add_subplot()
    _draw_sizes(panel, sets)
    _tidy(panel)
    if len(sets) > 1:
        panel.legend(fontsize=8, frameon=False)
    return _svg(figure)


def _tidy(panel: Axes) -> None:
    panel.grid(axis="both", color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_sizes(panel: Axes, sets: Mapping[str, Sequence[Measured]]) -> None:
    for position, (name, measured) in enumerate(sets.items()):
        sizes, counts = np.unique([(one.width, one.height) for one in measured], axis=0, return_counts=True)
        colour = _COLOURS[position % len(_COLOURS)]
        areas = 12 + 160 * counts / counts.sum()  # so that a size that all images share is seen to be so
        panel.scatter(sizes[:, 0], sizes[:, 1], areas, color=colour, alpha=0.45, linewidths=0)
        panel.scatter([], [], 30, color=colour, linewidths=0, label=name)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("width")
    panel.set_ylabel("height")


def _heat_maps(sets: Mapping[str, Sequence[Measured]], columns: int = 4) -> str:
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(_WIDTH, 1.85 * rows), layout="constrained")
    for position, (name, measured) in enumerate(sets.items(), start=1):
        panel = figure.add_subplot(rows, columns, position)
        heat = heat_map(measured)
        panel.imshow(heat, cmap="viridis", vmin=0, vmax=max(float(heat.max()), 1e-6), extent=(0, 1, 1, 0))
        panel.set_title(f"{_shortened(name)}\nat most {heat.max():.0%}", fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    return _svg(figure)


def _shortened(name: str, room: int = 20) -> str:
    return name if len(name) <= room else f"{name[: room - 9]}…{name[-8:]}"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Text stays text, in the page's typeface; without a date and with a fixed salt the same data give the same page.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "camox", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
