import json

import pytest

from camox.checkpoints.manifest import MANIFEST, read_manifest, verify
from camox.errors import CheckpointError


def test_intact_checkpoint_passes(save):
    assert set(verify(save(1)).files) == {
        "model.safetensors",
        "rng_0.safetensors",
        "state.json",
        "config.json",
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "state.json is missing"),
        (lambda path: path.write_text(""), "state.json has 0 bytes instead of"),
        (
            lambda path: path.write_text(path.read_text().replace("1024", "2048")),
            "state.json has another sha256",
        ),
    ],
)
def test_damage_is_named(save, damage, message):
    path = save(1)
    damage(path / "state.json")
    with pytest.raises(CheckpointError, match=message):
        verify(path)


def test_remedy_is_the_newest_intact_checkpoint(save):
    intact, damaged, asked = save(1), save(2), save(3)
    (damaged / "state.json").unlink()
    (asked / "state.json").unlink()
    with pytest.raises(CheckpointError, match=f"newest intact checkpoint beside it is {intact}"):
        verify(asked)


def test_without_another_checkpoint_the_remedy_says_so(save):
    path = save(1)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no other intact checkpoint"):
        verify(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"format_version": "1"},
        {"step": None},
        {"finite": 1},
        {"experiment": 5},
        {"files": []},
        {"files": {"../escape": {"sha256": "0" * 64, "size": 1}}},
        {"files": {"model.safetensors": {"sha256": "0", "size": 1}}},
        {"measures": {"iou": "high"}},
    ],
)
def test_manifest_with_an_impossible_value_is_damaged(save, change):
    path = save(1)
    table = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(table | change))
    with pytest.raises(CheckpointError, match=r"manifest.json: damaged"):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"format_version": 1}', b"\xff", b"[" * 100_000])
def test_manifest_that_is_no_manifest_is_an_error(save, content):
    path = save(1)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.json"):
        read_manifest(path)


@pytest.mark.parametrize("score", ["1" + "0" * 400, "Infinity", "NaN", '"0.5"', "[]"])
def test_a_measure_that_is_no_score_is_damage(save, score):
    path = save(1)
    (path / MANIFEST).write_text((path / MANIFEST).read_text().replace('"mae": 0.1', f'"mae": {score}'))
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(path)
