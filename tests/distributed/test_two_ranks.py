"""Two processes on gloo: the same weights on both ranks, across the phase change, with experts idle."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_EXPERIMENT

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch",
    "--multi_gpu", "--num_processes", "2", "--main_process_port", "0",
]  # fmt: skip
pytestmark = pytest.mark.distributed


def launch(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*LAUNCH, *arguments], env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    experiment = folder / "tiny.toml"
    # One image per rank and batch: 2 of 6 experts are busy on a rank, at least 4 are idle there.
    text = TINY_EXPERIMENT.replace("batch_size = 4", "batch_size = 1").replace("image_size = 32", "image_size = 64")
    text = text.replace('name = "full"\nepochs = 1', 'name = "full"\nepochs = 2\nunfreeze = "progressive"')
    experiment.write_text(text.replace("lr = 1e-3", "lr = 1e-3\naccumulate = 3"))
    done = launch(str(ROOT / "tests/distributed/two_ranks.py"), str(experiment), str(folder))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text()) | {"run": str(folder / "tiny")}


def test_both_ranks_have_the_same_weights_after_every_step(report):
    for number, step in enumerate(report["steps"]):
        ours, theirs = step["ranks"]
        assert ours["weights"] == theirs["weights"], f"step {number}"


def test_the_run_unfreezes_the_backbone_in_two_strides_and_goes_on_learning(report):
    frozen = [step["frozen"] for step in report["steps"]]
    epoch = len(frozen) // 3
    assert frozen == [4] * epoch + [2] * epoch + [0] * epoch
    weights = [step["ranks"][0]["weights"] for step in report["steps"]]
    assert all(before != after for before, after in itertools.pairwise(weights))


def test_experts_are_idle_on_each_rank_in_every_step(report):
    idle = [count for step in report["steps"] for rank in step["ranks"] for count in rank["idle"]]
    assert min(idle) == 4 * 4  # one image picks 2 of 6 experts at each of four scales


def test_the_average_follows_the_weights(report):
    """Moving the network when it is wrapped once left the average with tensors that nobody trained."""
    assert all(before != after for before, after in itertools.pairwise(report["averages"]))


def test_ranks_validate_the_same_model_with_its_running_statistics(report):
    assert len(report["validated"]) == 6  # raw and averaged weights after each of three epochs
    assert all(ours == theirs for ours, theirs in report["validated"])


def test_ranks_see_the_same_scores(report):
    """What follows from them, a new best or a lower rate, is then decided alike."""
    assert len(report["scores"]) == 6
    assert all(ours == theirs for ours, theirs in report["scores"])


def test_ranks_train_on_different_samples_and_share_the_epoch(report):
    steps = len(report["steps"]) // 3
    for first in range(0, 3 * steps, steps):
        epoch = report["steps"][first : first + steps]
        seen = [index for step in epoch for rank in step["ranks"] for index in rank["indices"]]
        assert len(seen) == len(set(seen)) == 8


def test_one_run_was_wrapped_for_two_ranks_and_saved_once(report):
    assert report["wrapper"] == "DistributedDataParallel"
    checkpoint = Path(report["run"], "checkpoints", "epoch_0003")
    assert {file.name for file in checkpoint.glob("rng_*")} == {"rng_0.safetensors", "rng_1.safetensors"}


def test_the_command_of_the_readme_trains_the_quickstart_on_two_processes(tmp_path):
    done = launch(
        "camox/train.py",
        "experiments/quickstart.toml",
        'data.train=[{synthetic="habitats",count=40,size=64}]',
        "data.test=[]",
        "data.image_size=64",
        "data.batch_size=4",
        "data.workers=0",
        "phases.full.epochs=1",
        "tracking.wandb=disabled",
        "--output",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert "2 × cpu" in done.stdout
    assert json.loads((tmp_path / "quickstart" / "exit.json").read_text())["code"] == 0


def test_a_process_count_that_did_not_come_to_be_is_an_error(tmp_path):
    """Without ACCELERATE_USE_CPU, torchrun's two processes would be two runs that overwrite each other."""
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY_EXPERIMENT)
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    script = [str(ROOT / "camox/train.py"), str(experiment), "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *script],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "2 processes were launched but this one sees 1" in done.stderr
    assert not (tmp_path / "tiny").exists()
