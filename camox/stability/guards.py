"""Watchers of a run: each sees one thing, says when it is wrong and what to do. None reads the device every step."""

import torch
from torch import Tensor


class SkippedSteps:
    """Counts steps whose gradient was not finite, on the device.

    Skipping one is routine under fp16; many in a row drive the loss scale to nothing (about 160 do), and the
    next finite step would write NaN into the weights. `verdict` speaks before that.

    Args:
        most: skipped steps in a row that are still accepted.
        lowest_scale: the fp16 loss scale below which no gradient is finite any more.
    """

    def __init__(self, most: int, lowest_scale: float, device: torch.device):
        self.most = most
        self.lowest_scale = lowest_scale
        self._in_a_row = torch.zeros((), device=device)
        self._worst = torch.zeros((), device=device)
        self._total = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, taken: Tensor) -> None:
        """Takes in one step; `taken` is 0-dim bool, the same on every rank."""
        self._in_a_row = torch.where(taken, 0.0, self._in_a_row + 1)
        self._worst = torch.maximum(self._worst, self._in_a_row)
        self._total = self._total + torch.where(taken, 0.0, 1.0)

    def read(self) -> tuple[int, int]:
        """Most skips in a row since the last read, and skips in all. Waits for the device."""
        worst, total = torch.stack([self._worst, self._total]).tolist()
        self._worst = torch.zeros_like(self._worst)
        return int(worst), int(total)

    def verdict(self, in_a_row: int, scale: float | None) -> str | None:
        """Why the run must stop, or None."""
        if in_a_row > self.most:
            return (
                f"{in_a_row} steps in a row had gradients that are not finite "
                f"(stability.max_skipped_steps = {self.most}): lower optimizer.lr, use precision.dtype=bf16 or "
                "fp32 if this is fp16, and look for the term that is not finite in metrics.jsonl"
            )
        if scale is not None and scale < self.lowest_scale:
            return (
                f"the fp16 loss scale fell to {scale:g}, below precision.min_scale = {self.lowest_scale:g}: "
                "gradients overflow at any scale; use precision.dtype=bf16 or fp32, or lower optimizer.lr"
            )
        return None

    def state_dict(self) -> dict[str, float]:
        return {"in_a_row": self._in_a_row.item(), "total": self._total.item()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._in_a_row.fill_(state["in_a_row"])
        self._total.fill_(state["total"])
