"""The threshold that turns probability maps into masks, chosen by images with ground truth."""

from collections.abc import Sequence

import numpy as np

from camox.measures.curves import THRESHOLDS
from camox.measures.evaluator import Record

CHOSEN_BY = "iou_max"
"""The measure whose curves `best_threshold` reads: an evaluator has to be asked for it."""


def best_threshold(records: Sequence[Record]) -> float | None:
    """The threshold in (0, 1) at which the mean IoU of images with an object is greatest; None without any.

    Records are those of an evaluator with exact formulas ("camox"): its thresholds are (k + 0.5) / 256. Where several
    are equally good, the one nearest to 0.5.
    """
    curves = [record.result.curves["iou"] for record in records if record.result.counts and record.result.has_object]
    if not curves:
        return None
    mean = np.mean(curves, axis=0)
    thresholds = (np.arange(THRESHOLDS) + 0.5) / THRESHOLDS
    best = thresholds[mean == mean.max()]
    return float(best[np.abs(best - 0.5).argmin()])
