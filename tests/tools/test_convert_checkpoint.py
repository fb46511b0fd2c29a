"""The converted checkpoint is one that every command opens, and that no training goes on from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from camox import cli
from camox.checkpoints.scan import scan
from camox.checkpoints.store import list_checkpoints, read_checkpoint, set_pointer, write_checkpoint
from camox.errors import CheckpointError
from camox.inference.loading.loaded_model import load_model
from camox.models.camoxpert import CamoXpert
from camox.training.trainer import Trainer
from convert_checkpoint import main

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "run"
    networks = {stem: CamoXpert("resnet10t", width=8) for stem in ("model", "ema")}
    tensors = {stem: network.state_dict() for stem, network in networks.items()}
    for epoch in (1, 2):
        path = write_checkpoint(
            folder, f"epoch_{epoch}", tensors | {"optimizer": {"head/step": torch.ones(1)}},
            state={"image_size": 96}, config=networks["model"].config, measures={"val/iou": 0.5},
            experiment_fingerprint="f" * 64, step=10 * epoch, epoch=epoch,
        )  # fmt: skip
    set_pointer(folder, "best", path.name)
    return folder


@pytest.fixture
def run(template, tmp_path):
    """A run of two checkpoints, the second the best."""
    return shutil.copytree(template, tmp_path / "run")


@pytest.fixture
def convert(tmp_path):
    """Converts into `out`, which it gives, and expects that to work."""

    def convert(source, *options):
        out = tmp_path / "out"
        assert main([str(source), *options, "--out", str(out)]) == 0
        return out

    return convert


def test_it_holds_raw_and_averaged_weights_and_what_is_known_of_them(run, convert):
    out = convert(run, "--mode", "dense")
    files = {path.name for path in out.iterdir()}
    assert files == {"model.safetensors", "ema.safetensors", "config.json", "state.json", "manifest.json"}
    source, checkpoint = run / "checkpoints" / "epoch_2", read_checkpoint(out)
    assert (checkpoint.manifest.step, checkpoint.manifest.epoch) == (20, 2)
    assert checkpoint.manifest.measures == {}
    assert checkpoint.state["converted_from"] == str(source)
    assert checkpoint.config["mode"] == "dense"
    for stem in ("model", "ema"):
        before, after = load_file(source / f"{stem}.safetensors"), checkpoint.tensors(stem)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_checkpoint_without_average_is_converted_too(run, convert):
    checkpoint = run / "checkpoints" / "epoch_1"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"]["ema.safetensors"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "ema.safetensors").unlink()
    assert read_checkpoint(convert(checkpoint, "--top-k", "3")).stems == ("model",)


def test_the_twin_is_the_one_asked_for(run, convert):
    loaded = load_model(convert(run, "--mode", "static", "--experts", "semantic", "edge"), "ema")
    assert loaded.model.expert_names == ("semantic", "edge")
    assert loaded.model.mode == "static"
    assert loaded.image_size == 96


def test_it_says_what_it_wrote(run, convert, capfd):
    out = convert(run, "--mode", "dense", "--experts", "edge", "texture")
    printed = " ".join(capfd.readouterr().out.split())
    assert "weights alone, not scored yet; no training goes on from them" in printed
    assert "sparse → dense" in printed
    assert "edge, texture" in printed
    assert out.name in printed


def test_every_command_opens_it_and_training_does_not(tiny_experiment, tmp_path, convert, capfd):
    experiment = tiny_experiment("model.width=16")
    Trainer(experiment, None, Accelerator(cpu=True)).run()
    run = experiment.run_folder
    out = convert(run, "--mode", "dense")
    assert scan(out).exit_code == 0
    for index in range(2):
        for folder, pixels in (("Imgs", torch.rand(40, 30, 3)), ("GT", (torch.rand(40, 30) > 0.5).float())):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * 255).byte().numpy())
            image.save(tmp_path / "pairs" / folder / f"{index}.png")
    data = ["--data", f"pairs={tmp_path / 'pairs'}", "--out", str(tmp_path / "scores"), "--workers", "0"]
    assert cli.main(["inspect", str(out)]) == 0
    assert cli.main(["evaluate", str(out), *data]) == 0
    assert cli.main(["predict", str(out), str(tmp_path / "pairs" / "Imgs"), "--out", str(tmp_path / "masks")]) == 0
    capfd.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = tiny_experiment("model.width=16", "model.moe.mode=dense", output=tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"weights alone.*no state of a training to go on from: resume the run"):
        Trainer(again, str(out), Accelerator(cpu=True)).run()
    assert not list_checkpoints(again.run_folder)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        (["--mode", "dense"], "run", "exists already and is not overwritten: give another --out"),
        (["--mode", "dense"], "run/experiment.toml", "exists already"),
        (["--mode", "dense"], "run/checkpoints/epoch_3", "a run would take it for a checkpoint of its own"),
        ([], "out", "is like that already: give another --mode, --experts or --top-k"),
        (["--mode", "sparse", "--top-k", "2"], "out", "is like that already"),
        (["--experts", "edge", "hybrid"], "out", "epoch_2: the network holds no expert hybrid, only texture"),
        (["--experts", "edge"], "out", "epoch_2: top_k = 2 of 1 experts: keep more experts"),
        (["--experts", "edge", "edge"], "out", "name one twice"),
        (["--top-k", "1"], "out", "epoch_2: with top_k = 1 the one expert of an image has weight 1"),
        (["--mode", "dense", "--top-k", "2"], "out", 'epoch_2: top_k = 2 has no effect in mode "dense"'),
        (["--mode", "dense"], "run/experiment.toml/out", "could not be saved"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_leaves_nothing(run, tmp_path, capsys, options, out, message):
    (run / "experiment.toml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main([str(run), *options, "--out", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_weights_are_not_converted(run, tmp_path, capsys):
    file = run / "checkpoints" / "epoch_2" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main([str(run), "--mode", "dense", "--out", str(tmp_path / "out")]) == 2
    assert "model.safetensors has another sha256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_script_works_from_any_folder(run, tmp_path):
    command = [sys.executable, str(SCRIPT), "run", "--mode", "random", "--out", "out"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert CamoXpert.from_pretrained(tmp_path / "out").mode == "random"


# ---- other programs' files


def of_another_program(path, wrapper="module.", **extra):
    """What a training script saves of a network that DataParallel wraps, beside its optimizer and its books."""
    torch.manual_seed(4)
    weights = timm.create_model("resnet10t", num_classes=3).state_dict()
    named = {f"{wrapper}{name}": tensor for name, tensor in weights.items()}
    torch.save({"epoch": 7, "best": 0.5, "state_dict": named, "optimizer": {"lr": torch.ones(1)}} | extra, path)
    return weights


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_another_programs_weights_become_a_file_that_a_backbone_takes(tmp_path, wrapper, capsys):
    weights = of_another_program(tmp_path / "old.pth", wrapper)
    out = tmp_path / "new.safetensors"
    assert main([str(tmp_path / "old.pth"), "--out", str(out)]) == 0
    assert "tensors" in capsys.readouterr().out
    found = load_file(out)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())

    network = CamoXpert("resnet10t", weights=str(out), width=8)
    ours = network.state_dict()["backbone.network.layer1.0.conv1.weight"]
    assert torch.equal(ours, weights["layer1.0.conv1.weight"])


def test_a_table_can_be_named(tmp_path):
    of_another_program(tmp_path / "old.pth", ema={"scale": torch.ones(2)})
    out = tmp_path / "new.safetensors"
    assert main([str(tmp_path / "old.pth"), "--table", "ema", "--out", str(out)]) == 0
    assert load_file(out).keys() == {"scale"}


@pytest.mark.parametrize(("change", "arguments", "message"), [
    ({}, ["--table", "none"], "holds no table none: give one of optimizer, state_dict"),
    ({"state_dict": {"a": torch.tensor([1.0, float("nan")])}}, [], "NaN or Inf in 1 of 1 tensors, such as a"),
    ({}, ["--out", "folder"], "ends in .safetensors"),
])  # fmt: skip
def test_what_cannot_be_converted_is_one_message_and_nothing_is_written(tmp_path, capsys, change, arguments, message):
    of_another_program(tmp_path / "old.pth", **change)
    out = ["--out", str(tmp_path / "new.safetensors")]
    assert main([str(tmp_path / "old.pth"), *out, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["old.pth"]


def test_a_pickle_that_would_run_code_is_not_converted(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    torch.save({"state_dict": Bomb()}, tmp_path / "old.pth")
    assert main([str(tmp_path / "old.pth"), "--out", str(tmp_path / "new.safetensors")]) == 2
    captured = capsys.readouterr()
    assert "boom" not in captured.out
    assert "refused" in captured.err


def test_options_of_checkpoints_and_of_files_do_not_mix(tmp_path, template, capsys):
    of_another_program(tmp_path / "old.pth")
    for source, extra in ((tmp_path / "old.pth", ["--mode", "dense"]), (template, ["--table", "x"])):
        with pytest.raises(SystemExit) as stopped:
            main([str(source), "--out", str(tmp_path / "new"), *extra])
        assert stopped.value.code == 2
    assert "another program's file" in capsys.readouterr().err
