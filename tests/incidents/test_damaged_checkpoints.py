"""Incident 12: a checkpoint that is damaged, or cannot be written, is named, and the one before it is gone on from."""

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from camox.checkpoints.folders import list_checkpoints
from camox.checkpoints.manifest import MANIFEST, read_manifest, record_file
from camox.errors import CheckpointError, TrainingStopped
from camox.experiment import Experiment
from camox.tracking.jsonl import JsonLines
from camox.tracking.trackers import JsonlTracker
from camox.train import main
from camox.training import saving
from camox.training.trainer import Trainer
from tests.conftest import TINY_EXPERIMENT

SMALL = (
    "model.backbone=test_efficientnet",
    "model.refinement_steps=1",
    "model.moe.scales=[32]",
    "phases.full.epochs=2",
)
"""Three epochs of two steps, on a network of 0.2 million weights."""
NAMES = ["epoch_0001", "epoch_0002", "epoch_0003"]


def experiment_in(folder: Path) -> Experiment:
    file = folder / "tiny.toml"
    file.write_text(TINY_EXPERIMENT, encoding="utf-8")
    return Experiment.load(file, SMALL, folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's folder; never written to."""
    experiment = experiment_in(tmp_path_factory.mktemp("sound"))
    Trainer(experiment).run()
    assert [path.name for path in list_checkpoints(experiment.run_folder)] == NAMES
    return experiment.run_folder


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / sound.name))


def resume(run: Path, how: str = "auto") -> list[dict[str, Any]]:
    """Goes on with a run to its end; gives the events of that."""
    before = len(events(run))
    Trainer(experiment_in(run.parent), how).run()
    return events(run)[before:]


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def contents(run: Path) -> dict[str, Any]:
    """The files of the last checkpoint with their hashes."""
    return dict(read_manifest(list_checkpoints(run)[-1]).files)


