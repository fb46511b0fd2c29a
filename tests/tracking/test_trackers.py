import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camox.errors import ExperimentError
from camox.tracking.trackers import JsonlTracker, Trackers, WandbTracker

FAKE_KEY = "0123456789" * 4


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def wandb_tracker(folder, mode="auto", **arguments):
    return WandbTracker(mode, "camox", None, "a run", {"model": {"width": 128}}, folder, **arguments)


def wandb_rows(folder):
    """Read all offline .wandb files of a run: LevelDB's log format with wandb's own records inside."""
    found = []
    for path in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name):
        for record in _complete_records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return found


def _complete_records(path):
    """wandb's process writes on for a moment after finish() has returned, up to an exit record."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = [Record.FromString(data) for data in _leveldb_records(path.read_bytes())]
        if any(record.WhichOneof("record_type") in ("exit", "footer") for record in records):
            return records
        time.sleep(0.02)
    raise AssertionError(f"wandb did not complete {path}")


def _leveldb_records(data, block=32768):
    assert data[:4] in (b"", b":W&B")
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little room for a header: padding to the next block
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path


class TestJsonlTracker:
    def test_row(self, tmp_path):
        tracker = JsonlTracker(tmp_path / "metrics.jsonl")
        tracker.log({"train/loss": 0.1}, step=20, epoch=1, phase="full")
        tracker.finish()
        assert rows(tmp_path / "metrics.jsonl") == [{"step": 20, "epoch": 1, "phase": "full", "train/loss": 0.1}]

    def test_non_finite_values_become_null_and_are_named(self, tmp_path):
        tracker = JsonlTracker(tmp_path / "metrics.jsonl")
        tracker.log({"a": math.nan, "b": -math.inf, "c": 1.0}, step=1, epoch=0, phase="full")
        tracker.finish()
        (row,) = rows(tmp_path / "metrics.jsonl")
        assert (row["a"], row["b"], row["c"], row["non_finite"]) == (None, None, 1.0, ["a", "b"])

    @pytest.mark.parametrize("resume_step", [0, 1, 20, 39, 40, 80])
    def test_resume_doubles_no_step(self, tmp_path, resume_step):
        path = tmp_path / "metrics.jsonl"
        first = JsonlTracker(path)
        for step in range(0, 100, 20):
            first.log({"x": step}, step=step, epoch=0, phase="full")
        first.finish()
        second = JsonlTracker(path, resume_step=resume_step)
        for step in range(0, 120, 20):
            if step > resume_step:
                second.log({"x": step}, step=step, epoch=0, phase="full")
        second.finish()
        assert [row["step"] for row in rows(path)] == list(range(0, 120, 20))

    def test_reserved_name_is_a_bug(self, tmp_path):
        tracker = JsonlTracker(tmp_path / "metrics.jsonl")
        with pytest.raises(AssertionError, match="reserved"):
            tracker.log({"step": 1}, step=1, epoch=0, phase="full")
        tracker.finish()


class TestWandbMode:
    def test_auto_without_a_key_is_offline(self, no_credentials):
        tracker = wandb_tracker(no_credentials / "run")
        assert tracker.mode == "offline"
        tracker.finish()

    @pytest.mark.parametrize("source", ["environment", "netrc"])
    def test_auto_with_a_key_is_online(self, no_credentials, monkeypatch, source):
        if source == "environment":
            monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        else:
            (no_credentials / "netrc").write_text(f"machine api.wandb.ai login user password {FAKE_KEY}\n")
        monkeypatch.setattr("wandb.init", _InitSpy())
        assert wandb_tracker(no_credentials / "run").mode == "online"

    def test_wandb_mode_wins(self, no_credentials, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert wandb_tracker(no_credentials / "run", "online").mode == "disabled"

    def test_disabled_is_never_overruled(self, no_credentials, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "online")
        assert wandb_tracker(no_credentials / "run", "disabled").mode == "disabled"

    def test_unknown_wandb_mode_is_an_error(self, no_credentials, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "of-line")
        with pytest.raises(ExperimentError, match="WANDB_MODE"):
            wandb_tracker(no_credentials / "run")

    def test_asked_for_and_missing_is_an_error(self, no_credentials, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ExperimentError, match="pip install wandb"):
            wandb_tracker(no_credentials / "run", "offline")

    def test_auto_and_missing_is_said(self, no_credentials, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        said: list[str] = []
        assert wandb_tracker(no_credentials / "run", warn=said.append).mode == "disabled"
        assert len(said) == 1

    def test_online_asked_for_and_unreachable_is_an_error(self, no_credentials, monkeypatch):
        monkeypatch.setattr("wandb.init", _InitSpy(unreachable=True))
        with pytest.raises(ExperimentError, match="offline"):
            wandb_tracker(no_credentials / "run", "online")

    def test_auto_and_unreachable_goes_offline_and_says_so(self, no_credentials, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        monkeypatch.setattr("wandb.init", _InitSpy(unreachable=True))
        said: list[str] = []
        assert wandb_tracker(no_credentials / "run", warn=said.append).mode == "offline"
        assert "wandb sync" in said[0]


class TestWandbRows:
    def test_file_holds_what_metrics_jsonl_holds(self, no_credentials):
        folder = no_credentials / "run"
        both = Trackers([JsonlTracker(folder / "metrics.jsonl"), wandb_tracker(folder, "offline")])
        for step in range(0, 200, 20):
            both.log({"train/loss": 1 / (step + 3), "lr/head": 8e-4}, step=step, epoch=step // 50, phase="full")
        both.log({"val/iou": 0.123456789012345}, step=180, epoch=3, phase="full")
        both.finish()
        written = [{k: v for k, v in row.items() if not k.startswith("_")} for row in wandb_rows(folder)]
        assert written == rows(folder / "metrics.jsonl")

    def test_resume_keeps_the_id_and_goes_on_counting(self, no_credentials):
        ids = []
        for resume, steps in ((False, (0, 20, 40)), (True, (20, 40, 60))):
            tracker = wandb_tracker(no_credentials, "offline", resume=resume)
            ids.append(tracker.run_id)
            for step in steps:
                tracker.log({"x": step}, step=step, epoch=0, phase="full")
            tracker.finish()
            time.sleep(1)  # wandb names its folders by the second
        found = wandb_rows(no_credentials)
        assert ids[0] == ids[1]
        assert [row["step"] for row in found] == [0, 20, 40, 20, 40, 60]
        assert [row["_step"] for row in found] == list(range(6))

    def test_wandb_prints_nothing(self, no_credentials, capfd):
        tracker = wandb_tracker(no_credentials, "offline")
        tracker.log({"x": 1}, step=0, epoch=0, phase="full")
        tracker.finish()
        assert capfd.readouterr() == ("", "")

    def test_death_of_wandb_is_said_once_and_stops_nothing(self, no_credentials):
        # In a process of its own, because wandb keeps its dead service for the rest of the process.
        code = "import sys, tests.tracking.test_trackers as t; t.kill_wandb_and_go_on(sys.argv[1])"
        environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(no_credentials / "run")],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "said 1, mode disabled\n"


def kill_wandb_and_go_on(folder):
    said: list[str] = []
    tracker = wandb_tracker(folder, "offline", warn=said.append)
    children = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True)
    for pid in children.stdout.split():
        if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
            os.kill(int(pid), signal.SIGKILL)
    for step in range(200):
        tracker.log({"x": step}, step=step, epoch=0, phase="full")
    tracker.finish()
    print(f"said {len(said)}, mode {tracker.mode}")


class _InitSpy:
    """Stands in for wandb.init, whose online mode needs a server."""

    id, step, url = "abc", 0, "https://example.org/run"

    def __init__(self, unreachable=False):
        self._unreachable = unreachable

    def __call__(self, *, mode, **arguments):
        import wandb

        if self._unreachable and mode == "online":
            raise wandb.errors.CommError("Run initialization has timed out")
        return self

    def define_metric(self, *arguments, **keywords):
        pass
