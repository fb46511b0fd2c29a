"""Suite `inspect` of the benchmark: end to end at toy size, and what it measures of a process."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from benchmark import main
from benchmarking import inspection
from camox.errors import CheckpointError


@pytest.mark.slow
def test_inspect_measures_the_command_and_its_rivals(tmp_path, capsys):
    file = tmp_path / "inspect.json"
    assert main(["inspect", "--megabytes", "12", "--rounds", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["settings"] == {"megabytes": 12, "rounds": 2}
    rows = found["results"]["commands"]
    assert list(rows) == [
        "camox",
        "camox, no hashes",
        "camox, twice as large",
        "torch.load + isnan",
        "load_file + isfinite",
    ]
    held = {name: row["weights_bytes"] / 1e6 for name, row in rows.items()}
    assert 24 < held.pop("camox, twice as large") < 28.5  # three files of whole tensors, the largest of 1.5 MB
    assert all(12 < size < 16.5 for size in held.values())
    for row in rows.values():
        assert row["seconds_per_gigabyte"]["least"] <= row["seconds_per_gigabyte"]["most"]
        assert row["wall_seconds"]["median"] > 0
    # Importing torch alone takes several times as much.
    assert 5e6 < rows["camox"]["anonymous_bytes"] < rows["torch.load + isnan"]["anonymous_bytes"] / 2
    assert set(found["ratios"]["time"]) == {
        f"{ours} / {rival}"
        for ours in ("camox", "camox, no hashes")
        for rival in ("torch.load + isnan", "load_file + isfinite")
    }
    assert [(target["at_most"], target["met"]) for target in found["targets"]] == [
        (limit, None) for limit in (1, 1, 150, 150)
    ]
    assert "load_file + isfinite" in capsys.readouterr().out
    assert main(["inspect", "--from", str(file)]) == 0


def test_the_peak_of_anonymous_memory_is_that_of_the_process():
    held = "import time; held = bytearray(b'x') * 200_000_000; time.sleep(0.5); del held"
    assert 200e6 < inspection.run_process([sys.executable, "-c", held]).anonymous < 250e6


def test_a_rivals_script_finds_what_it_looks_for(tmp_path):
    bad = {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)}
    torch.save({"model": bad}, tmp_path / "bad.pth")
    save_file(bad, tmp_path / "bad.safetensors")
    for script, name in ((inspection.TORCH_LOAD, "bad.pth"), (inspection.LOAD_FILE, "bad.safetensors")):
        command = [sys.executable, "-c", script, tmp_path / name]
        assert subprocess.run(command, capture_output=True, text=True).stdout.startswith("1 tensors with NaN")


def test_a_command_that_fails_is_an_error_with_its_last_line():
    with pytest.raises(CheckpointError, match="ended with code 2: no good"):
        inspection.run_process([sys.executable, "-c", "import sys; sys.stderr.write('no good\\n'); sys.exit(2)"])
