"""The sums of one image become its measures by name."""

from collections.abc import Sequence

import numpy as np

from camox.measures.curves import score
from camox.measures.protocol import CURVE_FAMILIES, Protocol
from camox.measures.structure import Quadrant, s_measure
from camox.measures.sums import ImageSums
from camox.measures.weighted import weighted_f


def image_scores(
    sums: ImageSums, protocol: Protocol, measures: Sequence[str]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The measures of these names, in their order, and the curves, float64 [256] by family, that some are made of.

    `sums` holds what the measures need; where `protocol.formulas` is "exact" the truth has an object pixel.
    """
    exact = protocol.formulas == "exact"
    scalars: dict[str, float] = {}
    curve_of: dict[str, np.ndarray] = {}
    if sums.binary is not None:
        scalars |= {name: float(score(name, sums.binary, exact)) for name in ("iou", "dice")}
    for family in CURVE_FAMILIES:
        if sums.curves is not None and (f"{family}_max" in measures or f"{family}_mean" in measures):
            curve_of[family] = score(family, sums.curves, exact)
            scalars |= {
                f"{family}_max": float(curve_of[family].max()),
                f"{family}_mean": float(curve_of[family].mean()),
            }
        if sums.adaptive is not None:
            scalars[f"{family}_adaptive"] = float(score(family, sums.adaptive, exact))
    if sums.quadrants is not None:
        extent = sums.extent
        scalars["mae"] = _mean_absolute_error(sums.quadrants)
        if "s_measure" in measures:
            scalars["s_measure"] = s_measure(sums.quadrants, extent.shape, extent.centre, exact)
    if "f_weighted" in measures:
        pixels = sums.extent.pixels
        scalars["f_weighted"] = weighted_f(*sums.weighted, pixels, exact) if sums.weighted is not None else 0.0
    return {name: scalars[name] for name in measures}, curve_of


def _mean_absolute_error(quadrants: Sequence[Quadrant]) -> float:
    error = sum(part.background.total + part.object.pixels - part.object.total for part in quadrants)
    return float(error / sum(part.pixels for part in quadrants))
