import math
import os
import shutil

import pytest

from camox.checkpoints.folders import (
    clean_leftovers,
    is_better,
    list_checkpoints,
    rank_checkpoints,
    read_pointer,
    resolve,
    retain,
    set_pointer,
)
from camox.checkpoints.manifest import MANIFEST, read_manifest
from camox.errors import CheckpointError


def names(folders):
    return [folder.name for folder in folders]


def test_checkpoints_are_listed_by_epoch_and_not_by_name(save, run):
    for epoch in (10000, 9, 200):
        save(epoch, name=f"e{epoch}")
    assert names(list_checkpoints(run)) == ["e9", "e200", "e10000"]


def test_folder_without_manifest_is_no_checkpoint(save, run):
    save(1)
    (save(2) / MANIFEST).unlink()
    assert names(list_checkpoints(run)) == ["epoch_0001"]
    with pytest.raises(CheckpointError, match="no best or latest checkpoint"):
        resolve(run / "checkpoints" / "epoch_0002")


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/epoch_0002"])
def test_resolve_accepts_run_checkpoints_folder_and_checkpoint(save, run, part):
    save(1)
    path = save(2)
    set_pointer(run, "best", "epoch_0002")
    assert resolve(run / part).resolve() == path.resolve()


def test_resolve_accepts_the_checkpoints_folder_one_stands_in(save, run, monkeypatch):
    path = save(1)
    monkeypatch.chdir(run / "checkpoints")
    assert resolve(".").resolve() == path.resolve()


def test_resolve_prefers_in_the_order_given(save, run):
    save(1)
    save(2)
    set_pointer(run, "best", "epoch_0001")
    set_pointer(run, "latest", "epoch_0002")
    assert resolve(run).name == "epoch_0001"
    assert resolve(run, prefer=("latest",)).name == "epoch_0002"


def test_latest_without_a_pointer_is_the_newest(save, run):
    save(1)
    save(2)
    assert resolve(run, prefer=("latest",)).name == "epoch_0002"


@pytest.mark.parametrize(("pointer", "name"), [("best", "epoch_0001"), ("latest", "epoch_0002")])
def test_resolve_follows_the_file_of_a_pointer(save, run, monkeypatch, pointer, name):
    for epoch in (1, 2, 3):
        save(epoch)
    set_pointer(run, pointer, name)
    assert resolve(run / "checkpoints" / pointer) == run / "checkpoints" / name
    monkeypatch.chdir(run / "checkpoints")
    assert resolve(pointer, prefer=("latest",)).name == name


def test_the_file_of_a_pointer_to_what_is_gone_names_what_is_there(save, run):
    save(1)
    (run / "checkpoints" / "best").write_text("gone\n")
    message = r"checkpoints/best: names no checkpoint that is there \(finished checkpoints: epoch_0001\)"
    with pytest.raises(CheckpointError, match=message):
        resolve(run / "checkpoints" / "best")


def test_only_a_run_has_pointers(save, run, tmp_path):
    save(1)
    (tmp_path / "best").write_text("epoch_0001\n")
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(tmp_path / "best")


@pytest.mark.parametrize("content", ["gone\n", "../../elsewhere", "", "\xff\xfe"])
def test_pointer_that_names_nothing_is_passed_over(save, run, content):
    save(1)
    (run / "checkpoints" / "best").write_text(content, encoding="latin-1")
    assert read_pointer(run, "best") is None
    assert resolve(run).name == "epoch_0001"


