"""Suite `predict` with few images: what is timed, and that it is the same work."""

import json

import cv2
import pytest
import torch

from benchmark import main
from benchmarking import prediction, timing
from benchmarking.settings import Settings

TOY = Settings(rounds=1)


@pytest.fixture(scope="module")
def model():
    return prediction._quickstart(torch.device("cpu"))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(timing, "ROUTINGS", 1)
    monkeypatch.setattr(prediction, "IMAGES", 5)
    monkeypatch.setattr(prediction.measure_prediction, "__defaults__", (5,))


def test_images_have_five_sizes_and_every_one_gets_its_mask(model, tmp_path):
    files = prediction._photographs(6, tmp_path)
    assert [cv2.imread(str(file)).shape[:2] for file in files] == [*prediction.SIZES, prediction.SIZES[0]]
    prediction._predict(model, files, tmp_path / "masks", {})()
    written = [cv2.imread(str(tmp_path / "masks" / f"{number}.png"), cv2.IMREAD_UNCHANGED) for number in range(6)]
    assert [mask.shape for mask in written] == [*prediction.SIZES, prediction.SIZES[0]]


def test_the_network_sees_as_many_images_in_batches_of_the_size(model, monkeypatch):
    seen = []
    hook = model.model.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    prediction._network(model, 5, 2)()
    hook.remove()
    assert seen == [(2, 3, 128, 128), (2, 3, 128, 128), (1, 3, 128, 128)]


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_shares_of_the_networks_images_per_second_are_written(tmp_path):
    assert main(["predict", "--rounds", "1", "--json", str(tmp_path / "predict.json")]) == 0
    found = json.loads((tmp_path / "predict.json").read_text())
    rows = found["results"]["prediction"]
    (shares,) = found["ratios"].values()
    for name in prediction._OPTIONS:
        expected = rows["network"]["wall_seconds"]["median"] / rows[name]["wall_seconds"]["median"]
        assert shares[f"{name} / network"]["median"] == pytest.approx(expected, rel=1e-3)
    (target,) = found["targets"]
    share = min(shares[f"predict / {network}"]["median"] for network in ("network", "network, batch 8"))
    assert target["measured"] == pytest.approx(1 / share, rel=1e-3)
    assert found["settings"] == {"device": "cpu", "rounds": 1}
