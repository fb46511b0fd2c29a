"""The form of the hub: a folder for `from_pretrained`, a card filled from the run, pushing and fetching."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import camox.models.pretrained as pretrained
from camox.cli import main
from camox.errors import CheckpointError
from camox.inference.loading.loaded_model import load_model
from camox.models.camoxpert import CamoXpert

FILES = {"README.md", "camox.json", "config.json", "experiment.toml", "model.safetensors"}


def export(run, out, *options):
    return main(["export", str(run), "--format", "hub", "--out", str(out), *map(str, options)])


@pytest.fixture(scope="session")
def template_hub(template_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "tiny"
    assert export(template_run, out) == 0
    return out


@pytest.fixture
def folder(template_hub, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(template_hub, tmp_path / "hub")


@pytest.fixture
def pushed(monkeypatch):
    """What a hub of our own, a list, was given."""
    calls = []

    class Hub:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append(("create", repo_id, private, exist_ok, self.token))

        def repo_info(self, repo_id):
            return SimpleNamespace(private=repo_id != "me/public")

        def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns):
            held = {name for name in os.listdir(folder_path) if name in allow_patterns}
            calls.append(("upload", repo_id, held, CamoXpert.from_pretrained(folder_path).config))
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(pretrained, "HfApi", Hub)
    return calls


def test_it_holds_the_chosen_weights_and_nothing_else(run_folder, folder):
    assert set(os.listdir(folder)) == FILES
    ema = load_file(run_folder / "checkpoints" / "epoch_0001" / "ema.safetensors")  # auto takes EMA there
    state = CamoXpert.from_pretrained(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ema.items())


def test_it_predicts_as_the_run_does(run_folder, folder, photographs, tmp_path):
    for model, out in ((run_folder, "a"), (folder, "b")):
        assert main(["predict", str(model), str(photographs), "--out", str(tmp_path / out)]) == 0
    for path in (tmp_path / "a").iterdir():
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(tmp_path / "b" / path.name)))


def test_what_the_run_knew_is_loaded_with_it(run_folder, folder):
    run, loaded = load_model(run_folder), load_model(folder)
    for name in ("image_size", "weights", "threshold", "step", "epoch", "monitor"):
        assert getattr(loaded, name) == getattr(run, name), name


def test_it_can_be_scored(folder, pairs, tmp_path, read_scores):
    out = tmp_path / "scores"
    assert main(["evaluate", str(folder), "--data", f"X={pairs}", "--out", str(out), "--workers", "0"]) == 0
    assert read_scores(out)["datasets"]["X"]["count"] == 6


def test_weights_that_are_not_in_it_are_an_error(folder):
    with pytest.raises(CheckpointError, match="--weights raw"):
        load_model(folder, "raw")


def test_the_card_is_one_that_the_hub_reads(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "unknown"
    assert card.data.library_name == "camox"
    assert card.data.pipeline_tag == "image-segmentation"
    (result,) = [one for one in card.data.eval_results if one.metric_type == "s_measure"]
    assert result.metric_value == 0.6  # EMA's, in the validation
    assert result.dataset_split == "validation"
    assert result.metric_args["protocol"] == "camox"
    assert "synthetic habitats: 20 images" in card.text
    assert "on the images that the checkpoint was selected on" in card.text


def test_a_test_evaluation_of_the_same_weights_is_what_the_card_tells(run_folder, tmp_path):
    checkpoint = run_folder / "checkpoints" / "epoch_0001"
    step = load_model(run_folder).step
    protocol = {
        "name": "camox", "checkpoint": str(checkpoint), "step": step, "epoch": 1, "weights": "ema", "image_size": 64,
        "resize": "bilinear", "tta": [], "ensemble": [], "precision": "fp32",
        "data": {"A": {"used_for": "test"}, "B": {"used_for": "training"}},
    }  # fmt: skip
    document = {"protocol": protocol, "datasets": {"A": {"count": 3, "iou": 0.25}, "B": {"count": 3, "iou": 0.75}}}
    file = run_folder / "evaluation" / "measures.json"
    file.parent.mkdir()
    file.write_text(json.dumps(document))
    export(run_folder, tmp_path / "ema")
    results = ModelCard.load(tmp_path / "ema" / "README.md").data.eval_results
    assert [(one.dataset_name, one.dataset_split, one.metric_value) for one in results] == [("A", "test", 0.25)]
    export(run_folder, tmp_path / "raw", "--weights", "raw")
    results = ModelCard.load(tmp_path / "raw" / "README.md").data.eval_results
    assert {one.dataset_split for one in results} == {"validation"}
    for number, other in enumerate(({"tta": ["hflip"]}, {"ensemble": [{"checkpoint": "b"}]}, {"image_size": 96})):
        file.write_text(json.dumps(document | {"protocol": protocol | other}))
        export(run_folder, tmp_path / str(number))
        results = ModelCard.load(tmp_path / str(number) / "README.md").data.eval_results
        assert {one.dataset_split for one in results} == {"validation"}, other


def test_a_licence_is_told(run_folder, tmp_path):
    assert export(run_folder, tmp_path / "hub", "--license", "mit") == 0
    assert ModelCard.load(tmp_path / "hub" / "README.md").data.license == "mit"


def test_nothing_of_the_machine_is_published(run_folder, override, tmp_path):
    override(
        f"experiment.output={tmp_path}/secret",
        "experiment.notes=for my eyes",
        "tracking.entity=someone",
        f'data.test=[{{ layout = "folder", images = "{tmp_path}/photos", masks = "../private/masks" }}]',
    )
    export(run_folder, tmp_path / "hub")
    text = "".join((tmp_path / "hub" / name).read_text() for name in FILES - {"model.safetensors"})
    for private in (str(tmp_path), "secret", "for my eyes", "someone", "private"):
        assert private not in text
    assert 'masks = "masks"' in text


@pytest.mark.parametrize("extra", ["modeling.py", "auto_map"])
def test_no_code_is_run(folder, extra):
    if extra == "modeling.py":
        (folder / extra).write_text("raise SystemExit('was run')")
        CamoXpert.from_pretrained(folder)
        return
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Evil"}}))
    with pytest.raises(CheckpointError, match="auto_map"):
        CamoXpert.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("camox.json", "{", "camox.json"),
        ("camox.json", '{"image_size": 64}', "camox.json"),
        ("config.json", "[]", "config.json"),
        ("model.safetensors", "", "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_a_message(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 1),
        ("image_size", 10**9),
        ("image_size", "64"),
        ("threshold", 2.0),
        ("threshold", float("nan")),
        ("step", None),
        ("epoch", -1),
        ("weights", "foo"),
        ("threshold_reason", "\x1b[2J"),
    ],
)
def test_facts_that_cannot_be_are_refused(folder, key, value):
    table = json.loads((folder / "camox.json").read_text())
    (folder / "camox.json").write_text(json.dumps(table | {key: value}))
    with pytest.raises(CheckpointError, match=rf"camox\.json: {key} = .*export the model again"):
        load_model(folder)


def test_a_folder_of_weights_alone_has_no_average_of_them(folder):
    (folder / "camox.json").unlink()
    assert load_model(folder, "raw", image_size=64).weights == "raw"
    with pytest.raises(CheckpointError, match="holds raw weights alone"):
        load_model(folder, "ema", image_size=64)


def test_nan_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["laterals.0.weight"][:] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        load_model(folder)


def test_what_is_there_is_not_replaced_unasked(run_folder, folder, capfd):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert export(run_folder, folder) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert export(run_folder, folder, "--overwrite", "--weights", "raw") == 0
    assert load_model(folder).weights == "raw"
    (folder / "thesis.tex").write_text("years of work")
    assert export(run_folder, folder, "--overwrite") == 2
    assert (folder / "thesis.tex").is_file()


def test_an_export_that_differs_is_not_left(run_folder, tmp_path, monkeypatch, capfd):
    import camox.inference.exporting.hub as hub

    def write_others(folder, config, state):
        pretrained.write_pretrained(folder, config, {name: tensor * 2 for name, tensor in state.items()})

    monkeypatch.setattr(hub, "write_pretrained", write_others)
    assert export(run_folder, tmp_path / "out" / "hub") == 2
    assert "largest difference" in capfd.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_pushing_uploads_what_was_written(run_folder, tmp_path, pushed):
    assert export(run_folder, tmp_path / "hub", "--push", "me/finder", "--private") == 0
    (created, uploaded) = pushed
    assert created == ("create", "me/finder", True, True, None)
    assert uploaded[:3] == ("upload", "me/finder", FILES)
    assert 'from_pretrained("me/finder")' in (tmp_path / "hub" / "README.md").read_text()


def test_what_is_to_be_private_is_not_pushed_to_a_public_repository(run_folder, tmp_path, pushed, capfd):
    assert export(run_folder, tmp_path / "a", "--push", "me/public", "--private") == 2
    assert "me/public: is a public repository already" in capfd.readouterr().err
    assert [call[0] for call in pushed] == ["create"]
    assert export(run_folder, tmp_path / "b", "--push", "me/finder", "--private") == 0
    assert [call[0] for call in pushed] == ["create", "create", "upload"]


def test_a_model_pushes_itself(run_folder, pushed):
    model = CamoXpert.from_pretrained(run_folder / "checkpoints" / "epoch_0001")
    assert model.push_to_hub("me/finder", token="t").endswith("me/finder/commit/1")
    assert pushed[0] == ("create", "me/finder", None, True, "t")
    assert pushed[1] == ("upload", "me/finder", {"README.md", "config.json", "model.safetensors"}, model.config)


@pytest.mark.parametrize("repo_id", ["finder", "a/b/c", "../x"])
def test_an_id_of_another_form_is_refused(run_folder, tmp_path, pushed, repo_id, capfd):
    assert export(run_folder, tmp_path / "hub", "--push", repo_id) == 2
    assert "owner/name" in capfd.readouterr().err
    assert not pushed


def test_a_model_of_the_hub_is_fetched(folder, monkeypatch, tmp_path):
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    model = CamoXpert.from_pretrained("me/finder", revision="v1", token="t", cache_dir=tmp_path)
    assert model.config == CamoXpert.from_pretrained(folder).config
    assert (asked["repo_id"], asked["revision"], asked["token"], asked["cache_dir"]) == (
        "me/finder",
        "v1",
        "t",
        tmp_path,
    )
    assert not any(pattern.endswith((".py", "*")) for pattern in asked["allow_patterns"])
    assert load_model("me/finder").image_size == 64


def test_without_the_network_an_id_is_one_message(tmp_path, monkeypatch, capfd, photographs):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "nobody/nothing", str(photographs), "--out", "out"]) == 2
    message = capfd.readouterr().err
    assert "no such folder" in message
    assert "hub" in message
    assert "Traceback" not in message


def test_a_folder_of_the_name_comes_before_the_hub(folder, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path / "me" / "finder")
    monkeypatch.chdir(tmp_path)
    assert load_model("me/finder").checkpoint == Path("me/finder")


def test_save_pretrained_keeps_a_card_and_needs_an_image_size(run_folder, tmp_path):
    model = CamoXpert.from_pretrained(run_folder / "checkpoints" / "epoch_0001")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own words")
    model.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my own words"
    again = CamoXpert.from_pretrained(tmp_path / "mine").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match="--image-size"):
        load_model(tmp_path / "mine")
    assert load_model(tmp_path / "mine", image_size=96).image_size == 96


def test_options_of_the_hub_belong_to_the_hub(run_folder, tmp_path, capfd):
    out = tmp_path / "model.onnx"
    assert main(["export", str(run_folder), "--format", "onnx", "--out", str(out), "--push", "me/x"]) == 2
    assert "--format hub" in capfd.readouterr().err
