"""What a user can do wrong ends `camox/train.py` in one clear message and the exit code of the contract."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camox.errors import TrainingPaused
from camox.train import main
from camox.training.launching.launcher import exit_code
from tests.conftest import TINY_EXPERIMENT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten images of 40×48 with masks."""
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(10):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "images" / f"{number}.jpg")
        mask = np.zeros((40, 48), np.uint8)
        mask[10:30, 10:30] = 255
        Image.fromarray(mask).save(tmp_path / "photos" / "masks" / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def train(tmp_path, photos, capsys) -> Callable[..., tuple[int, str]]:
    """Runs the script's `main` on the photos; gives exit code and standard error."""
    file = tmp_path / "photos.toml"
    head, _, tail = TINY_EXPERIMENT.partition("train = [")
    source = f'train = [{{ layout = "folder", images = "{photos}/images", masks = "{photos}/masks" }}]'
    file.write_text(head + source + tail[tail.index("\n") :])

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(file), "--output", str(tmp_path / "runs"), *arguments])
        return code, capsys.readouterr().err

    return run


def is_one_message(error: str) -> bool:
    return error.count("error: ") == 1 and "Traceback" not in error


def test_photos_train(train, tmp_path):
    code, error = train()
    assert (code, error) == (0, "")
    assert json.loads((tmp_path / "runs" / "tiny" / "exit.json").read_text())["code"] == 0


def break_nothing(photos: Path) -> None: ...
def remove_folder(photos: Path) -> None: (photos / "masks").rename(photos / "elsewhere")  # fmt: skip


def remove_mask(photos: Path) -> None: (photos / "masks" / "4.png").unlink()  # fmt: skip


def shrink_mask(photos: Path) -> None: Image.new("L", (20, 20)).save(photos / "masks" / "4.png")  # fmt: skip


def truncate_images(photos: Path) -> None:
    for path in (photos / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "arguments", "named"),
    [
        (remove_folder, [], ["photos/masks"]),
        (remove_mask, [], ["4", "mask"]),
        (shrink_mask, [], ["4.jpg", "20", "48"]),
        (break_nothing, ["optimizer.learning_rate=1"], ['"learning_rate"', '"lr"']),
        (break_nothing, ["data.batch_size=many"], ["batch_size", "many"]),
        (break_nothing, ["model.backbone=resnet19"], ["resnet19", "resnet1"]),
        (break_nothing, ["model.backbone=vit_tiny_patch16_224"], ["stride"]),
        (break_nothing, ["model.pretrained=true"], ["model.weights"]),
        (break_nothing, ["data.batch_size=64"], ["64", "batch_size"]),
        (break_nothing, ['data.augment=[{name="HorizontalFlop"}]'], ["HorizontalFlop", "HorizontalFlip"]),
        (break_nothing, ['data.test=[{layout="cod10k",path="nowhere"}]'], ["nowhere"]),
        (break_nothing, ["--resume", "latest"], ["--resume latest"]),
        (break_nothing, ["--resume", "nowhere"], ["nowhere"]),
    ],
)
def test_mistakes_end_with_2_and_a_message_that_names_them(train, photos, damage, arguments, named):
    damage(photos)
    code, error = train(*arguments)
    assert code == 2
    assert is_one_message(error), error
    for word in named:
        assert word in error


def test_images_that_turn_out_to_be_damaged_stop_the_run_with_3(train, photos):
    """They are met in training: their headers are sound."""
    truncate_images(photos)
    code, error = train()
    assert code == 3
    assert is_one_message(error), error
    for word in (".jpg", "camox data check", "there is no checkpoint yet"):
        assert word in error


def test_a_missing_experiment_is_said(capsys):
    assert main(["nowhere.toml"]) == 2
    assert "nowhere.toml" in capsys.readouterr().err


def test_a_run_that_was_asked_to_stop_is_no_error(monkeypatch, capsys):
    def pause(options: object) -> None:
        raise TrainingPaused("stopped, go on with --resume auto")

    monkeypatch.setattr("camox.train._run", pause)
    assert main(["x.toml"]) == 4
    assert capsys.readouterr().err == "stopped, go on with --resume auto\n"


def test_debug_shows_the_traceback_and_keeps_the_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CAMOX_DEBUG", "1")
    monkeypatch.setenv("CAMOX_EXIT_CODE_FILE", str(tmp_path / "code"))
    assert main(["nowhere.toml"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert exit_code(tmp_path / "code", 1) == 2


def test_a_second_start_overwrites_nothing(train, tmp_path):
    train()
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    code, error = train()
    assert code == 2
    assert "--resume auto" in error
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


def test_a_corrupt_checkpoint_is_refused_and_the_intact_one_named(train, tmp_path):
    train()
    model = tmp_path / "runs" / "tiny" / "checkpoints" / "epoch_0002" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 0xFF
    model.write_bytes(content)
    code, error = train("--resume", "latest")
    assert code == 2
    assert is_one_message(error)
    assert "model.safetensors" in error
    assert "epoch_0001" in error


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pickle_as_backbone_weights_is_refused_and_not_run(train, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    code, error = train(f"model.weights={file}")
    assert code == 2
    assert is_one_message(error)
    assert not (tmp_path / "exploded").exists()


def test_check_builds_and_trains_nothing(train, tmp_path, capsys):
    assert train("--check")[0] == 0
    assert not (tmp_path / "runs").exists()


def test_the_main_recipe_builds_and_then_says_that_its_data_are_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(ROOT / "experiments" / "sparse_moe_416.toml"), "--check"]) == 2
    captured = capsys.readouterr()
    assert "the model builds: edgenext_base" in captured.out
    assert "no folder data/COD10K-v3" in captured.err


def test_as_a_script_it_finds_the_package_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "camox" / "train.py"), "nowhere.toml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert is_one_message(done.stderr)
    assert "nowhere.toml" in done.stderr
