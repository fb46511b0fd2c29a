"""Suite `infer` at toy size: whose routing it is, what is timed, what is written."""

import json
from collections import Counter
from pathlib import Path

import cv2
import pytest
import torch

from benchmark import main
from benchmarking import inference, timing
from benchmarking.inference import eval_network
from benchmarking.settings import Settings

TOY = Settings(backbone="resnet10t", image_size=64, batch=2, width=8, rounds=1)


@pytest.fixture
def eager(monkeypatch):
    """A compiler takes a minute."""
    monkeypatch.setattr(inference, "NETWORKS", ("sparse", "dense", "static", "no_experts", "channels_last"))


def test_images_take_the_pairs_of_experts_in_turn():
    network, images = eval_network("sparse", TOY), torch.rand(3, 3, 64, 64)
    one_by_one = [network(image[None]).routing for image in images]
    together = network(images).routing
    for stride, routing in together.items():
        pairs = [tuple(routing_of[stride].selected[0].tolist()) for routing_of in one_by_one]
        assert sorted(pairs) == [(0, 1), (2, 3), (4, 5)]
        assert pairs == [tuple(pair) for pair in routing.selected.tolist()]
    assert len({tuple(routing.selected[0].tolist()) for routing in together.values()}) > 1  # not one pair at all scales


def test_the_routers_still_decide_and_their_weights_are_used():
    network, image = eval_network("sparse", TOY), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        routing = network(image).routing[4]
        network.routers["stride_4"]._forward_hooks.clear()
        own = network(image).routing[4]
    torch.testing.assert_close(routing.weights, own.weights)
    torch.testing.assert_close(routing.probabilities, own.probabilities)


@pytest.mark.usefixtures("eager")
def test_everything_is_timed_on_one_thread_in_units_per_image(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "ROUTINGS", 1)
    measured = {}
    of_rounds = inference.interleaved

    def note(works, rounds, device):
        measured.update(of_rounds(works, rounds, device), threads=torch.get_num_threads())
        return {name: samples for name, samples in measured.items() if name != "threads"}

    monkeypatch.setattr(inference, "interleaved", note)
    sizes = ["--backbone", "resnet10t", "--width", "8", "--image-size", "64", "--batch", "2", "--rounds", "1"]
    torch.set_num_threads(2)
    try:
        assert main(["infer", *sizes, "--json", str(tmp_path / "infer.json")]) == 0
    finally:
        torch.set_num_threads(1)
    found = json.loads((tmp_path / "infer.json").read_text())
    assert measured["threads"] == found["machine"]["threads"] == 1
    rows = found["results"]["inference"]
    assert {"sparse", "dense", "static", "no_experts", "channels_last", "sparse, batch 2"} < set(rows)
    assert {"sparse, infer", "sparse, predict"} < set(rows)
    images = {name: 6 if "batch 2" in name else 3 for name in rows}
    for name, row in rows.items():
        (sample,), (unit,) = measured[name], measured[timing.UNIT]
        assert row["units_per_image"]["median"] == pytest.approx(sample.process / unit.process / images[name], rel=1e-3)
        assert row["images/s"]["median"] == pytest.approx(images[name] / sample.wall, rel=1e-3)
    per_image = found["ratios"]["time per image"]["sparse, batch 2 / sparse"]["median"]
    batched, alone = (rows[name]["process_seconds"]["median"] for name in ("sparse, batch 2", "sparse"))
    assert per_image == pytest.approx(batched / alone, rel=1e-3)


def test_predict_goes_from_files_to_files(tmp_path, capsys):
    network = eval_network("sparse", TOY)
    chosen = Counter()
    for router in network.routers.values():
        router.register_forward_hook(lambda module, inputs, routing: chosen.update(routing.selected.flatten().tolist()))
    work = inference._predict(network, 3, TOY, tmp_path)
    for _ in range(2):
        work()
    masks = sorted(Path(tmp_path / "masks").iterdir())
    assert [mask.name for mask in masks] == ["0.png", "1.png", "2.png"]
    assert cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED).shape == inference.PHOTOGRAPH
    assert set(chosen) == set(range(6))
    assert len(set(chosen.values())) == 1
    assert capsys.readouterr().out == ""


def test_infer_starts_from_bytes():
    seen = []
    network = eval_network("sparse", TOY)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.full((1, 3, 64, 64), 51, dtype=torch.uint8)
    inference._infer(network, [images], TOY)()
    torch.testing.assert_close(seen[0], torch.full((1, 3, 64, 64), 0.2))
