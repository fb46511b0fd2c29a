"""The picture of a learning-rate range test."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from camox.diagnosis.lr_range import RangeTest

# Of the palette of Okabe and Ito, which people of any colour vision can tell apart.
_LOSS, _SUGGESTED, _DIVERGES, _EXPERIMENT = "#0072B2", "#009E73", "#D55E00", "0.35"


def draw_range_test(test: RangeTest, peaks: Mapping[str, float], title: str, path: Path) -> None:
    """Writes a PNG: loss against rate, with the suggested rate, the diverging ones and the experiment's own.

    Args:
        peaks: phase → its peak rate.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # no pyplot: nothing global, no display
    panel = figure.add_subplot()
    panel.plot(test.rates, test.losses, ".", color=_LOSS, alpha=0.3, markersize=5, label="loss of a batch")
    panel.plot(test.rates, test.smoothed, color=_LOSS, linewidth=2, label="smoothed")
    panel.set_xscale("log")
    panel.set_xlim(test.rates[0], max(test.rates[-1] * 3, *peaks.values()))
    low, high = float(test.smoothed.min()), float(test.smoothed.max())
    # One exploding step must not flatten everything before it.
    top = min(float(test.losses.max()), high + 0.3 * (high - low))
    panel.set_ylim(low - 0.12 * (top - low), top + 0.22 * (top - low))
    if test.diverges is not None:
        label = f"diverges from {test.diverges:.1g}"
        panel.axvspan(test.diverges, panel.get_xlim()[1], color=_DIVERGES, alpha=0.12, linewidth=0, label=label)
    panel.axvline(test.suggested, color=_SUGGESTED, linewidth=1.8, label=f"suggested peak {test.suggested:.2g}")
    for rate in dict.fromkeys(peaks.values()):
        names = ", ".join(name for name, peak in peaks.items() if peak == rate)
        label = f"the experiment's {rate:.2g} ({names})"
        panel.axvline(rate, color=_EXPERIMENT, linewidth=1.4, linestyle=(0, (4, 3)), label=label)
    panel.set_xlabel("learning rate")
    panel.set_ylabel("training loss")
    panel.set_title(title, loc="left", fontsize=11)
    panel.grid(axis="both", color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="lower left", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    figure.savefig(path, dpi=150, facecolor="white")
