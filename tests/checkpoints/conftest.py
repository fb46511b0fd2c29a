"""A way to save small checkpoints, and to damage them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camox.checkpoints.store import write_checkpoint

Save = Callable[..., Path]
DECODED = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
"""Of these every number is known; of the rest of `FLOATS`, how many are NaN, infinite or zero."""
FLOATS = [*DECODED, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def save(run: Path) -> Save:
    """`save(epoch, model={...}, s_measure=…)` writes checkpoint `epoch_<epoch>` of `run`."""

    def save(epoch: int, **changes: Any) -> Path:
        name = changes.pop("name", f"epoch_{epoch:04d}")
        model = changes.pop("model", {"weight": torch.full((4, 3), float(epoch)), "bias": torch.zeros(4)})
        arguments: dict[str, Any] = {
            "state": {"epoch": epoch, "scaler": {"scale": 1024.0}},
            "config": {"width": 128},
            "measures": {"s_measure": changes.pop("s_measure", epoch / 100), "mae": changes.pop("mae", 0.1)},
            "experiment_fingerprint": "f" * 64,
            "step": epoch * 10,
            "epoch": epoch,
        }
        return write_checkpoint(
            run, name, {"model": model, "rng_0": {"cpu": torch.get_rng_state()}}, **arguments | changes
        )

    return save
