"""Plots of a page as SVG: areas, contrast, sizes, and where objects are."""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from camox.data.audit.dataset import Audited
from camox.data.audit.statistics import Measured, heat_map

# Of the palette of Okabe and Ito, which people of any colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_BINS = 24


def figures(audited: Sequence[Audited]) -> Mapping[str, str]:
    """SVG elements by caption, for datasets of which at least one pair could be measured; else none."""
    sets = {one.dataset.title: one.measured for one in audited if one.measured}
    if not sets:
        return {}
    return {
        "Area of the object, as a share of the image (images with an object)": _figure(sets, _draw_areas),
        "Contrast: colour difference ΔE between the object and what surrounds it": _figure(sets, _draw_contrast),
        "Sizes of images, in pixels": _figure(sets, _draw_sizes),
        "Where objects are: the mean of all masks, stretched to a square": _draw_heat_maps(sets),
    }


def _figure(
    sets: Mapping[str, Sequence[Measured]], draw: Callable[[Axes, Mapping[str, Sequence[Measured]]], None]
) -> str:
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    panel = figure.add_subplot()
    draw(panel, sets)
    panel.grid(axis="both", color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if 1 < len(sets) <= len(_COLOURS):
        panel.legend(fontsize=8, frameon=False)
    return _svg(figure)


def _draw_areas(panel: Axes, sets: Mapping[str, Sequence[Measured]]) -> None:
    areas = {name: [one.area for one in measured if one.area > 0] for name, measured in sets.items()}
    edges = np.geomspace(max(1e-5, min((a for of in areas.values() for a in of), default=0.01) / 1.1), 1, _BINS + 1)
    _draw_histogram(panel, areas, edges)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    panel.set_xlabel("area")


def _draw_contrast(panel: Axes, sets: Mapping[str, Sequence[Measured]]) -> None:
    found = {name: [one.contrast for one in measured if one.contrast is not None] for name, measured in sets.items()}
    highest = max((value for of in found.values() for value in of), default=1.0)
    _draw_histogram(panel, found, np.linspace(0, max(highest, 1.0), _BINS + 1))
    panel.set_xlabel("ΔE")


def _draw_histogram(panel: Axes, values: Mapping[str, Sequence[float]], edges: np.ndarray) -> None:
    for position, (name, of_set) in enumerate(values.items()):
        counts, _ = np.histogram(of_set, edges)
        colour = _COLOURS[position % len(_COLOURS)]
        panel.stairs(counts, edges, color=colour, linewidth=1.6, label=name)
        panel.stairs(counts, edges, color=colour, alpha=0.12, fill=True)
    panel.set_ylabel("images")
    panel.yaxis.get_major_locator().set_params(integer=True)


def _draw_sizes(panel: Axes, sets: Mapping[str, Sequence[Measured]]) -> None:
    for position, (name, measured) in enumerate(sets.items()):
        sizes, counts = np.unique([(one.width, one.height) for one in measured], axis=0, return_counts=True)
        colour = _COLOURS[position % len(_COLOURS)]
        # An area for each size, so that one that all images share is seen to be so.
        panel.scatter(*sizes.T, s=12 + 160 * counts / counts.sum(), color=colour, alpha=0.45, linewidths=0, label=name)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("width")
    panel.set_ylabel("height")


def _draw_heat_maps(sets: Mapping[str, Sequence[Measured]], columns: int = 4) -> str:
    shown = list(sets.items())[: 2 * columns]
    rows, columns = -(-len(shown) // columns), min(columns, len(shown))
    figure = Figure(figsize=(1.55 * max(columns, 2), 1.75 * rows), layout="constrained")
    for position, (name, measured) in enumerate(shown, start=1):
        panel = figure.add_subplot(rows, columns, position)
        heat = heat_map(measured)
        panel.imshow(heat, cmap="viridis", vmin=0, vmax=max(float(heat.max()), 1e-6), extent=(0, 1, 1, 0))
        panel.set_title(f"{name}\nat most {heat.max():.0%}", fontsize=7.5)
        panel.set_xticks([])
        panel.set_yticks([])
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Text stays text, in the page's typeface; without a date and with a fixed salt the same data give the same page.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "camox", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
