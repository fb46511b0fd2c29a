"""Probability maps and masks become numbers to report.

`image_measures` scores one pair of uint8 arrays; `evaluator` whole datasets; `scoring` two folders of files.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from camox.measures.protocol import Protocol

__all__ = ["image_measures"]


def image_measures(
    prediction: "np.ndarray", truth: "np.ndarray", protocol: "str | Protocol" = "pysod"
) -> dict[str, float]:
    """Score one prediction, a uint8 map [H, W] in 0 … 255, against its uint8 ground truth [H, W].

    Gives every name of `camox.measures.protocol.ALL_MEASURES`; `*_max` and `*_mean` are those of this image's
    own curve. `protocol="pysod"` (default here, as published tables use it) equals pysodmetrics to 1e-6, whose S is
    NaN for an object centred on the last row or column; "camox" is our own, in which a truth without an
    object has `false_positive_area` and `false_positive` in place of the measures. Raises ValueError for
    other dtypes, or shapes that differ.
    """
    # Imported on first use: importing camox.measures alone costs nothing.
    from camox.measures.evaluator import measure_uint8
    from camox.measures.protocol import ALL_MEASURES

    result = measure_uint8(prediction, truth, protocol)
    return {name: result.scalars[name] for name in (ALL_MEASURES if result.counts else result.scalars)}
