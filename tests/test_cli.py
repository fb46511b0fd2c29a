import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import camox
from camox.cli import main
from camox.experiment import json_schema
from camox.train import main as script

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "experiments" / "quickstart.toml"
VERBS = [
    "train", "diagnose", "evaluate", "score", "predict", "report", "export", "inspect", "schema",
    "data check", "data preview",
]  # fmt: skip


def without_torch(*arguments):
    """The command in a process of its own that fails if torch was imported."""
    code = """if True:
        import sys
        from camox.cli import main
        code = main(sys.argv[1:])
        sys.exit(77 if "torch" in sys.modules else code)
    """
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def maps(tmp_path):
    """Two folders, predictions and ground truths, of three images."""
    rng = np.random.default_rng(0)
    for i in range(3):
        truth = np.zeros((20, 30), np.uint8)
        truth[5:15, 5 : 12 + i] = 255
        for folder, pixels in (("pred", rng.integers(0, 256, truth.shape, np.uint8)), ("gt", truth)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return tmp_path


def test_module_and_command_are_the_same():
    ran = subprocess.run([sys.executable, "-m", "camox", "--version"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert ran.stdout == f"camox {camox.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "missing argument 'EXPERIMENT.toml' (see camox train --help)"),
        (["trian"], "no such command 'trian'. Did you mean 'train'? (see camox --help)"),
        (["data"], "missing command (see camox data --help)"),
        (["report", "run", "--nope"], "no such option: --nope (see camox report --help)"),
        (["evaluate", "run", "--data", "here"], "NC4K=data/NC4K (see camox evaluate --help)"),
        (["predict", "run", "images", "--out", "masks", "--bits", "12"], "'--bits': '12' is not one of '8', '16'"),
        (["inspect"], "the following arguments are required: PATH (see camox inspect --help)"),
        (["inspect", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_a_mistake_in_a_command_line_is_one_line(arguments, message, capfd):
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err


def test_the_script_tells_a_mistake_as_the_command_does(capfd):
    with pytest.raises(SystemExit, match="2"):
        script([])
    expected = (
        "error: the following arguments are required: EXPERIMENT.toml (see accelerate launch camox/train.py --help)\n"
    )
    assert capfd.readouterr().err == expected


def test_the_command_alone_says_how_to_begin(capfd):
    assert main([]) == 0
    assert "Begin with camox train experiments/quickstart.toml" in capfd.readouterr().out


@pytest.mark.parametrize("verb", [[], *(verb.split() for verb in VERBS)], ids=str)
def test_help_shows_no_value_for_an_option_that_takes_none(verb, capfd):
    assert main([*verb, "--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert not [line for line in lines if "<bool>" in line and "--help" not in line]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capfd):
    assert main([*verb.split(), "--help"]) == 0
    printed = capfd.readouterr().out
    assert f"camox {verb}" in printed
    assert "xample" in printed


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["schema"], ["train", "nowhere.toml"]], ids=str)
def test_starts_without_torch(arguments):
    assert without_torch(*arguments).returncode == (2 if "nowhere.toml" in arguments else 0)


def test_inspects_without_torch(tmp_path):
    assert without_torch("inspect", str(tmp_path / "nowhere")).returncode == 2


def test_checks_data_without_torch(maps):
    (maps / "pred").rename(maps / "images")
    ran = without_torch("data", "check", str(maps), "--out", str(maps / "audit"))
    assert ran.returncode == 0, ran.stderr


def test_inspect_passes_its_options_on(tmp_path, capfd):
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": np.array([1, np.nan], np.float32)}, path)
    assert main(["inspect", str(path), "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["exit_code"] == 1


def test_schema_is_that_of_the_experiment(capfd):
    assert main(["schema"]) == 0
    assert json.loads(capfd.readouterr().out) == json_schema()


# ------------------------------------------------------------------------------------------ score


def test_score_writes_scores(maps, capfd):
    code = main(["score", "--pred", str(maps / "pred"), "--gt", str(maps / "gt"), "--out", str(maps / "scores")])
    assert code == 0
    document = json.loads((maps / "scores" / "measures.json").read_text())
    assert document["datasets"]["pred"]["count"] == 3
    assert document["protocol"]["name"] == "camox"
    assert "pred" in capfd.readouterr().out


def test_score_takes_the_protocol(maps):
    folders = ["--pred", str(maps / "pred"), "--gt", str(maps / "gt"), "--out", str(maps / "scores")]
    assert main(["score", *folders, "--protocol", "pysod"]) == 0
    assert json.loads((maps / "scores" / "measures.json").read_text())["protocol"]["name"] == "pysod"


def test_score_without_out_only_prints(maps, capfd):
    before = sorted(maps.rglob("*"))
    assert main(["score", "--pred", str(maps / "pred"), "--gt", str(maps / "gt")]) == 0
    assert sorted(maps.rglob("*")) == before
    assert "pred" in capfd.readouterr().out


def test_score_says_what_is_missing(maps, capfd):
    (maps / "pred" / "1.png").unlink()
    assert main(["score", "--pred", str(maps / "pred"), "--gt", str(maps / "gt")]) == 2
    assert "1 of 3 ground truths have no prediction" in capfd.readouterr().err


def test_score_refuses_a_place_that_cannot_be_written(maps, capfd):
    (maps / "file").write_text("")
    code = main(["score", "--pred", str(maps / "pred"), "--gt", str(maps / "gt"), "--out", str(maps / "file")])
    assert code == 2
    assert "cannot be written" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------ train


@pytest.fixture
def started(monkeypatch):
    """What `camox train` would have started, in place of starting it."""
    calls = []

    def launch(arguments, launcher_options):
        calls.append((list(arguments), list(launcher_options)))
        return 4

    monkeypatch.setattr("camox.training.launching.launcher.launch", launch)
    return calls


def test_train_passes_everything_on(started, tmp_path):
    options = ["--resume", "auto", "--output", str(tmp_path)]
    given = ["train", str(QUICKSTART), "optimizer.lr=1e-3", *options, "experiment.name=x"]
    assert main([*given, "--", "--num_processes", "2", "--cpu"]) == 4
    arguments, launcher_options = started[0]
    assert arguments[:3] == [str(QUICKSTART), "optimizer.lr=1e-3", "experiment.name=x"]
    assert arguments[3:] == options
    assert launcher_options == ["--num_processes", "2", "--cpu"]


def test_train_reports_all_mistakes_and_starts_nothing(started, capfd):
    assert main(["train", str(QUICKSTART), "optimizer.lrr=1", "data.batch_size='x'"]) == 2
    err = capfd.readouterr().err
    assert "lrr" in err
    assert "batch_size" in err
    assert "Traceback" not in err
    assert not started


def test_check_trains_nothing(started, tmp_path):
    assert main(["train", str(QUICKSTART), "--check", "--output", str(tmp_path / "runs")]) == 0
    assert not started
    assert not (tmp_path / "runs").exists()


def test_a_profile_is_taken_by_the_processes_that_would_train(started, tmp_path):
    assert main(["train", str(QUICKSTART), "--profile", "--output", str(tmp_path), "--", "--num_processes", "2"]) == 4
    assert started == [([str(QUICKSTART), "--output", str(tmp_path), "--profile"], ["--num_processes", "2"])]


@pytest.mark.parametrize("other", [["--check"], ["--resume", "auto"]])
def test_a_profile_with_a_check_or_a_resume_is_refused_before_anything_starts(started, capfd, other):
    assert main(["train", str(QUICKSTART), "--profile", *other]) == 2
    assert f"leave out {other[0]}" in capfd.readouterr().err
    assert not started


@pytest.mark.parametrize(
    ("override", "problem", "remedy"),
    [
        ("model.moe.top_k=7", "top_k = 7 exceeds the number of experts, 6", "lower top_k or add experts"),
        ('model.moe.experts=["edge", "contrasts"]', 'experts[1] has no choice "contrasts"', 'did you mean "contrast"?'),
        ('model.moe.experts=["edge", "smell"]', 'experts[1] must be one of "texture", "edge"', '"semantic"'),
        ("model.width=20", "width must be a multiple of 8, not 20", "take 24"),
        ("model.backbone=vit_tiny_patch16_224", "features at strides [16, 16, 16]", "choose a pyramid such as"),
        ("model.backbone=resnet19", 'model.backbone = "resnet19" is not known', "did you mean one of resnet1"),
        (
            "model.weights=nowhere.safetensors",
            "model.weights = nowhere.safetensors: there is no such file",
            "give the path of a .safetensors file",
        ),
    ],
)
def test_check_refuses_a_network_that_cannot_be_with_one_message(
    tiny_experiment, tmp_path, capfd, override, problem, remedy
):
    tiny_experiment()
    assert main(["train", str(tmp_path / "tiny.toml"), override, "--check"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert problem in err
    assert remedy in err


def test_check_says_where_pretrained_weights_come_from_and_what_to_do_without_a_network(
    tiny_experiment, tmp_path, monkeypatch, capfd
):
    tiny_experiment()
    given = ["train", str(tmp_path / "tiny.toml"), "model.pretrained=true", "--check"]
    assert main(given) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "without a network, download model.safetensors of https://huggingface.co/timm/resnet10t.c3_in1k on" in said
    assert "give the file's path as model.weights" in said
    monkeypatch.setattr("camox.models.backbone.try_to_load_from_cache", lambda repository, file: "/cache")
    assert main(given) == 0
    assert "the pretrained weights of resnet10t are on this machine" in capfd.readouterr().out


def test_debug_shows_the_traceback(monkeypatch, capfd):
    monkeypatch.setenv("CAMOX_DEBUG", "1")
    assert main(["train", "nowhere.toml"]) == 2
    assert "Traceback" in capfd.readouterr().err