def test_resolve_without_any_checkpoint_says_what_it_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"no best or latest checkpoint here \(finished checkpoints: none\)"):
        resolve(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(tmp_path / "absent")


def test_pointer_cannot_name_what_is_no_checkpoint(save, run):
    save(1)
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        set_pointer(run, "latest", "epoch_0002")


@pytest.mark.parametrize(
    ("candidate", "best", "monitor", "expected"),
    [
        (0.8, 0.7, "s_measure", True),
        (0.7, 0.7, "s_measure", False),
        (0.02, 0.03, "mae", True),
        (0.03, 0.02, "val/loss", False),
        (0.1, None, "iou", True),
        (0.1, math.nan, "iou", True),
        (math.nan, 0.1, "iou", False),
        (math.nan, None, "iou", False),
        (math.nan, 0.1, "mae", False),
    ],
)
def test_is_better(candidate, best, monitor, expected):
    assert is_better(candidate, best, monitor) is expected


@pytest.mark.parametrize(
    ("monitor", "best"), [("s_measure", ["epoch_0002", "epoch_0001"]), ("mae", ["epoch_0001", "epoch_0002"])]
)
def test_rank_follows_the_measures_direction_and_leaves_nan_out(save, run, monitor, best):
    save(1, s_measure=0.5, mae=0.1)
    save(2, s_measure=0.9, mae=0.2)
    save(3, s_measure=math.nan, mae=math.nan)
    assert names(rank_checkpoints(run, monitor)) == best


def test_retain_keeps_newest_best_protected_and_pointed_at(save, run):
    for epoch, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6], start=1):
        save(epoch, s_measure=score)
    set_pointer(run, "best", "epoch_0003")
    deleted = retain(run, keep_last=2, keep_best=1, monitor="s_measure", protected={"epoch_0004"})
    assert deleted == ["epoch_0001", "epoch_0005"]
    assert names(list_checkpoints(run)) == [
        "epoch_0002",
        "epoch_0003",
        "epoch_0004",
        "epoch_0006",
        "epoch_0007",
    ]
    assert not list((run / "checkpoints").glob(".*"))


def test_clean_leftovers_removes_remains_and_restores_what_was_replaced(save, run):
    path = save(1)
    save(2)
    (run / "checkpoints" / ".tmp-epoch_0003-77").mkdir()
    (run / "checkpoints" / ".tmp-latest-77").write_text("epoch")
    path.rename(path.with_name(".replaced-epoch_0001"))
    assert len(clean_leftovers(run)) == 3
    assert sorted(child.name for child in (run / "checkpoints").iterdir()) == ["epoch_0001", "epoch_0002"]


def test_clean_leftovers_of_a_run_that_never_saved(run):
    assert clean_leftovers(run) == []


@pytest.mark.parametrize("content", ["a" * 300, "a" * 5000, "../epoch_0001", "", "\0"])
def test_a_pointer_to_what_no_checkpoint_is_called_points_at_nothing(save, run, content):
    path = save(1)
    (run / "checkpoints" / "latest").write_text(content)
    assert read_pointer(run, "latest") is None
    assert resolve(run) == path


@pytest.mark.parametrize("file", ["latest", "epoch_0002/manifest.json"])
def test_a_pipe_is_not_waited_for(save, run, file):
    path = save(1)
    save(2)
    (run / "checkpoints" / file).unlink(missing_ok=True)
    os.mkfifo(run / "checkpoints" / file)
    assert resolve(run) in (path, path.with_name("epoch_0002"))
    with pytest.raises(CheckpointError, match="no regular file"):
        read_manifest(_with_pipe(run))


def _with_pipe(run):
    folder = run / "checkpoints" / "odd"
    folder.mkdir()
    os.mkfifo(folder / MANIFEST)
    return folder


@pytest.mark.parametrize("name", [".replaced-", ".replaced-.", ".replaced-..", ".replaced-latest"])
def test_what_stands_aside_for_no_checkpoint_takes_no_place(save, run, name):
    save(1)
    shutil.copytree(save(2), run / "checkpoints" / name)
    set_pointer(run, "latest", "epoch_0002")
    assert clean_leftovers(run) == []
    assert names(list_checkpoints(run)) == ["epoch_0001", "epoch_0002"]
    assert read_pointer(run, "latest").name == "epoch_0002"


def test_of_a_left_link_only_the_link_goes(save, run):
    path = save(1)
    (run / "checkpoints" / ".tmp-x").symlink_to(path)
    assert clean_leftovers(run) == [".tmp-x"]
    assert names(path.parent.iterdir()) == ["epoch_0001"]
    assert names(list_checkpoints(run)) == ["epoch_0001"]


def test_a_path_that_the_system_refuses_is_an_error():
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve("a" * 300)
