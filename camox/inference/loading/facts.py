"""What a model file has to say of itself besides its weights: at what size it was trained, and what its map means."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from camox.errors import CheckpointError

_INPUT = "images: float [B, 3, H, W], RGB in [0, 1], any B, H and W; the mean and deviation are applied inside"
_OUTPUT = "logits: float [B, 1, H, W], sigmoid gives probabilities; uncertainty: float [B, 1, H, W] in (0, 1]"


_LARGEST = 8192
"""Pixels a side, far beyond what a model of this kind is trained at."""


@dataclass(frozen=True)
class Facts:
    """What an exported model carries along, as JSON: in a file of its own or in the metadata of an ONNX model."""

    image_size: int
    """Height and width in pixels that the model was trained at."""
    threshold: float
    """Probability from which on a pixel is called object."""
    threshold_reason: str
    checkpoint: str
    """Name of the run and of its checkpoint; no path."""
    weights: str
    """"raw" or "ema"."""
    weights_reason: str
    step: int
    epoch: int
    monitor: str
    """The measure that the checkpoint was selected by."""
    selected_on: str
    camox: str
    """Version that exported it."""
    input: str = _INPUT
    output: str = _OUTPUT

    def to_json(self) -> str:
        """One table, keys as above."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> "Facts":
        """Read what `to_json` wrote; keys of a later version are left aside.

        Raises:
            CheckpointError: it is not of this form; `place` names it.
        """
        try:
            table = json.loads(text)
            facts = cls(**{key: table[key] for key in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{place}: is not what camox writes ({error!r}): export the model again") from error
        for name, field in cls.__dataclass_fields__.items():
            value = getattr(facts, name)
            right = isinstance(value, field.type) if isinstance(field.type, type) else True
            if not right or isinstance(value, bool):
                raise CheckpointError(f"{place}: {name} = {value!r}, which it cannot be: export the model again")
        for name, fits in facts._ranges().items():
            if not fits:
                value = getattr(facts, name)
                raise CheckpointError(f"{place}: {name} = {value!r}, which it cannot be: export the model again")
        return facts

    def _ranges(self) -> dict[str, bool]:
        """Whether what is to be used or shown is of a kind that camox writes."""
        texts = {name: value.isprintable() for name, value in asdict(self).items() if isinstance(value, str)}
        return texts | {
            "image_size": 32 <= self.image_size <= _LARGEST,
            "threshold": 0 <= self.threshold <= 1,  # a NaN is not
            "weights": self.weights in ("raw", "ema"),
            "step": self.step >= 0,
            "epoch": self.epoch >= 0,
        }

    def of_loaded_model(self) -> dict[str, Any]:
        """What these facts are to whoever loads the export, by the names of `LoadedModel`."""
        return {
            "image_size": self.image_size,
            "weights": self.weights,
            "reason": f"{self.weights} weights of {self.checkpoint}, exported by camox {self.camox}",
            "step": self.step,
            "epoch": self.epoch,
            "threshold": self.threshold,
            "threshold_reason": self.threshold_reason,
            "selected_on": self.selected_on,
        }