def flip_a_byte(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def put_nan(checkpoint: Path) -> None:
    """As a program would that knows of hashes and of nothing else."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["backbone.mean"] = torch.full_like(tensors["backbone.mean"], torch.nan)
    save_file(tensors, file)
    table = json.loads((checkpoint / MANIFEST).read_text())
    record = record_file(file)
    table["files"][file.name] = {"sha256": record.sha256, "size": record.size}
    (checkpoint / MANIFEST).write_text(json.dumps(table))


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "ema.safetensors"
    os.truncate(file, file.stat().st_size // 2)


Damage = Callable[[Path], None]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a flipped byte": (flip_a_byte, "model.safetensors has another sha256"),
    "a missing file": (lambda path: (path / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "a truncated file": (truncate, "ema.safetensors has "),
    "a NaN tensor": (put_nan, "NaN or Inf in model/backbone.mean"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "manifest.json is missing"),
    "a truncated manifest": (lambda path: os.truncate(path / MANIFEST, 40), "manifest.json is missing or damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_the_newest_is_damaged_and_the_one_before_is_gone_on_from(run, sound, record, capsys, damage, message):
    damage(run / "checkpoints" / NAMES[2])
    damaged = {path.name: path.read_bytes() for path in (run / "checkpoints" / NAMES[2]).iterdir()}
    begun, found, *_ = resume(run)
    assert (begun["kind"], begun["epoch"]) == ("resume", 2)
    assert (found["kind"], found["severity"]) == ("damaged_checkpoint", "warning")
    for part in (NAMES[2], message, f"goes on from {run / 'checkpoints' / NAMES[1]}"):
        assert part in found["message"]
    assert message in "".join(capsys.readouterr()).replace("\n", " ")
    (aside,) = (run / "abandoned").iterdir()
    assert str(aside) in found["message"]
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == damaged
    assert contents(run) == contents(sound)
    told = "named, set aside, and the one before gone on from, to the bits of the run that nothing happened to"
    record(12, "The newest checkpoint is damaged", with_guards=told)


def test_two_are_damaged_and_the_third_is_gone_on_from_but_not_as_the_latest(run, sound):
    for number, (damage, _) in zip((2, 1), (DAMAGES["a flipped byte"], DAMAGES["no manifest"]), strict=True):
        damage(run / "checkpoints" / NAMES[number])
    with pytest.raises(CheckpointError, match=r"epoch_0002: manifest.*epoch_0003: model.*--resume auto"):
        resume(run, "latest")
    assert not (run / "abandoned").exists()
    begun, *found = resume(run)
    assert (begun["kind"], begun["epoch"]) == ("resume", 1)
    assert [event["kind"] for event in found].count("damaged_checkpoint") == 2
    assert sorted(path.name.partition("-")[0] for path in (run / "abandoned").iterdir()) == NAMES[1:]
    assert contents(run) == contents(sound)


@pytest.mark.parametrize("how", ["auto", "latest"])
def test_all_are_damaged_and_none_is_touched(run, how):
    for name, damage in zip(NAMES, ("a flipped byte", "a NaN tensor", "no manifest"), strict=True):
        DAMAGES[damage][0](run / "checkpoints" / name)
    with pytest.raises(CheckpointError, match="none is intact") as error:
        resume(run, how)
    assert all(name in str(error.value) for name in NAMES)
    assert not (run / "abandoned").exists()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {*NAMES, "best", "latest"}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_one_that_was_asked_for_by_its_path_is_not_replaced_by_another(run, damage, message):
    checkpoint = run / "checkpoints" / NAMES[2]
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=NAMES[2]):
        resume(run, str(checkpoint))
    assert not (run / "abandoned").exists()
    assert checkpoint.exists()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel lets no file grow past a size, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_space_for_tensors(patch: pytest.MonkeyPatch) -> None:
    write = saving.write_checkpoint

    def on_full_disk(*arguments: Any, **options: Any) -> Path:
        with files_up_to(100_000 if options["epoch"] == 2 else resource.RLIM_INFINITY):
            return write(*arguments, **options)

    patch.setattr(saving, "write_checkpoint", on_full_disk)


def no_space_for_a_line(patch: pytest.MonkeyPatch) -> None:
    log = JsonlTracker.log

    def on_full_disk(tracker: JsonlTracker, values: Any, **options: Any) -> None:
        full = options["step"] >= 4
        with files_up_to(tracker._lines.path.stat().st_size + 10 if full else resource.RLIM_INFINITY):
            log(tracker, values, **options)

    patch.setattr(JsonlTracker, "log", on_full_disk)


def a_disk_that_is_read_only_by_now(patch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def refused(path: Any, *arguments: Any, **options: Any) -> None:
        if "epoch_0002" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *arguments, **options)

    patch.setattr(os, "mkdir", refused)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (no_space_for_tensors, r"epoch_0002: could not be saved: .*File too large.*Free space.*epoch_0001"),
        (no_space_for_a_line, r"metrics\.jsonl: cannot be written \(No space left on device\).*--resume auto"),
        (a_disk_that_is_read_only_by_now, r"epoch_0002: could not be saved: .*Read-only file system.*epoch_0001"),
    ],
)
def test_a_disk_that_refuses_ends_the_run_which_goes_on_once_it_does_not(tmp_path, sound, record, trouble, message):
    experiment = experiment_in(tmp_path)
    run = experiment.run_folder
    with pytest.MonkeyPatch.context() as patch:
        trouble(patch)
        with pytest.raises(TrainingStopped, match=message):
            Trainer(experiment).run()
    end = json.loads((run / "exit.json").read_text())
    assert end["code"] == 3
    assert end["last_clean_checkpoint"] == str(run / "checkpoints" / NAMES[0])
    assert {path.name for path in (run / "checkpoints").iterdir()} == {NAMES[0], "best", "latest"}
    begun, *_ = resume(run)
    assert (begun["kind"], begun["epoch"]) == ("resume", 1)
    assert contents(run) == contents(sound)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    told = "ended with one message; resumed with space, to the bits of the run that nothing happened to"
    record(12, "A disk that refuses while a checkpoint is saved", with_guards=told)


def test_a_disk_that_refuses_everything_is_one_short_message(tmp_path, capsys, monkeypatch):
    """Not even exit.json can be written."""
    file = experiment_in(tmp_path).run_folder.with_suffix(".toml")
    append = JsonLines.append

    def on_full_disk(lines: JsonLines, record: Any) -> None:
        if record["step"] >= 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        append(lines, record)

    monkeypatch.setattr(JsonLines, "append", on_full_disk)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with capsys.disabled(), StringIO() as said:
            monkeypatch.setattr(sys, "stderr", said)
            monkeypatch.setattr(sys, "stdout", said)
            code = main([str(file), *SMALL, "--output", str(tmp_path)])
            text = said.getvalue()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 3
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    assert "exit.json could not be written" in text
    assert not list((tmp_path / "tiny").glob(".*.partial"))
