import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camox.errors import ExperimentError
from camox.tracking.trackers import JsonlTracker, Picture, Trackers
from camox.tracking.wandb_tracker import WandbTracker

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
                row: dict = {}
                for item in record.history.item:
                    table, (*outer, name) = row, list(item.nested_key) or [item.key]
                    for part in outer:
                        table = table.setdefault(part, {})
                    table[name] = json.loads(item.value_json)
                found.append(row)
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


def wandb_records(folder, kind):
    """All records of one kind, such as "alert", of a run's offline files."""
    paths = sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name)
    records = [record for path in paths for record in _complete_records(path)]
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


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
        assert "connection refused" in said[0]
        assert "wandb sync" in said[0]
        assert "init_timeout" not in said[0]  # nobody can set it here


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

    def test_a_run_that_is_open_already_is_left_alone(self, no_credentials):
        """A notebook may have one of its own: wandb would hand that out as the new run."""
        import wandb

        settings = wandb.Settings(silent=True)
        mine = wandb.init(mode="offline", project="mine", dir=str(no_credentials / "mine"), settings=settings)
        try:
            tracker = wandb_tracker(no_credentials / "run", "offline")
            tracker.log({"x": 1}, step=0, epoch=0, phase="full")
            tracker.finish()
            assert tracker.run_id != mine.id
            assert [row["x"] for row in wandb_rows(no_credentials / "run")] == [1]
            mine.log({"y": 2})
        finally:
            mine.finish()

    def test_wandb_prints_nothing(self, no_credentials, capfd):
        tracker = wandb_tracker(no_credentials, "offline")
        tracker.log({"x": 1}, step=0, epoch=0, phase="full")
        tracker.finish()
        assert capfd.readouterr() == ("", "")

    def test_death_of_wandb_is_said_once_and_stops_nothing(self, no_credentials):
        # In a process of its own, because wandb keeps its dead service for the rest of the process.
        code = "import sys, tests.tracking.test_wandb_tracker as t; t.kill_wandb_and_go_on(sys.argv[1])"
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


class TestWandbBesideNumbers:
    def test_a_picture_is_kept_as_it_is_with_its_caption(self, no_credentials):
        pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        tracker = wandb_tracker(no_credentials, "offline")
        assert tracker.takes_pictures
        tracker.show({"panels/bark": Picture(pixels, "bark: IoU 0.41")}, step=40, epoch=2, phase="full")
        tracker.finish()
        (row,) = wandb_rows(no_credentials)
        assert row["step"] == 40
        shown = row["panels/bark"]
        assert shown["caption"] == "bark: IoU 0.41"
        (file,) = no_credentials.glob(f"wandb/offline-run-*/files/{shown['path']}")
        with Image.open(file) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), pixels)

    def test_of_one_kind_there_is_one_alert_in_a_while(self, no_credentials):
        tracker = wandb_tracker(no_credentials, "offline")
        for step in range(5):
            tracker.alert("nonfinite", f"step {step} skipped", "warning", step=step)
        tracker.alert("router_collapse", "the router at stride 4 has collapsed", "error", step=5)
        tracker.finish()
        alerts = wandb_records(no_credentials, "alert")
        assert [(alert.text, alert.level) for alert in alerts] == [
            ("step 0 skipped", "WARN"),
            ("the router at stride 4 has collapsed", "ERROR"),
        ]
        assert alerts[0].title == "nonfinite at step 0"

    def test_a_checkpoint_becomes_an_artifact_with_all_its_files(self, no_credentials):
        folder = no_credentials / "run"
        checkpoint = folder / "checkpoints" / "epoch_0003"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        (checkpoint / "manifest.json").write_text("{}")
        tracker = wandb_tracker(folder, "offline")
        tracker.keep(checkpoint, {"val/iou": 0.5}, ["latest", "epoch_0003", "best"])
        shutil.rmtree(checkpoint)  # as retention may do before anything is sent
        tracker.finish()
        (artifact,) = wandb_records(folder, "artifact")
        assert (artifact.type, artifact.name) == ("model", "a-run")
        assert sorted(artifact.aliases) == ["best", "epoch_0003", "latest"]
        assert json.loads(artifact.metadata) == {"val/iou": 0.5}
        staged = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        assert sorted(staged) == ["manifest.json", "model.safetensors"]
        assert staged["model.safetensors"].read_bytes() == b"weights"
        assert all(path.is_relative_to(folder) for path in staged.values())
        assert "WANDB_DATA_DIR" not in os.environ

    def test_a_checkpoint_that_is_gone_is_said_once_and_numbers_are_still_sent(self, no_credentials):
        said: list[str] = []
        tracker = wandb_tracker(no_credentials, "offline", warn=said.append)
        for _ in range(2):
            tracker.keep(no_credentials / "nowhere", {}, ["latest"])
        tracker.log({"x": 1}, step=0, epoch=0, phase="full")
        tracker.finish()
        assert len(said) == 1
        assert "numbers are still sent" in said[0]
        assert [row["x"] for row in wandb_rows(no_credentials)] == [1]


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
            raise wandb.errors.CommError("connection refused\nConsider increasing the init_timeout setting")
        return self

    def define_metric(self, *arguments, **keywords):
        pass
