import json
import os
import signal
import subprocess
import sys
import time

import pytest

from camox.training.launching import launcher

# Stands for camox/train.py: writes its end into the folder that its argument names, as a run does.
SCRIPT = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def end(code):
    keys = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CAMOX_STARTED_BY")
    (run / "environment.json").write_text(json.dumps({key: os.environ.get(key) for key in keys}))
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
# Stands for it too: says what each of several processes was told.
RANKS = """
import json, os, pathlib, sys
keys = ("WORLD_SIZE", "CAMOX_EXPECTED_PROCESSES", "ACCELERATE_USE_CPU")
file = pathlib.Path(sys.argv[1]) / f"rank_{os.environ['RANK']}"
file.write_text(json.dumps({key: os.environ[key] for key in keys}))
"""
# Stands for `accelerate launch`: turns every failure into 1, and leaves its child at the first signal.
FAKE_LAUNCHER = "import subprocess, sys; sys.exit(1 if subprocess.Popen([sys.executable, *sys.argv[1:]]).wait() else 0)"
# Stands for `camox train`.
PARENT = """
import pathlib, signal, sys
from camox.training.launching import launcher
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
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def test_the_runs_own_exit_code_comes_through_accelerate(monkeypatch, script, tmp_path, capfd):
    monkeypatch.setattr(launcher, "TRAIN_SCRIPT", script)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
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


@pytest.mark.parametrize(("content", "expected"), [("4", 4), ("4 2", 4), ("", 1), ("four", 1), (None, 1)])
def test_the_code_that_the_run_wrote_counts(tmp_path, content, expected):
    file = tmp_path / "exit_code"
    if content is not None:
        file.write_text(content)
    assert launcher.exit_code(file, 1) == expected


@pytest.mark.parametrize(("launchers", "expected"), [(0, 0), (1, 1), (-signal.SIGKILL, 137)])
def test_a_process_that_went_well_does_not_hide_another_that_did_not(tmp_path, launchers, expected):
    (tmp_path / "exit_code").write_text("0 0")
    assert launcher.exit_code(tmp_path / "exit_code", launchers) == expected


def test_a_killed_launcher_gives_the_shells_code(tmp_path):
    assert launcher.exit_code(tmp_path / "exit_code", -signal.SIGKILL) == 137


def test_what_cannot_be_launched_ends_with_one_message_and_code_2(script, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launcher, "TRAIN_SCRIPT", script)
    assert launcher.launch([str(tmp_path)], ["--num_processes", "0"]) == 2
    seen = capfd.readouterr()
    assert seen.err == "error: num_processes is 0: there must be at least one process\n"
    assert seen.out == ""
    assert not (tmp_path / "environment.json").exists()


@pytest.mark.distributed
def test_several_processes_on_the_cpu_need_no_file(script, tmp_path, monkeypatch, capfd):
    """The launcher itself starts one process with these options."""
    script.write_text(RANKS)
    monkeypatch.setattr(launcher, "TRAIN_SCRIPT", script)
    assert launcher.launch([str(tmp_path)], ["--cpu", "--num_processes", "2"]) == 0
    assert {path.name for path in tmp_path.glob("rank_*")} == {"rank_0", "rank_1"}
    expected = {"WORLD_SIZE": "2", "CAMOX_EXPECTED_PROCESSES": "2", "ACCELERATE_USE_CPU": "true"}
    assert json.loads((tmp_path / "rank_1").read_text()) == expected


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("end", "code", "told"), [("sys.exit(2)", 2, False), ("os.kill(os.getpid(), 9)", 1, True)])
def test_the_launcher_tells_of_a_process_that_was_killed_and_not_of_one_that_told_itself(
    script, tmp_path, monkeypatch, capfd, end, code, told
):
    wrote = 'pathlib.Path(os.environ["CAMOX_EXIT_CODE_FILE"]).write_text("2")' if not told else ""
    script.write_text(f"import os, pathlib, sys\n{wrote}\n{end}\n")
    monkeypatch.setattr(launcher, "TRAIN_SCRIPT", script)
    assert launcher.launch([], ["--cpu", "--num_processes", "2"]) == code
    seen = capfd.readouterr().err
    assert "SIGKILL" in seen if told else seen == ""
    assert "Traceback (most recent" not in seen
