"""Suite `startup`: launches are timed to a sign and ended; the whole suite at its smallest."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from benchmark import main
from benchmarking import start_in_parts, startup
from benchmarking.timing import Sample
from camox.training import reporting, trainer

LAUNCH = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
while time.process_time() < 0.2: pass
with open(sys.argv[1], "w") as sign: sign.write(str(child.pid))
time.sleep(600)
"""


def gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_launch_is_timed_to_its_sign_and_ended_with_all_that_it_started(tmp_path):
    sign = tmp_path / "sign"
    started = time.perf_counter()
    took = startup._until(sign, ["-c", LAUNCH, str(sign)])
    assert 0.2 <= took.wall <= time.perf_counter() - started
    assert took.process > 0.2
    child, patience = int(sign.read_text()), 600
    while not gone(child) and patience:
        time.sleep(0.1)
        patience -= 1
    assert gone(child)


def test_a_launch_that_takes_no_step_is_an_error_with_what_it_said(tmp_path):
    code = "import sys; sys.exit('no such backbone')"
    with pytest.raises(RuntimeError, match=r"took no step:\nno such backbone"):
        startup._until(tmp_path / "sign", ["-c", code])


def test_an_empty_file_is_no_sign(tmp_path):
    sign = tmp_path / "sign"
    code = f"import time; file = open({str(sign)!r}, 'w'); file.flush(); time.sleep(0.3); file.write('x')"
    assert startup._until(sign, ["-c", code]).wall > 0.3


def test_the_share_is_the_difference_in_each_round():
    ours, bare = [Sample(5, 9, None), Sample(50, 90, None)], [Sample(4, 6, None), Sample(44, 88, None)]
    assert startup._differences(ours, bare) == [Sample(1, 3, None), Sample(6, 2, None)]


def test_the_first_time_does_not_count_and_works_take_turns():
    seen = []
    works = {name: (lambda name=name: seen.append(name) or Sample(len(seen), 0, None)) for name in "AB"}
    samples = startup._interleaved(works, 2)
    assert "".join(seen) == "ABBAAB"
    assert [sample.process for sample in samples["A"]] == [4, 5]


def test_the_bare_script_runs_and_imports_no_camox(tmp_path):
    script = tmp_path / "bare.py"
    script.write_text(startup.BARE_SCRIPT + "\nassert 'camox' not in sys.modules\n")
    subprocess.run([sys.executable, str(script), str(tmp_path / "sign")], check=True)
    assert (tmp_path / "sign").read_text() == "done\n"


def test_what_is_replaced_to_be_timed_is_there():
    assert {name for name in start_in_parts.OF_TRAINER if not callable(getattr(trainer, name, None))} == set()
    assert {name for name in ("_window", "_heed_requests") if not hasattr(trainer.Trainer, name)} == set()
    assert hasattr(reporting, "WandbTracker")


@pytest.mark.slow
def test_the_whole_suite(tmp_path, monkeypatch):
    file = tmp_path / "startup.json"
    assert main(["startup", "--rounds", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["results"]
    assert found["commands"].keys() == startup.COMMANDS.keys()
    starts = {name: row["wall_seconds"]["median"] for name, row in found["to the first step"].items()}
    above = {name: row["wall_seconds"]["median"] for name, row in found["above"].items()}
    assert above["camox train - bare script"] == pytest.approx(starts["camox train"] - starts["bare script"], abs=0.01)
    parts = found["quickstart, in parts"]
    assert all(row["process_seconds"]["median"] > -0.01 for row in parts.values())
    assert parts["import torch"]["process_seconds"]["median"] > parts["open the data"]["process_seconds"]["median"]
    assert {"first step", "second step", "start wandb", "build the network", "the rest"} <= parts.keys()
    assert found["modules"]["timm"] == {"imported": "yes"}
    assert found["modules"]["datasets"] == {"imported": "no"}
