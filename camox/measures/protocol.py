"""How a probability map is turned into a score: every choice that moves a number, stored with results.

Min-max stretching, uint8 quantisation, the threshold of the ground truth and the treatment of empty images
each move published measures by up to 0.26, so no number is reported without `Protocol.as_dict()` beside it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np

CURVE_FAMILIES = ("f", "e", "iou", "dice")
"""Measures that have a value per threshold, and with it `_max`, `_mean` and `_adaptive`."""

ALL_MEASURES = (
    "s_measure",
    "f_weighted",
    "f_max",
    "f_mean",
    "f_adaptive",
    "e_max",
    "e_mean",
    "e_adaptive",
    "mae",
    "iou",
    "iou_max",
    "iou_mean",
    "iou_adaptive",
    "dice",
    "dice_max",
    "dice_mean",
    "dice_adaptive",
)
"""Every measure by its reported name, in the order of tables."""

REFERENCE = "pysodmetrics 1.6.2"
"""What the formulas "pysodmetrics" equal to 1e-6."""

FALSE_POSITIVE_SHARE = 0.001
"""A predicted object is a false positive when it covers more than this share of an image without object."""

_FORMULAS = {
    "pysodmetrics": {
        "thresholds": "k / 255 for k = 0 … 255 on floor(255 p); the first calls every pixel object",
        "e_measure": "sum over pixels / (pixels - 1 + eps), as the library has it (may exceed 1)",
        "adaptive": "p >= min(2 mean(p), 1)",
    },
    "exact": {
        "thresholds": "(k + 0.5) / 256 for k = 0 … 255",
        "e_measure": "mean over pixels, without eps: a perfect map scores 1",
        "adaptive": "p >= min(2 mean(p), 1) and p > 0",
    },
}


@dataclass(frozen=True)
class Protocol:
    """The choices between a probability map and its scores. Each field changes what is computed."""

    name: str
    formulas: Literal["pysodmetrics", "exact"]
    """"pysodmetrics": that library's own numbers, its epsilons and edge cases included. "exact": the same
    definitions without epsilons and without the threshold 0, so that a perfect map scores exactly 1, an empty
    one never scores as if it had been full, and nothing is NaN."""
    min_max: bool
    """Stretch each map to [0, 1] first. `iou` and `dice` always use the map as it is."""
    quantise: bool
    """Round the map to uint8 first, as if written as a PNG; `iou` and `dice` use the rounded map too."""
    count_empty: bool
    """Whether images without an object take part in the means."""
    label_masks: bool
    """Whether a ground truth without a level above `truth_threshold` holds labels, 0 for background, rather
    than near-black. The level of a pixel in colour is then its largest channel, else its luminance."""
    truth_threshold: int = 128
    """A pixel of a uint8 ground truth is object where its level is greater."""
    binary_threshold: float = 0.5
    """`iou`, `dice` and false positives call a pixel object from this probability on."""

    def as_dict(self) -> dict[str, object]:
        """All choices, as JSON values to store with a result, with the version that computes and what it equals."""
        return {
            **asdict(self),
            **_FORMULAS[self.formulas],
            "library": f"camox {_version()}",
            "reference": REFERENCE,
            "resize": "bilinear, probability map to the size of the ground truth",
            "f_beta_squared": 0.3,
            "max": "maximum of the mean curve of the dataset",
            "false_positive_share": FALSE_POSITIVE_SHARE,
        }

    def binarise_truth(self, truth: np.ndarray) -> np.ndarray:
        """Turn a uint8 ground truth [H, W] of any levels into uint8 [H, W] in {0, 1}."""
        labels = self.label_masks and truth.max(initial=0) <= self.truth_threshold
        return (truth > (0 if labels else self.truth_threshold)).astype(np.uint8)


def _version() -> str:
    try:
        return version("camox")
    except PackageNotFoundError:  # run from its folder, without having been installed
        return "of unknown version"


CAMOX = Protocol("camox", "exact", min_max=False, quantise=False, count_empty=False, label_masks=True)
PYSOD = Protocol("pysod", "pysodmetrics", min_max=True, quantise=True, count_empty=True, label_masks=False)
PROTOCOLS = {protocol.name: protocol for protocol in (CAMOX, PYSOD)}


def get_protocol(protocol: "str | Protocol") -> Protocol:
    """Return the protocol of that name; a Protocol is returned as it is. Raises ValueError for others."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def check_measures(measures: Iterable[str]) -> tuple[str, ...]:
    """Return the measures in the order of `ALL_MEASURES`, each once. Raises ValueError for others."""
    requested = set(measures)
    unknown = sorted(requested - set(ALL_MEASURES))
    if unknown:
        raise ValueError(f"unknown measures {', '.join(unknown)}; there are {', '.join(ALL_MEASURES)}")
    return tuple(name for name in ALL_MEASURES if name in requested)
