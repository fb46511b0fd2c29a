"""Suite `checkpoint` of the benchmark, at toy size: every way saves the same state."""

import json

import pytest
import torch

from benchmark import main
from benchmarking import checkpoint
from benchmarking.checkpoint import COPY, FIRST, LATER, PICKLE, STATE
from benchmarking.settings import Settings
from camox.checkpoints.store import read_checkpoint
from camox.training.saving import Saver

TOY = Settings(backbone="resnet10t", width=8)


@pytest.fixture
def ways(tmp_path):
    return checkpoint.prepare(TOY, tmp_path)


def saved(way):
    """Where one save went."""
    way.start()
    return way.finish()


def test_all_ways_save_weights_average_and_moments(ways):
    assert saved(ways[COPY]) is None
    pickle = torch.load(saved(ways[PICKLE]), weights_only=True)
    assert pickle.keys() == {"model", "ema", "optimizer", "rng_0"}
    assert max(tensor.abs().max() for name, tensor in pickle["optimizer"].items() if name.endswith("exp_avg")) > 0
    for name in (FIRST, LATER):
        ours = read_checkpoint(saved(ways[name]))
        for stem in ("model", "ema", "optimizer"):
            assert all(torch.equal(tensor, pickle[stem][key]) for key, tensor in ours.tensors(stem).items())
            assert ours.tensors(stem).keys() == pickle[stem].keys()
    state = saved(ways[STATE])
    assert {file.name for file in state.iterdir()} >= {"model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"}


def test_only_the_later_saves_use_host_memory_again(tmp_path, monkeypatch):
    made = []

    class Counted(Saver):
        def __init__(self, *arguments):
            made.append(None)
            super().__init__(*arguments)

    monkeypatch.setattr(checkpoint, "Saver", Counted)
    ways = checkpoint.prepare(TOY, tmp_path)
    before = len(made)
    paths = [saved(ways[LATER]) for _ in range(3)]
    assert len(made) == before
    paths += [saved(ways[FIRST]) for _ in range(3)]
    assert len(made) == before + 3
    assert len(set(paths)) == 6  # none is written over another


def test_checkpoint_measures_saves_and_rivals(tmp_path, capsys):
    file = tmp_path / "checkpoint.json"
    assert main(["checkpoint", "--backbone", "resnet10t", "--width", "8", "--rounds", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["settings"] == {"device": "cpu", "backbone": "resnet10t", "width": 8, "rounds": 2}
    rows = found["results"]["ways to save"]
    assert list(rows) == [COPY, FIRST, LATER, PICKLE, STATE]
    assert rows.pop(COPY).keys() == {"blocked_seconds"}
    for row in rows.values():
        assert 0 < row["blocked_seconds"]["median"] <= row["safe_seconds"]["median"]
        assert row["disk_bytes"] == pytest.approx(rows[LATER]["disk_bytes"], rel=0.02)
    assert set(found["ratios"]["training waits"]) == {f"{name} / {COPY}" for name in rows}
    (target,) = found["targets"]
    assert (target["at_most"], target["met"]) == (1.3, None)
    assert target["measured"] == found["ratios"]["training waits"][f"{LATER} / {COPY}"]["median"]
    capsys.readouterr()
    page = tmp_path / "page.md"
    page.write_text("<!-- checkpoint -->\n<!-- /checkpoint -->\n")
    assert main(["checkpoint", "--from", str(file), "--markdown", str(page)]) == 0
    assert "state of resnet10t, width 8, medians of 2 interleaved rounds" in page.read_text()
