import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from camox.checkpoints.inspection import main
from camox.checkpoints.store import write_checkpoint

SCRIPT = Path(__file__).parents[2] / "tools" / "inspect_checkpoint.py"


@pytest.fixture
def run(tmp_path):
    """A run of three checkpoints, of which the last holds NaN."""
    for epoch in (1, 2, 3):
        tensors = {"model": {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(3)}}
        path = write_checkpoint(
            tmp_path / "run", f"epoch_{epoch:04d}", tensors,
            state={}, config={}, measures={}, experiment_fingerprint="", step=epoch, epoch=epoch,
        )  # fmt: skip
    save_file({"head.weight": torch.tensor([1.0, float("nan"), float("inf")])}, path / "model.safetensors")
    return tmp_path / "run"


def test_finite_checkpoint_is_0(run, capsys):
    assert main([str(run / "checkpoints" / "epoch_0001")]) == 0
    assert "clean: every tensor is finite" in capsys.readouterr().out


def test_nan_is_1_and_the_tensor_is_named_with_its_counts(run, capsys):
    assert main([str(run)]) == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "head.weight" in line)
    assert row.split() == ["head.weight", "F32", "3", "3", "1", "1", "1"]
    assert "1 of 3 not clean: epoch_0003" in out


def test_all_lists_tensors_that_are_fine_too(run, capsys):
    main([str(run / "checkpoints" / "epoch_0001")])
    assert "head.bias" not in capsys.readouterr().out
    main([str(run / "checkpoints" / "epoch_0001"), "--all"])
    assert "head.bias" in capsys.readouterr().out


def test_json_is_one_object_with_every_count(run, capsys):
    assert main([str(run), "--json"]) == 1
    table = json.loads(capsys.readouterr().out)
    assert [checkpoint["finite"] for checkpoint in table["checkpoints"]] == [True, True, False]
    (file,) = table["checkpoints"][2]["files"]
    assert file["tensors"] == [{"name": "head.weight", "dtype": "F32", "shape": [3], "nan": 1, "inf": 1, "absmax": 1.0}]
    assert table["exit_code"] == 1


def test_last_clean_prints_only_the_path(run, capsys):
    assert main([str(run), "--last-clean"]) == 0
    assert capsys.readouterr().out == f"{run / 'checkpoints' / 'epoch_0002'}\n"


def test_last_clean_as_json(run, capsys):
    assert main([str(run), "--last-clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last_clean"] == str(run / "checkpoints" / "epoch_0002")


def test_last_clean_where_none_is(run, capsys):
    assert main([str(run / "checkpoints" / "epoch_0003"), "--last-clean"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "none of its checkpoints is undamaged and finite" in captured.err


def unreadable(folder: Path) -> dict[str, Path]:
    (folder / "empty").mkdir()
    (folder / "corrupt.safetensors").write_bytes(b"\xff" * 100)
    (folder / "zero.safetensors").touch()
    (folder / "evil.pth").write_bytes(pickle.dumps(os.getcwd, protocol=2))
    return {
        "empty folder": folder / "empty",
        "missing": folder / "missing",
        "corrupt file": folder / "corrupt.safetensors",
        "file without a byte": folder / "zero.safetensors",
        "pickle that runs code": folder / "evil.pth",
    }


@pytest.mark.parametrize("options", [[], ["--json"], ["--all"]])
@pytest.mark.parametrize(
    "kind", ["empty folder", "missing", "corrupt file", "file without a byte", "pickle that runs code"]
)
def test_what_cannot_be_read_is_2_with_one_message(tmp_path, capsys, kind, options):
    path = unreadable(tmp_path)[kind]
    assert main([str(path), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(str(path))
    assert captured.err.count("\n") == 1


def test_debug_variable_shows_the_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CAMOX_DEBUG", "1")
    assert main([str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_script_works_from_any_folder(run, tmp_path):
    finished = subprocess.run([sys.executable, SCRIPT, run], cwd=tmp_path, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (1, "")


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out


def test_names_cannot_write_to_the_terminal(tmp_path, capsys):
    torch.save({"\ud800\x1b[31m\n": torch.tensor(float("nan"))}, tmp_path / "a.pth")
    assert main([str(tmp_path / "a.pth"), "--all"]) == 1
    assert "\\ud800\\x1b[31m\\n" in capsys.readouterr().out


def test_a_file_name_that_is_not_utf8_is_shown_all_the_same(run, capsys):
    odd = run.rename(run.with_name("\udcff"))
    assert main([str(odd)]) == 1
    assert main([str(odd), "--last-clean"]) == 0
    assert capsys.readouterr().out.count("\\udcff/checkpoints/epoch_0002\n") == 1
