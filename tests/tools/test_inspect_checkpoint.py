import io
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from camox.checkpoints.inspection import main
from camox.checkpoints.progress import ProgressBar
from camox.checkpoints.store import set_pointer, write_checkpoint

SCRIPT = Path(__file__).parents[2] / "tools" / "inspect_checkpoint.py"


@pytest.fixture
def run(tmp_path):
    """A run of three checkpoints, of which the last holds NaN."""
    for epoch in (1, 2, 3):
        tensors = {"model": {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(3)}}
        path = write_checkpoint(
            tmp_path / "run", f"epoch_{epoch:04d}", tensors,
            state={}, config={}, measures={"val/iou": epoch / 10, "s_measure": 0.1 + epoch / 100},
            experiment_fingerprint="", step=epoch * 90, epoch=epoch,
        )  # fmt: skip
    set_pointer(tmp_path / "run", "best", "epoch_0002")
    set_pointer(tmp_path / "run", "latest", "epoch_0003")
    save_file({"head.weight": torch.tensor([1.0, float("nan"), float("inf")])}, path / "model.safetensors")
    return tmp_path / "run"


def test_finite_checkpoint_is_0(run, capsys):
    assert main([str(run / "checkpoints" / "epoch_0001")]) == 0
    assert "clean: every tensor is finite" in capsys.readouterr().out


def test_nan_is_1_and_the_tensor_is_named_with_its_counts(run, capsys):
    assert main([str(run)]) == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "head.weight" in line)
    assert row.split() == ["1", "1", "0%", "1", "F32", "3", "head.weight"]
    assert "1 of 3 not clean: epoch_0003" in out


def test_overview_has_a_line_for_each_checkpoint(run, capsys):
    main([str(run)])
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert table[0].split() == ["checkpoint", "epoch", "step", "s_measure", "size", "tensors", "verdict"]
    assert [line.split() for line in table[1:]] == [
        ["epoch_0001", "1", "90", "0.1100", "0.2", "kB", "2", "finite"],
        ["epoch_0002", "2", "180", "0.1200", "0.2", "kB", "2", "finite", "best"],
        ["epoch_0003", "3", "270", "0.1300", "0.1", "kB", "1", "1", "NaN,", "1", "Inf", "latest"],
    ]


def test_overview_gives_details_only_of_what_is_not_clean(run, capsys):
    main([str(run)])
    details = capsys.readouterr().out.split("\n\n", 1)[1]
    assert "epoch_0001" not in details
    assert "damaged: model.safetensors has 92 bytes" in details
    main([str(run), "--all"])
    assert "epoch_0001" in capsys.readouterr().out.split("\n\n", 1)[1]


@pytest.mark.parametrize(("columns", "left_out"), [(70, {"tensors", "epoch"}), (80, {"tensors"}), (200, set())])
def test_overview_fits_the_terminal_without_cutting_names(run, capsys, monkeypatch, columns, left_out):
    monkeypatch.setenv("COLUMNS", str(columns))
    first = run / "checkpoints" / "epoch_0001"
    first.rename(first.with_name("epoch_0001_step_0001234"))
    main([str(run)])
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert table[1].startswith("epoch_0001_step_0001234 ")
    assert max(map(len, table)) <= max(columns, 77)  # no narrower: what is left is what one came for
    assert {"epoch", "step", "s_measure", "size", "tensors", "verdict"} - set(table[0].split()) == left_out


