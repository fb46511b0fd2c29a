"""Sees, on the device and before the optimizer steps, a loss or a gradient norm far above its running median."""

from typing import Any

import torch
from torch import Tensor

WINDOW = 64
FEWEST = 16
"""Values that a median is taken of before anything is judged."""


class SpikeDetector:
    """Keeps the last 64 losses and norms of steps that were taken, and says when new ones are far above them.

    Far is more than `threshold` robust deviations above the median, a deviation being 1.4826 times the median absolute
    one (what a normal distribution's standard deviation is), and at least a tenth of the median for losses and all of
    it for norms, which clipping limits anyway: a quiet stretch of training must not make an ordinary step look wild.
    All is done on the device; nothing waits for it.

    Args:
        threshold: deviations above the median that are far.
        patience: far steps in a row before one is skipped: clipping takes the edge off a single one.
    """

    def __init__(self, threshold: float, patience: int, device: torch.device):
        self.threshold = threshold
        self.patience = patience
        self._last = torch.full((2, WINDOW), torch.nan, device=device)
        self._least = torch.tensor([0.1, 1.0], device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Takes in one step, `[]` each, the same on every rank; whether to skip it, `[]` bool."""
        values = torch.stack([loss.detach().float(), norm.float()])
        median = self._last.nanmedian(dim=1).values
        deviation = 1.4826 * (self._last - median[:, None]).abs().nanmedian(dim=1).values
        limit = median + self.threshold * torch.maximum(deviation, self._least * median)
        finite = values.isfinite().all()
        far = (values > limit).any() & (self._count >= FEWEST)
        # What is not finite, as fp16 routinely overflows, neither belongs to a row of far ones nor ends it.
        self._in_a_row = torch.where(finite, torch.where(far, self._in_a_row + 1, 0), self._in_a_row)
        keep = finite & ~far
        slot = torch.arange(WINDOW, device=values.device) == self._count % WINDOW
        self._last = torch.where(slot & keep, values[:, None], self._last)
        self._count = self._count + keep
        return self._in_a_row >= self.patience

    def reset(self) -> None:
        """Forgets what was normal: after a rollback, or where other parts of the model are trained."""
        self._last.fill_(torch.nan)
        self._count.zero_()
        self._in_a_row.zero_()

    def state_dict(self) -> dict[str, Any]:
        values = [[None if value != value else value for value in row] for row in self._last.tolist()]
        return {"last": values, "count": self._count.item(), "in_a_row": self._in_a_row.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = [[torch.nan if value is None else value for value in row] for row in state["last"]]
        self._last.copy_(torch.tensor(rows))
        self._count.fill_(state["count"])
        self._in_a_row.fill_(state["in_a_row"])
