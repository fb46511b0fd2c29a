"""`camox evaluate` and `camox predict`: exit codes, and one clear message on stderr."""

import json
import os

import pytest

from camox.cli import main


@pytest.fixture
def camox(capfd):
    """Runs the command; gives exit code, standard output and standard error."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_predict_writes_masks(camox, run_folder, photographs, tmp_path):
    code, out, err = camox("predict", run_folder, photographs, "--out", tmp_path / "out", "--batch-size", 4)
    assert (code, err) == (0, "")
    assert len(os.listdir(tmp_path / "out")) == 8
    assert "EMA weights" in out


def test_predict_takes_the_options(camox, run_folder, photographs, tmp_path):
    arguments = ("predict", run_folder, photographs / "0.png", photographs / "1.png", "--out", tmp_path / "out")
    code, out, _ = camox(*arguments, "--overlay", "--weights", "raw", "--image-size", 96)
    assert code == 0
    assert "raw weights, as asked for; images at 96 px" in out
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "1.png", "overlays"]
    assert camox(*arguments)[0] == 2
    assert camox(*arguments, "--overwrite")[0] == 0


def test_predict_takes_patterns_ensembles_and_augmentations(camox, run_folder, photographs, tmp_path):
    other = run_folder / "checkpoints" / "epoch_0002"
    options = ("--with", other, "--tta", "hflip,scales", "--json", "--binary", "--bits", 16, "--threshold", 0.4)
    code, out, _ = camox("predict", run_folder, photographs / "[0-3].png", "--out", tmp_path / "out", *options)
    assert code == 0
    assert "8 forward passes for each image" in out
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "1.png", "2.png", "3.png", "binary", "objects.json"]
    objects = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert objects["threshold"]["value"] == 0.4
    assert objects["tta"] == ["hflip", "scales"]
    assert objects["ensemble"][0]["checkpoint"] == str(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tta", "rotate"), "no test-time augmentation rotate: there are hflip, vflip, scales"),
        (("--threshold", "1.5"), "neither auto nor a number"),
        (("--threshold", "half"), "neither auto nor a number"),
        (("--bits", "12"), "is not one of '8', '16'"),
        (("--with", "nowhere"), "nowhere"),
    ],
)
def test_predict_refuses_what_is_no_choice(camox, run_folder, photographs, tmp_path, options, message):
    code, _, err = camox("predict", run_folder, photographs, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_evaluate_tells_what_predicted_together(camox, run_folder, pairs, tmp_path):
    data = ("--data", f"X={pairs}", "--workers", 0)
    other = run_folder / "checkpoints" / "epoch_0002"
    assert camox("evaluate", run_folder, *data, "--out", tmp_path / "one", "--with", other, "--tta", "hflip")[0] == 0
    protocol = json.loads((tmp_path / "one" / "measures.json").read_text())["protocol"]
    assert (protocol["tta"], protocol["average"]) == (["hflip"], "logit")
    assert [one["checkpoint"] for one in protocol["ensemble"]] == [str(other)]
    code, _, err = camox("evaluate", run_folder, other, *data, "--out", tmp_path / "two", "--with", other)
    assert code == 2
    assert "joins one checkpoint" in err


def test_predict_ends_with_2_for_an_unreadable_image(camox, run_folder, photographs, tmp_path):
    (photographs / "3.png").write_bytes(b"no image")
    code, _, err = camox("predict", run_folder, photographs, "--out", tmp_path / "out")
    assert code == 2
    assert "3.png" in err
    assert len(os.listdir(tmp_path / "out")) == 7


def test_evaluate_writes_scores(camox, run_folder, pairs, tmp_path):
    out = tmp_path / "scores"
    code, printed, err = camox("evaluate", run_folder, "--data", f"X={pairs}", "--out", out, "--workers", 0)
    assert (code, err) == (0, "")
    assert json.loads((out / "measures.json").read_text())["datasets"]["X"]["count"] == 6
    assert "X" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "{run}/nowhere"), "no such folder"),
        (("evaluate", "{run}", "--data", "X={run}/nowhere"), "no folder"),
        (("evaluate", "{run}", "--data", "nonsense"), "NAME=PATH"),
        (("evaluate", "{run}", "--data", "X=a", "--data", "X=b"), "twice"),
        (("evaluate", "{run}", "--weights", "best"), "--weights"),
        (("evaluate", "{run}", "--protocol", "mine"), "--protocol"),
        (("evaluate", "{run}", "--batch-size", "0"), "--batch-size"),
        (("evaluate", "{run}", "--out", "{run}/experiment.toml"), "is a file"),
        (("predict", "{run}/experiment.toml", "{run}/experiment.toml", "--out", "{run}/out"), "no such folder"),
        (("predict", "{run}", "{run}/nowhere", "--out", "{run}/out"), "no such file"),
        (("predict", "{run}", "{run}", "--out", "{run}/out"), "no image files"),
        (("predict", "{run}", "{run}"), "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_are_one_message_and_exit_code_2(camox, run_folder, arguments, message):
    code, _, err = camox(*(argument.format(run=run_folder) for argument in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_damaged_checkpoint_is_a_message(camox, run_folder, photographs, tmp_path):
    file = run_folder / "checkpoints" / "epoch_0001" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    code, _, err = camox("predict", run_folder, photographs, "--out", tmp_path / "out")
    assert code == 2
    assert "ema.safetensors" in err
    assert "epoch_0002" in err, "the message names a checkpoint that is intact"
    assert not (tmp_path / "out").exists()