def test_where_all_of_a_network_is_nan_the_first_tensors_are_listed(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save_file({f"layer_{number:02}": torch.tensor([float("nan")]) for number in range(25)}, path)
    main([str(path)])
    out = capsys.readouterr().out
    assert sum("layer_" in line for line in out.splitlines()) == 20
    assert "… 5 more: see them with --all" in out
    main([str(path), "--all"])
    assert sum("layer_" in line for line in capsys.readouterr().out.splitlines()) == 25


@pytest.mark.parametrize(
    ("zeros", "shown"), [(0, "0%"), (1, "0.1%"), (5000, "50.0%"), (9999, "99.9%"), (10000, "100%")]
)
def test_zeros_are_shown_as_a_share_that_never_hides_some(tmp_path, capsys, zeros, shown):
    tensor = torch.ones(10_000)
    tensor[:zeros] = 0
    save_file({"weight": tensor}, tmp_path / "a.safetensors")
    main([str(tmp_path / "a.safetensors"), "--all"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.endswith("weight"))
    assert row.split()[2] == shown


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
    assert file["tensors"] == [
        {
            "name": "head.weight", "dtype": "F32", "shape": [3],
            "nan": 1, "inf": 1, "zeros": 0, "zero_share": 0.0, "absmax": 1.0,
        }
    ]  # fmt: skip
    assert [checkpoint["pointers"] for checkpoint in table["checkpoints"]] == [[], ["best"], ["latest"]]
    assert [checkpoint["measures"] for checkpoint in table["checkpoints"]][:1] == [{"val/iou": 0.1, "s_measure": 0.11}]
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
    assert captured.err.startswith(f"error: {path}")
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


# ---- --compare


@pytest.fixture
def pair(tmp_path):
    """Two files with a tensor each of: equal, changed, of another shape, in one alone."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(
        {"same": torch.ones(2), "weight": torch.tensor([3.0, 4.0]), "form": torch.ones(2), "a": torch.ones(1)}, first
    )
    save_file(
        {"same": torch.ones(2), "weight": torch.tensor([3.0, 5.0]), "form": torch.ones(3), "b": torch.ones(1)}, second
    )
    return str(first), str(second)


def test_difference_is_printed_and_no_failure(pair, capsys):
    assert main([pair[0], "--compare", pair[1]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A  {pair[0]}",
        f"B  {pair[1]}",
        "",
        "only in A: 1 tensor",
        "  a",
        "",
        "only in B: 1 tensor",
        "  b",
        "",
        "other dtype or shape: 1 tensor",
        "  F32 2 → F32 3  form",
        "",
        "relative  max abs  changed  dtype  shape  tensor",
        "     0.2        1    50.0%  F32    2      weight",
        "",
        "1 of 2 tensors in common changed; relative difference: 0.192",
    ]


def test_difference_as_json(pair, capsys):
    assert main([pair[0], "--compare", pair[1], "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table == {
        "a": pair[0],
        "b": pair[1],
        "exit_code": 0,
        "identical": False,
        "relative": {"": pytest.approx(1 / 27**0.5)},
        "only_in_a": ["a"],
        "only_in_b": ["b"],
        "other_dtype_or_shape": [{"name": "form", "a": "F32 2", "b": "F32 3"}],
        "changed": [
            {
                "name": "weight", "dtype": "F32", "shape": [2],
                "relative": 0.2, "max_abs": 1.0, "changed": 1, "changed_share": 0.5,
            }
        ],
        "equal_count": 1,
        "not_finite": [],
    }  # fmt: skip


def test_identical_is_one_line(pair, capsys):
    assert main([pair[0], "--compare", pair[0]]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "",
        "identical: 4 tensors of the same names, dtypes, shapes and numbers",
    ]


def test_difference_where_one_holds_nan_is_1(run, capsys):
    epoch_1, epoch_3 = (str(run / "checkpoints" / f"epoch_000{number}") for number in (1, 3))
    assert main([epoch_1, "--compare", epoch_3]) == 1
    assert "B holds 1 NaN, 1 Inf in 1 tensor, such as head.weight" in capsys.readouterr().out


def test_difference_from_what_is_not_there_is_2(run, capsys):
    assert main([str(run), "--compare", str(run / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_compare_and_last_clean_exclude_each_other(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--compare", str(run), "--last-clean"])
    assert "exclude each other" in capsys.readouterr().err


# ---- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("arguments", [[], ["--last-clean"], ["--json"], ["--compare", "."]])
def test_bar_is_drawn_on_a_terminal_once_reading_takes_long(run, monkeypatch, arguments):
    monkeypatch.chdir(run)
    monkeypatch.setattr(ProgressBar, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    main([str(run), *arguments])
    assert "reading" in sys.stderr.getvalue()


@pytest.mark.parametrize(("stream", "patience"), [(io.StringIO, 0.0), (Terminal, 3600.0)])
def test_no_bar_without_a_terminal_or_before_its_time(run, monkeypatch, stream, patience):
    monkeypatch.setattr(ProgressBar, "PATIENCE", patience)
    monkeypatch.setattr(sys, "stderr", stream())
    main([str(run)])
    assert sys.stderr.getvalue() == ""


def test_a_log_is_told_how_far_a_long_look_is(run, monkeypatch):
    monkeypatch.setattr(ProgressBar, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    main([str(run)])
    lines = sys.stderr.getvalue().splitlines()
    assert 1 <= len(lines) <= 10
    assert all(re.fullmatch(r"reading: [0-9.]+/[0-9.]+ GB  ETA \d+:\d\d", line) for line in lines)


@pytest.mark.parametrize("variable", ["TERM=dumb", "CI=true"])
def test_no_bar_on_a_terminal_that_nobody_sees_move(run, monkeypatch, variable):
    monkeypatch.setenv(*variable.split("="))
    monkeypatch.setattr(ProgressBar, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    main([str(run)])
    assert sys.stderr.getvalue() == ""


def test_what_is_found_can_be_told_in_ascii(run, monkeypatch):
    """A log's encoding may have no "→"."""
    names = [f"layer{number}.weight" for number in range(9)]
    broken = run / "broken.safetensors"
    save_file({name: torch.full((2, 2), float("nan")) for name in names}, broken)
    command = [sys.executable, str(SCRIPT), str(broken)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
