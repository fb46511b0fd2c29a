"""Suite `measures` of the benchmark: end to end at toy size, and that it would see a measure that is off."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from benchmark import main
from benchmarking import measures, validation
from benchmarking.measures import _differences
from benchmarking.pairs import EDGES, random_pair
from benchmarking.reference import PARTS, reference_measures
from benchmarking.settings import Settings


@pytest.fixture
def toy(monkeypatch):
    for module, name, value in (
        (measures, "RANDOM_PAIRS", 5),
        (measures, "NATIVE_PAIRS", 1),
        (measures, "TIMED_PAIRS", 2),
        (measures, "SIDE", 64),
        (validation, "PHOTOGRAPHS", 3),
        (validation, "SIZES", ((60, 80), (50, 40))),
        (validation, "INPUT", 32),
        (validation, "BATCH", 2),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.delenv("CAMOX_OPEN_PAIRS", raising=False)


def test_measures_compares_and_times(tmp_path, toy, capsys):
    file = tmp_path / "measures.json"
    assert main(["measures", "--rounds", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["settings"] == {"device": "cpu", "rounds": 1}
    differences = found["results"]["largest difference"]
    assert [row["pairs"] for row in differences.values()] == [5, 5, 1, len(EDGES)]
    assert all(0 <= row[part] < 1e-6 for row in differences.values() for part in PARTS)
    for percent in (10, 40):
        rows = found["results"][f"64², object {percent} %"]
        assert list(rows) == [*PARTS, "all measures"]
        assert all(row["camox, ms"]["median"] > 0 and row["pysodmetrics, ms"]["median"] > 0 for row in rows.values())
    rows = found["results"]["validation"]
    assert list(rows) == [validation.ONE, validation.TWO, validation.RIVAL, validation.DECODING]
    for row in rows.values():
        assert row["2026 images, s"]["median"] == pytest.approx(2.026 * row["CPU ms / image"]["median"], rel=1e-3)
    assert [target["at_most"] for target in found["targets"]] == [1e-6, 1 / 7, 1 / 4, 40]
    assert {target["met"] for target in found["targets"]} == {None}  # stated for the default settings
    assert "pysodmetrics" in capsys.readouterr().out
    assert main(["measures", "--from", str(file)]) == 0


def test_a_measure_that_is_off_is_seen(monkeypatch):
    pairs = [random_pair(seed) for seed in range(3)]
    honest = measures.image_measures
    monkeypatch.setattr(
        measures, "image_measures", lambda *pair: {name: value + 3e-5 for name, value in honest(*pair).items()}
    )
    assert all(_differences(pairs)[part] == pytest.approx(3e-5, rel=0.1) for part in PARTS)


def test_nan_against_a_number_is_an_infinite_difference():
    assert measures._difference(math.nan, 0.5) == math.inf
    assert measures._difference(math.nan, math.nan) == 0


def test_parts_of_the_reference_are_those_of_the_whole():
    pair = random_pair(4)
    whole = reference_measures([pair])
    parts = {name: value for part in PARTS for name, value in reference_measures([pair], [part]).items()}
    assert parts == whole
    assert {name for names in PARTS.values() for name in names} == whole.keys()


def test_batches_of_the_gpu_part_are_measured_alike(toy):
    # On a CPU too the batch's own implementation runs; only its time means nothing.
    report = validation.validation_on_gpu(Settings(rounds=1))
    (target,) = report.targets
    assert target.met
    assert report.results["validation"].keys() == {validation.ON_GPU, validation.ON_CPU}


def test_the_loaders_own_process_is_watched(toy):
    seconds = []
    busy = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", f"{busy}\ninput()"], stdin=subprocess.PIPE) as child:
        validation._watched(lambda: wait_for_cpu(child.pid, 0.3), seconds)()
        child.communicate(b"\n")
    assert 0.25 < seconds[0] < 1


def wait_for_cpu(process, seconds):
    while sum(psutil.Process(process).cpu_times()[:2]) < seconds:
        time.sleep(0.01)


def test_photographs_have_the_share_of_object_that_is_asked_for(toy, tmp_path):
    maps = validation._write_photographs(tmp_path)
    assert maps.shape == (3, 32, 32)
    assert maps.dtype is torch.float32
    for number, share in zip(range(3), validation.SHARES, strict=False):
        truth = validation.cv2.imread(f"{tmp_path}/GT/{number:03}.png", validation.cv2.IMREAD_GRAYSCALE)
        assert np.mean(truth == 255) == pytest.approx(share, abs=0.01)
