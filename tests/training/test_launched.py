"""What a training process is told by a launcher, or by whatever else is in its environment."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from camox.errors import ExperimentError
from camox.training.launched import require_launched
from camox.training.launcher import TRAIN_SCRIPT

SECOND_OF_TWO = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for name in SECOND_OF_TWO:
        monkeypatch.delenv(name, raising=False)


def told(monkeypatch, **variables):
    for name, value in {**SECOND_OF_TWO, **variables}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_what_launchers_set_is_taken(monkeypatch):
    require_launched(on_cpu=False)
    told(monkeypatch)
    require_launched(on_cpu=False)
    told(monkeypatch, LOCAL_WORLD_SIZE="8", WORLD_SIZE="8")
    require_launched(on_cpu=True)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            dict.fromkeys(("RANK", "LOCAL_RANK", "MASTER_ADDR")),
            "WORLD_SIZE is 2 but RANK, LOCAL_RANK, MASTER_ADDR are not",
        ),
        ({"MASTER_PORT": ""}, "WORLD_SIZE is 2 but MASTER_PORT is not set: .* unset WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, not a whole number"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2: ranks are 0 to 1"),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, "4 processes were launched .* there are 2 GPUs: launch 2 here"),
        ({"MASTER_ADDR": "node0.invalid"}, "MASTER_ADDR is node0.invalid, a name that this machine does not know"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch, variables, said):
    told(monkeypatch, **variables)
    with pytest.raises(ExperimentError, match=said):
        require_launched(on_cpu=False)


@pytest.mark.parametrize(("local_rank", "tells"), [("0", True), ("3", False)])
def test_one_process_of_each_machine_tells(monkeypatch, local_rank, tells):
    """Rank 0, which tells for all otherwise, may be on a machine with enough GPUs."""
    told(monkeypatch, WORLD_SIZE="8", LOCAL_WORLD_SIZE="4", RANK="5", LOCAL_RANK=local_rank)
    with pytest.raises(ExperimentError) as caught:
        require_launched(on_cpu=False)
    assert caught.value.met_alone is tells


@pytest.mark.slow
def test_a_port_that_another_program_listens_on(tiny_experiment, tmp_path):
    tiny_experiment()  # writes the file
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = {**SECOND_OF_TWO, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [sys.executable, str(TRAIN_SCRIPT), str(tmp_path / "tiny.toml"), "--output", str(tmp_path / "runs")],
            env={**os.environ, **place},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert (
        f"error: port {port} of 127.0.0.1 is taken, perhaps by another run: give the launcher another one"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
