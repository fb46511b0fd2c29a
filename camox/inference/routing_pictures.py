"""A picture of what routers choose: which experts each kind of image uses, at every scale."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from camox.measures.routing import RoutedImages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOTS_PER_INCH = 100


def draw_choices(routed: Mapping[int, RoutedImages], experts: Sequence[str]) -> np.ndarray | None:
    """Draw, for each scale, a table with a row per kind of image and a column per expert, uint8 RGB [H, W, 3].

    A cell tells what share of the choices for images of that kind, in per cent, went to the expert; the first row is
    of all images, and the only one where images have no kind. Where all experts take part in every decision, so that
    nothing is chosen, a cell tells the mean weight in place of it.

    Args:
        routed: stride → what that scale's router decided, for one image at least, all for the same images.
        experts: their names, in the order of `RoutedImages.probabilities`.

    Returns:
        None where a scale's probabilities are not finite, and without a scale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a fifth of a second
    from matplotlib.figure import Figure

    tables = {stride: choices_by_kind(images) for stride, images in routed.items()}
    if not tables or not all(np.isfinite(table).all() for table in tables.values()):
        return None
    first = next(iter(routed.values()))
    labels, chosen = _labels(first.kinds), first.selected.shape[-1]
    # No expert has more than every image's choice: with one limit for all times, pictures compare.
    limit = 1 / chosen if chosen < len(experts) else max(table.max() for table in tables.values())
    columns = min(2, len(tables))
    rows = -(-len(tables) // columns)
    # Inches: what the names of kinds and experts need, then the cells.
    left, cell_width, cell_height = 0.25 + 0.075 * max(map(len, labels)), 0.68, 0.32
    wide, high = left + cell_width * len(experts) + 0.15, 0.4 + cell_height * len(labels) + 0.75
    what = "share of its choices" if chosen < len(experts) else "mean weight"
    title = f"Experts of each kind of held-out image: {what} in % (used alike: {100 / len(experts):.0f})"
    size = (max(wide * columns, 0.3 + 0.085 * len(title)), high * rows + 0.45)
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    width, height = size
    for number, (stride, table) in enumerate(tables.items()):
        row, column = divmod(number, columns)
        at = (column * wide + left, (rows - 1 - row) * high + 0.75)
        table_width, table_height = cell_width * len(experts), cell_height * len(labels)
        box = (at[0] / width, at[1] / height, table_width / width, table_height / height)
        _draw(figure.add_axes(box), f"stride {stride}", table, labels, experts, limit)
    figure.text(0.15 / width, 1 - 0.3 / height, title, size=11)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def choices_by_kind(images: RoutedImages) -> np.ndarray:
    """`[1 + kinds, E]`, each row summing to one: of all images, then of each kind in alphabetical order, the share of
    choices that went to each expert, or where nothing is chosen each expert's mean weight."""
    experts = images.probabilities.shape[-1]
    is_choice = images.selected.shape[-1] < experts
    shares = images.choice_shares() if is_choice else images.probabilities.mean(axis=1)
    kinds = np.array(images.kinds)
    return np.stack([shares.mean(axis=0), *(shares[kinds == kind].mean(axis=0) for kind in _named(images.kinds))])


def _labels(kinds: Sequence[str]) -> list[str]:
    return [f"all ({len(kinds)})", *(f"{kind} ({kinds.count(kind)})" for kind in _named(kinds))]


def _named(kinds: Sequence[str]) -> list[str]:
    return sorted({kind for kind in kinds if kind})


def _draw(
    panel: "Axes", title: str, table: np.ndarray, labels: Sequence[str], experts: Sequence[str], limit: float
) -> None:
    panel.pcolormesh(table, cmap="Blues", vmin=0, vmax=limit, edgecolors="white", linewidth=2)
    for (row, column), share in np.ndenumerate(table):
        colour = "white" if share > 0.6 * limit else "0.15"
        panel.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", color=colour, size=9)
    panel.set_title(title, loc="left", size=10)
    panel.set_xticks(np.arange(len(experts)) + 0.5, experts, rotation=30, ha="right", rotation_mode="anchor", size=9)
    panel.set_yticks(np.arange(len(labels)) + 0.5, labels, size=9)
    panel.invert_yaxis()
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
