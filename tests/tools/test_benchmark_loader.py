"""Suite `loader` of the benchmark, at toy size: all ways load the same images."""

import json

import numpy as np
import pytest

from benchmark import main
from benchmarking import loader
from benchmarking.loader import CACHE, FILES, FLOATS, PLAIN
from benchmarking.settings import Settings

TOY = Settings(image_size=64, batch=2, rounds=1)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(loader, "IMAGES", 4)
    monkeypatch.setattr(loader, "EPOCHS", 1)
    monkeypatch.setattr(loader, "WORKERS", (1,))


def test_all_ways_load_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "FLIPS", ())
    pairs = loader.write_photographs(tmp_path, 4)
    ways = loader.prepare(TOY, tmp_path, pairs)
    plain = np.concatenate([images.numpy() for images, _ in ways[PLAIN](0, 1)])
    floats = np.concatenate([images.numpy() for images, _ in ways[FLOATS](0, 1)])
    assert plain.shape == floats.shape == (4, 3, 64, 64)
    assert np.corrcoef(plain.ravel(), floats.ravel())[0, 1] > 0.9  # another resizing of the same
    assert abs(plain.mean() - floats.mean()) < 0.02
    masks = np.concatenate([masks.numpy() for _, masks in ways[PLAIN](0, 1)])
    assert (masks == np.concatenate([masks.numpy() for _, masks in ways[FLOATS](0, 1)])).mean() > 0.97
    for kept, read in zip(ways[CACHE](0, 1), ways[FILES](0, 1), strict=True):
        assert np.array_equal(kept.images, read.images)
        assert np.array_equal(kept.masks, read.masks)
        assert kept.problems == read.problems == []


def test_photographs_are_the_same_each_time_and_of_many_sizes(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        loader.write_photographs(tmp_path / name, 3)
    one, other = (sorted((tmp_path / name).rglob("*.*")) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert len(one) == 6


def test_loader_measures_all_ways(tmp_path, capsys, few):
    file = tmp_path / "loader.json"
    assert main(["loader", "--image-size", "64", "--batch", "2", "--rounds", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["settings"] == {"image_size": 64, "batch": 2, "rounds": 2}
    rows = found["results"]["loading"]
    assert list(rows) == [PLAIN, FILES, FLOATS, CACHE]
    assert all(row.keys() == {"images per core second", "images/s, workers: 1"} for row in rows.values())
    assert set(found["results"]["grey levels"]) == {
        "decoded at reduced scale", "averaged over areas", "bilinear without antialiasing",
    }  # fmt: skip
    targets = {target["what"]: target for target in found["targets"]}
    assert [(target["at_most"], target["met"]) for target in targets.values()] == [(0.8, None), (0.2, None)]
    measured = found["ratios"]["time per image"][f"{CACHE} / {PLAIN}"]["median"]
    assert targets[f"time per image, {CACHE} / {PLAIN}"]["measured"] == measured
    capsys.readouterr()
    page = tmp_path / "page.md"
    page.write_text("<!-- loader -->\n<!-- /loader -->\n")
    assert main(["loader", "--from", str(file), "--markdown", str(page)]) == 0
    assert "64², batch 2, medians of 2 interleaved rounds" in page.read_text()
