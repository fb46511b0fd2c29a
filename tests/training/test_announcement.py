"""What a run says of itself before it starts."""

from types import SimpleNamespace
from typing import Any

import pytest

from camox.training.announcement import announce
from camox.training.run_state import Position


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "top 2 of 6 at strides 4, 8, 16, 32"),
        (["model.moe.mode=dense", "model.moe.scales=[8, 16]"], "all 6 at strides 8, 16"),
        (["model.moe.mode=static"], "always texture and edge at strides 4, 8, 16, 32"),
        (["model.moe.mode=random"], "2 of 6 by chance at strides 4, 8, 16, 32"),
        (["model.moe.scales=[]"], "none"),
    ],
)
def test_experts_are_announced_as_they_will_be_used(tiny_experiment, overrides, expected):
    rows: dict[str, object] = {}
    console: Any = SimpleNamespace(
        warning=lambda text: None, header=lambda title, found: rows.update((key, value) for key, value in found)
    )
    source: Any = type("Source", (), {"notices": (), "label": "habitats", "__len__": lambda self: 10})()
    accelerator: Any = SimpleNamespace(
        num_processes=1, device=SimpleNamespace(type="cpu"), mixed_precision="no", is_main_process=True
    )
    network: Any = SimpleNamespace(parameters=lambda: iter(()))
    announce(console, tiny_experiment(*overrides), accelerator, network, source, source, Position())
    assert rows["experts"] == expected
