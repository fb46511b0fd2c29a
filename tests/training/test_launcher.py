import json
import os
import signal
import subprocess
import sys
import time

import pytest

from camox.training import launcher

# Stands for camox/train.py: writes its end into the folder that its argument names, as a run does.
SCRIPT = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def end(code):
    keys = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CAMOX_STARTED_BY")
    (run / "environment.json").write_text(json.dumps({key: os.environ[key] for key in keys}))
    pathlib.Path(os.environ["CAMOX_EXIT_CODE_FILE"]).write_text(str(code))
    sys.exit(code)
if "wait" in sys.argv:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: end(number))
    (run / "ready").write_text("")
    time.sleep(60)
    sys.exit(1)
end(3)
"""
# Stands for `accelerate launch`: turns every failure into 1, and leaves its child at the first signal.
FAKE_LAUNCHER = "import subprocess, sys; sys.exit(1 if subprocess.Popen([sys.executable, *sys.argv[1:]]).wait() else 0)"
# Stands for `camox train`.
PARENT = """
import pathlib, signal, sys
from camox.training import launcher
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
script, fake, run = sys.argv[1:]
launcher.TRAIN_SCRIPT = pathlib.Path(script)
launcher.command = lambda arguments, options: [sys.executable, "-c", fake, script, *arguments]
sys.exit(launcher.launch([run, "wait"], []))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(autouse=True)
def no_accelerate_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_the_runs_own_exit_code_comes_through_accelerate(monkeypatch, script, tmp_path, capfd):
    monkeypatch.setattr(launcher, "TRAIN_SCRIPT", script)
    monkeypatch.setattr(launcher, "_cores", lambda: 3)
    assert launcher.launch([str(tmp_path)], ["--cpu"]) == 3
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive", "CAMOX_STARTED_BY": str(os.getpid())}
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals_reach_the_training_process(script, tmp_path, name):
    number = getattr(signal, name)
    command = [sys.executable, "-c", PARENT, str(script), FAKE_LAUNCHER, str(tmp_path)]
    with subprocess.Popen(command) as parent:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, number)
        assert parent.wait(30) == number


@pytest.mark.parametrize(("content", "expected"), [("4", 4), ("0", 0), ("", 1), ("four", 1), (None, 1)])
def test_the_code_that_the_run_wrote_counts(tmp_path, content, expected):
    file = tmp_path / "exit_code"
    if content is not None:
        file.write_text(content)
    assert launcher.exit_code(file, 1) == expected


def test_a_killed_launcher_gives_the_shells_code(tmp_path):
    assert launcher.exit_code(tmp_path / "exit_code", -signal.SIGKILL) == 137


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], 1),
        (["--num_processes", "4"], 4),
        (["--num-processes=4"], 4),
        (["--cpu", "--num_processes", "2"], 2),
        (["--num_processes", "many"], 1),
        (["--config_file", "{file}"], 2),
        (["--config_file", "{file}", "--num_processes", "1"], 1),
        (["--config_file", "nowhere.yaml"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_processes_are_those_the_launcher_starts(tmp_path, options, expected):
    file = tmp_path / "two.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    assert launcher.processes([option.format(file=file) for option in options]) == expected


@pytest.mark.parametrize(("visible", "expected"), [("", 1), ("0", 1), ("0,1,3", 3), ("-1", 1)])
def test_without_options_there_is_a_process_per_gpu(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launcher.processes([]) == expected


def test_cores_are_shared_among_processes(monkeypatch):
    monkeypatch.setattr(launcher, "_cores", lambda: 16)
    assert launcher.environment(["--num_processes", "4"])["OMP_NUM_THREADS"] == "4"
    assert launcher.environment(["--num_processes", "32"])["OMP_NUM_THREADS"] == "1"


def test_the_users_threads_are_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    environment = launcher.environment([])
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("7", "active")


def test_the_launcher_is_told_what_it_would_otherwise_remark_on():
    line = launcher.command(["x.toml"], ["--num_processes", "2"])
    assert line.count("--num_processes") == 1
    assert line[line.index("--num_machines") + 1] == "1"
    assert line[line.index("--mixed_precision") + 1] == "no"
    assert line[-2:] == [str(launcher.TRAIN_SCRIPT), "x.toml"]


def test_a_configuration_file_is_left_to_decide(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text("num_processes: 2\n")
    line = launcher.command(["x.toml"], ["--config_file", str(file)])
    assert not {"--num_processes", "--num_machines", "--mixed_precision"} & set(line)
