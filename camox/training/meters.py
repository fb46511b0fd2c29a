"""Numbers of many steps in one vector on the device: summed there, reduced and read once per logging interval."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


class Meters:
    """Named running sums, packed into one fp32 vector; no host sync until `read`.

    Names and sizes are those of the first `add`; every later one must have the same.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, torch.Size] = {}
        self._sums: Tensor | None = None
        self._loaded: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds one step's values, tensors of any shape on the device."""
        packed = torch.cat([value.detach().float().flatten() for value in values.values()])
        if self._sums is None:
            self._shapes = {name: value.shape for name, value in values.items()}
            if self._loaded:
                packed = torch.cat([self._loaded[name].flatten() for name in values]) + packed
                self._loaded = {}
            self._sums = packed
            return
        assert list(values) == list(self._shapes), (list(values), list(self._shapes))
        self._sums = self._sums + packed

    @torch.no_grad()
    def take(self, other: "Meters", keep: Tensor) -> None:
        """Adds the sums of `other`, which starts anew, where `keep` (0-dim bool) is true, and else nothing."""
        values = other.state()
        other.load({})
        # A selection, not a product: what is not finite must not get through.
        self.add({name: torch.where(keep, value, 0.0) for name, value in values.items()})

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, np.ndarray]:
        """Sums over all that was added since the last read, after `reduce` (the sum over ranks); starts anew.

        Waits for the device: the one host copy of a logging interval.
        """
        if self._sums is None:
            return {}
        sums = reduce(self._sums).cpu().numpy().astype(np.float64)
        self._sums = None
        values, offset = {}, 0
        for name, shape in self._shapes.items():
            size = shape.numel()
            values[name] = sums[offset : offset + size].reshape(tuple(shape))
            offset += size
        return values

    def state(self) -> dict[str, Tensor]:
        """The sums since the last read by name, on the device; empty where nothing was added."""
        if self._sums is None:
            return dict(self._loaded)
        parts = self._sums.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from the sums that `state` gave, in place of its own."""
        self._sums, self._loaded = None, dict(state)
