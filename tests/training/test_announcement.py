"""What a run says of itself before it starts."""

from types import SimpleNamespace
from typing import Any

import pytest

from camox.errors import DataError
from camox.training.announcement import announce
from camox.training.check import check
from camox.training.run_state import Position

SIX = "texture, edge, contrast, frequency, attention, semantic"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], f"top 2 of {SIX} at strides 4, 8, 16, 32; whole images; mlp gate; balance band"),
        (
            ["model.moe.mode=dense", "model.moe.scales=[8, 16]", 'model.moe.experts=["edge", "hybrid"]'],
            "all of edge, hybrid at strides 8, 16; whole images; mlp gate; balance band",
        ),
        (["model.moe.mode=static"], "always texture and edge at strides 4, 8, 16, 32; whole images"),
        (["model.moe.mode=random"], f"2 by chance of {SIX} at strides 4, 8, 16, 32; whole images"),
        (
            [
                "model.moe.top_k=3",
                "model.moe.shared=true",
                "model.moe.scales=[4, 8]",
                "model.moe.granularity=4",
                "model.moe.router.gate=linear",
                "model.moe.balance.kind=switch",
            ],
            f"top 3 of {SIX} at strides 4, 8; a shared one for every image; regions of a 4×4 grid; "
            "linear gate; balance switch",
        ),
        (["model.moe.scales=[]"], "none"),
    ],
)
def test_experts_are_announced_as_they_will_be_used(tiny_experiment, overrides, expected):
    rows: dict[str, object] = {}
    said: list[str] = []
    console: Any = SimpleNamespace(
        warning=lambda text: None, notice=said.append, header=lambda _, found: rows.update(found)
    )
    told = {"notices": (), "remarks": ("layout camo",), "label": "habitats"}
    source: Any = type("Source", (), {**told, "__len__": lambda self: 10})()
    accelerator: Any = SimpleNamespace(
        num_processes=1, device=SimpleNamespace(type="cpu"), mixed_precision="no", is_main_process=True
    )
    network: Any = SimpleNamespace(parameters=lambda: iter(()))
    announce(console, tiny_experiment(*overrides), accelerator, network, source, source, Position())
    assert rows["experts"] == expected
    assert said == ["layout camo"]


def test_check_says_one_step_and_two_steps(tiny_experiment, capsys):
    check(
        tiny_experiment(
            "optimizer.accumulate=2", "phases.full.batch_size=2", "phases.full.accumulate=1", "phases.full.epochs=2"
        )
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "held out 4 samples" in lines
    assert "frozen 1 epoch of 1 step on one process, 32², lr 0.001" in lines
    assert "full 2 epochs of 4 steps on one process, 32², lr 0.001" in lines


def test_check_names_the_experts_too(tiny_experiment, capsys):
    experiment = tiny_experiment("model.moe.top_k=3")
    check(experiment)
    assert f"\nexperts: top 3 of {SIX} at strides 4, 8, 16, 32" in capsys.readouterr().out


def test_check_tells_the_room_a_cache_takes_and_refuses_too_large_a_one(tiny_experiment, capsys, tmp_path):
    overrides = ("data.multi_scale=[1.0, 2.0]", f"data.cache={tmp_path / 'cache'}")
    check(tiny_experiment(*overrides))
    out = capsys.readouterr().out
    assert f"0.00 GiB in {tmp_path / 'cache'}" in out.replace("\n", "")
    assert "32², 64²" in out
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match=r"12 samples at 32², 64² pixels .*data\.cache_gib"):
        check(tiny_experiment(*overrides, "data.cache_gib=1e-5"))
