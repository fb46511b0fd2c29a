"""The files for `accelerate launch`: what Accelerate makes of them, what `camox train` does, and their launch lines."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from camox.experiment import Experiment
from camox.train import parse
from camox.training.launch_options import settle

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SCRIPT = "camox/train.py"
# processes here, machines, precision, on the CPU, port that others have to know
EXPECTED = {
    "cpu": (1, 1, "no", True, None),
    "cpu_2_processes": (2, 1, "no", True, None),
    "single_gpu_fp16": (1, 1, "fp16", False, None),
    "two_gpu_fp16": (2, 1, "fp16", False, None),
    "eight_gpu_bf16": (8, 1, "bf16", False, None),
    "multi_node": (8, 2, "bf16", False, 29500),
}


def launch_line(name: str) -> list[str]:
    """The words of the first launch line in a file's comment, after `accelerate launch`; `NODE0` is this machine."""
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("#   ") and "accelerate launch" in line)
    words = shlex.split(line.removeprefix("#").replace("NODE0", "127.0.0.1"))
    return words[words.index("launch") + 1 :]


def validated(name: str) -> argparse.Namespace:
    """What `accelerate launch` itself makes of the launch line."""
    return _validate_launch_command(launch_command_parser().parse_args(launch_line(name)))[0]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)


def test_every_file_is_expected():
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_what_accelerate_launches(name: str):
    processes, machines, precision, on_cpu, port = EXPECTED[name]
    arguments = validated(name)
    assert (arguments.num_processes, arguments.num_machines) == (processes * machines, machines)
    assert arguments.use_cpu is on_cpu
    # DDP: each process has the whole network.
    assert [arguments.use_fsdp, arguments.use_deepspeed, arguments.use_megatron_lm] == [False] * 3
    if processes == 1:
        assert not arguments.multi_gpu
        environment = prepare_simple_launcher_cmd_env(arguments)[1]
        assert environment["ACCELERATE_USE_CPU"] == str(on_cpu)
    else:
        assert arguments.multi_gpu
        environment = prepare_multi_gpu_env(arguments)
        assert arguments.nproc_per_node == str(processes)
        # Static: the same machine is the first after a restart, and no machine needs a name that others know.
        assert arguments.rdzv_backend == "static"
        if machines > 1:
            assert (arguments.nnodes, arguments.node_rank) == (str(machines), 0)
            assert arguments.rdzv_endpoint == f"127.0.0.1:{port}"
        else:
            assert int(arguments.master_port) > 0  # a free one was found
    assert environment["ACCELERATE_MIXED_PRECISION"] == precision


@pytest.mark.parametrize("name", NAMES)
def test_camox_train_launches_the_same(name: str):
    ours, theirs = settle(launch_line(name)), validated(name)
    settled = _validate_launch_command(settle(launch_line(name)))[0]
    for key in ("num_processes", "num_machines", "multi_gpu", "use_cpu", "rdzv_backend", "main_process_ip", "gpu_ids"):
        assert getattr(settled, key) == getattr(theirs, key), key
        assert getattr(ours, key) in (getattr(theirs, key), None), key
    assert settled.mixed_precision == theirs.mixed_precision
    assert settled.main_process_port == (EXPECTED[name][4] or 0)


@pytest.mark.parametrize("name", NAMES)
def test_its_launch_line_names_what_exists(name: str):
    arguments = validated(name)
    assert Path(arguments.config_file) == CONFIGS.relative_to(ROOT) / f"{name}.yaml"
    assert arguments.training_script == SCRIPT
    options = parse(arguments.training_script_args)
    experiment = Experiment.load(options.experiment, options.overrides)
    # The file decides the precision only where the experiment does not: then both have to say the same.
    precision = {"no": "fp32"}.get(arguments.mixed_precision, arguments.mixed_precision)
    assert experiment.precision.dtype in ("auto", precision)


@pytest.mark.distributed
def test_two_processes_on_the_cpu_find_each_other(tmp_path: Path):
    script = tmp_path / "count.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator()\n"
        f"open(rf'{tmp_path}/{{accelerator.process_index}}', 'w').write(str(accelerator.num_processes))\n"
        "accelerator.wait_for_everyone()\n"  # the other may still be on its way
        "accelerator.end_training()\n"
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / "cpu_2_processes.yaml"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["2", "2"]
