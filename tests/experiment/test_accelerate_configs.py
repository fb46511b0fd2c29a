import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"


@pytest.mark.parametrize(
    ("name", "processes", "precision", "cpu"),
    [
        ("cpu", 1, "no", True),
        ("cpu_2_processes", 2, "no", True),
        ("single_gpu_fp16", 1, "fp16", False),
        ("two_gpu_fp16", 2, "fp16", False),
    ],
)
def test_launcher_reads_the_config(name: str, processes: int, precision: str, cpu: bool):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (processes, precision, cpu)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_launch_line_in_the_comment_names_files_that_exist(config: Path):
    words = config.read_text(encoding="utf-8").split()
    assert f"accelerate_configs/{config.name}" in words
    (recipe,) = (word for word in words if word.endswith(".toml"))
    assert (CONFIGS.parent / recipe).is_file()


@pytest.mark.distributed
def test_two_processes_on_the_cpu_find_each_other(tmp_path: Path):
    script = tmp_path / "count.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator()\n"
        f"open(rf'{tmp_path}/{{accelerator.process_index}}', 'w').write(str(accelerator.num_processes))\n"
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
