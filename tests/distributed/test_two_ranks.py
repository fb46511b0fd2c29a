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


def launch(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCH, *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as launcher:
        try:
            output, errors = launcher.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # killed, it would leave its two processes behind
            raise
    return subprocess.CompletedProcess(command, launcher.returncode, output, errors)


# One image per rank and batch: 2 of 6 experts are busy on a rank, at least 4 are idle there.
TINY = (
    TINY_EXPERIMENT.replace("batch_size = 4", "batch_size = 1")
    .replace("image_size = 32", "image_size = 64")
    .replace("lr = 1e-3", "lr = 1e-3\naccumulate = 3")
)
# Images without an object have no IoU: no validation is better than the one before.
EMPTY = 'val = [{ synthetic = "habitats", count = 2, size = 32, empty = 1.0, tiny = 0.0 }]'
PLATEAU = 'warmup_epochs = 0\nname = "plateau"\npatience = 1\ngamma = 0.25'
EXPERIMENTS = {
    "tiny": TINY.replace('name = "full"\nepochs = 1', 'name = "full"\nepochs = 2\nunfreeze = "progressive"'),
    "regions": TINY + "[model.moe]\ngranularity = 2\nshared = true\n",
    "random": TINY + '[model.moe]\nmode = "random"\n',
    "plateau": TINY.replace("val_fraction = 0.34", EMPTY).replace("warmup_epochs = 1", PLATEAU),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes, started once, tell of each experiment."""
    folder = tmp_path_factory.mktemp("two")
    files = [folder / f"{name}.toml" for name in EXPERIMENTS]
    for file, (name, text) in zip(files, EXPERIMENTS.items(), strict=True):
        file.write_text(text.replace('name = "tiny"', f'name = "{name}"'))
    done = launch(str(ROOT / "tests/distributed/two_ranks.py"), str(folder), *map(str, files))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    found = json.loads((folder / "report.json").read_text())
    return {name: found[name] | {"run": str(folder / name)} for name in EXPERIMENTS}


@pytest.fixture(scope="module")
def report(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return reports["tiny"]


def choices(report: dict[str, Any]) -> list[list[list[list[list[int]]]]]:
    """The experts chosen for each decision, by rank, micro-batch and scale."""
    in_order = [
        [micro_batch for step in report["steps"] for micro_batch in step["ranks"][rank]["chosen"]] for rank in (0, 1)
    ]
    assert in_order[0]
    return in_order


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_both_ranks_have_the_same_weights_after_every_step(reports, name):
    weights = [[rank["weights"] for rank in step["ranks"]] for step in reports[name]["steps"]]
    for number, (ours, theirs) in enumerate(weights):
        assert ours == theirs, f"step {number}"
    assert all(before != after for before, after in itertools.pairwise(ours for ours, _ in weights))


def test_the_run_unfreezes_the_backbone_in_two_strides(report):
    frozen = [step["frozen"] for step in report["steps"]]
    epoch = len(frozen) // 3
    assert frozen == [4] * epoch + [2] * epoch + [0] * epoch


def test_experts_are_idle_on_each_rank_in_every_step(report):
    """One image picks 2 of 6 experts at each of four scales."""
    busy = [{len(set(itertools.chain(*scale))) for scale in of} for rank in choices(report) for of in rank]
    assert all(numbers == {2} for numbers in busy)


def test_each_rank_routes_the_regions_of_its_own_images(reports):
    ours, theirs = choices(reports["regions"])
    assert {len(scale) for of in (*ours, *theirs) for scale in of} == {4}
    assert ours != theirs


def test_each_rank_draws_its_own_random_experts(reports):
    ours, theirs = choices(reports["random"])
    assert all(of_us != of_them for of_us, of_them in zip(ours, theirs, strict=True))
    assert len({str(of) for of in ours}) == len(ours)


def test_a_plateau_lowers_the_rate_on_both_ranks_alike(reports):
    rates = [[max(rank["rates"]) for rank in step["ranks"]] for step in reports["plateau"]["steps"]]
    half = len(rates) // 2
    assert rates == [[1e-3, 1e-3]] * half + [[2.5e-4, 2.5e-4]] * half


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


@pytest.mark.slow
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
        "tracking.report=false",
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
