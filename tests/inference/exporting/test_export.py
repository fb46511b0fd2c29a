"""`camox export` to ONNX and `torch.export`: parity at any size and batch, standard operators, opened again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from camox.checkpoints.store import set_pointer, write_checkpoint
from camox.cli import main
from camox.errors import CamoxError, CheckpointError
from camox.experiment import Experiment
from camox.inference.exporting.export import export as export_model
from camox.inference.exporting.export import open_onnx, open_program, trace, write_onnx, write_program
from camox.inference.exporting.parity import measure_parity, parity_batches, shapes_around
from camox.inference.loading.facts import Facts
from camox.inference.loading.loaded_model import load_model
from camox.models.camoxpert import CamoXpert
from tests.inference.conftest import EXPERIMENT

DOCS = Path(__file__).resolve().parents[3] / "docs" / "export.md"
SHAPES = [(1, 64, 64), (2, 33, 97), (5, 128, 40), (1, 31, 200), (3, 70, 101), (2, 1, 1)]
FACTS = Facts(64, 0.5, "", "run/epoch_0001", "raw", "", 1, 1, "iou", "nothing", "0")
SMALL = {"backbone": "resnet10t", "width": 8, "scales": (32,), "experts": ("attention", "frequency", "contrast")}


def network(seed=0, **arguments):
    """With gates that choose by the image, as after training."""
    torch.manual_seed(seed)
    model = CamoXpert(**{**SMALL, "refinement_steps": 1, **arguments}).eval()
    for router in model.routers.values():
        if hasattr(router, "gate"):
            torch.nn.init.normal_(router.gate.weight, std=2.0)
    for mixture in model.mixtures.values():
        torch.nn.init.ones_(mixture.scale)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a network small enough to export in seconds."""
    folder = tmp_path_factory.mktemp("run") / "small"
    folder.mkdir()
    (folder / "source.toml").write_text(EXPERIMENT)
    experiment = Experiment.load(
        folder / "source.toml",
        [
            "model.refinement_steps=1",
            "model.moe.scales=[32]",
            'model.moe.experts=["attention", "frequency", "contrast"]',
        ],
    )
    (folder / "experiment.toml").write_text(experiment.to_toml())
    model = network()
    write_checkpoint(
        folder,
        "epoch_0001",
        {"model": model.state_dict()},
        state={"step": 1, "epoch": 1},
        config=model.config,
        measures={"val/iou": 0.5, "val/threshold": 0.375},
        experiment_fingerprint=experiment.fingerprint(),
        step=1,
        epoch=1,
    )
    set_pointer(folder, "latest", "epoch_0001")
    return folder


@pytest.fixture(scope="module")
def onnx_file(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert main(["export", str(run), "--format", "onnx", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_onnx_agrees_at_every_size_and_batch(run, onnx_file):
    parity = measure_parity(load_model(run).model, open_onnx(onnx_file), parity_batches(SHAPES))
    assert parity.images == 14
    assert parity.near_ties == 0
    assert parity.largest < 1e-4


@pytest.mark.slow
def test_it_needs_no_operator_of_anyone_else(onnx_file):
    model = onnx.load(onnx_file)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert os.listdir(onnx_file.parent) == ["model.onnx"]


@pytest.mark.slow
def test_its_sizes_are_named(onnx_file):
    session = onnxruntime.InferenceSession(str(onnx_file))
    (images,), maps = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, "height", "width"])
    assert [(one.name, one.shape) for one in maps] == [
        (name, ["batch", 1, "height", "width"]) for name in ("logits", "uncertainty")
    ]


@pytest.mark.slow
def test_it_carries_what_the_run_knew(run, onnx_file):
    loaded = load_model(onnx_file)
    assert (loaded.image_size, loaded.threshold, loaded.weights) == (64, 0.375, "raw")
    assert str(run.parent) not in onnx_file.read_bytes().decode("latin-1")


@pytest.mark.slow
def test_predict_opens_it_again(run, onnx_file, photographs, tmp_path):
    for model, out in ((run, "a"), (onnx_file, "b")):
        arguments = ["predict", str(model), str(photographs), "--out", str(tmp_path / out), "--batch-size", "3"]
        assert main(arguments) == 0
    for path in (tmp_path / "a").iterdir():
        ours, theirs = (np.array(Image.open(file)).astype(int) for file in (path, tmp_path / "b" / path.name))
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.slow
def test_evaluate_scores_it(run, onnx_file, pairs, tmp_path, read_scores):
    scores = []
    for model, out in ((run, "a"), (onnx_file, "b")):
        arguments = ["evaluate", str(model), "--data", f"X={pairs}", "--out", str(tmp_path / out), "--workers", "0"]
        assert main(arguments) == 0
        scores.append(read_scores(tmp_path / out)["datasets"]["X"]["mae"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
def test_the_lines_of_the_docs_run(onnx_file, photographs, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "InferenceSession" in block]
    assert not re.search(r"(import|from) .*(camox|torch)", lines)
    monkeypatch.chdir(onnx_file.parent)
    (onnx_file.parent / "photo.jpg").write_bytes((photographs / "0.png").read_bytes())
    values: dict = {}
    exec(lines, values)
    (onnx_file.parent / "photo.jpg").unlink()
    assert values["probability"].shape == Image.open(photographs / "0.png").size[::-1]
    assert 0 <= values["probability"].min() <= values["probability"].max() <= 1


def test_near_ties_are_counted_apart():
    model = network()
    for router in model.routers.values():
        torch.nn.init.zeros_(router.gate.weight)

    def exported(images):  # which chooses otherwise, and differs by much
        output = model(images)
        return output.logits + 5, output.uncertainty

    parity = measure_parity(model, exported, parity_batches([(2, 40, 40)]))
    assert (parity.images, parity.near_ties, parity.largest) == (2, 2, 0)
    assert parity.largest_of_near_ties > 0.1
    assert not parity.holds, "of two ties nothing has been learnt"


def test_a_difference_or_a_nan_is_no_parity():
    model = network()
    for wrong in (0.01, torch.nan):
        parity = measure_parity(
            model, lambda x, wrong=wrong: (model(x).logits + wrong, model(x).uncertainty), parity_batches([(1, 40, 40)])
        )
        assert not parity.holds


def test_shapes_to_compare_on_hold_several_sizes_and_batches():
    shapes = shapes_around(128)
    assert (1, 128, 128) in shapes
    assert len({batch for batch, _, _ in shapes}) > 1
    assert any(height % 32 and width % 32 for _, height, width in shapes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onnx", "--out", "model.pt"], ".onnx"),
        (["--format", "torch", "--out", "model.onnx"], ".pt2"),
        (["--format", "onnx", "--out", "there.onnx"], "--overwrite"),
        (["--format", "onnx", "--out", "folder.onnx", "--overwrite"], "is a folder"),
        (["--format", "keras", "--out", "model"], "--format"),
        (["--format", "onnx", "--out", "file/model.onnx"], "cannot be written"),
    ],
    ids=str,
)
def test_mistakes_are_one_message(run, tmp_path, monkeypatch, capfd, options, message):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_text("mine")
    Path("folder.onnx").mkdir()
    Path("file").write_text("mine")
    assert main(["export", str(run), *options]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(os.listdir()) == ["file", "folder.onnx", "there.onnx"]
    assert Path("there.onnx").read_text() == "mine"


def test_without_the_packages_it_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(CamoxError, match=r"onnxscript.*pip install 'camox\[export\]'"):
        export_model(run, "onnx", tmp_path / "model.onnx")


def test_an_exporter_that_fails_is_one_message(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("unsupported operator\nwith a page of details")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(CamoxError, match=r"cannot be exported.*unsupported operator\. See docs/export\.md"):
        export_model(run, "torch", tmp_path / "model.pt2")
    assert not os.listdir(tmp_path)


def test_an_export_that_cannot_run_is_one_message(template_run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a size that the graph does not take")

    monkeypatch.setattr("camox.inference.exporting.export._maps_of", lambda model: fail)
    with pytest.raises(CamoxError, match=r"cannot be exported.*a size that the graph does not take"):
        export_model(template_run, "hub", tmp_path / "hub")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["garbage", "foreign", "of three channels", "missing", "damaged"])
def test_what_is_no_camox_onnx_is_one_message(onnx_file, tmp_path, capfd, photographs, kind):
    file = tmp_path / "x.onnx"
    if kind == "garbage":
        file.write_bytes(b"no model")
    if kind == "foreign":
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), file)
    if kind == "of three channels":
        model = onnx.load(onnx_file)
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
        onnx.save(model, file)
    if kind == "damaged":
        file.write_bytes(onnx_file.read_bytes()[:-1000])
    assert main(["predict", str(file), str(photographs), "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert "x.onnx" in error
    assert "Traceback" not in error


def test_a_program_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"program")
    with pytest.raises(CheckpointError, match=r"torch\.export\.load"):
        load_model(tmp_path / "model.pt2")


@pytest.mark.slow
def test_what_it_was_selected_on_is_known_to_whoever_scores_it(run, onnx_file):
    assert load_model(onnx_file).selected_on == "held-out 20% of the training data, seed 42"


@pytest.mark.slow
def test_other_weights_than_those_inside_are_an_error(onnx_file):
    with pytest.raises(CheckpointError, match="--weights ema"):
        load_model(onnx_file, "ema")


@pytest.mark.slow
def test_it_cannot_be_exported_once_more(onnx_file, tmp_path):
    with pytest.raises(CheckpointError, match="export already"):
        export_model(onnx_file, "hub", tmp_path / "hub")


@pytest.mark.slow
def test_a_program_runs_without_camox(run, tmp_path):
    out = tmp_path / "model.pt2"
    assert main(["export", str(run), "--format", "torch", "--out", str(out)]) == 0
    images = next(parity_batches([(2, 50, 75)]))
    torch.save(images, tmp_path / "images.pt")
    code = """
import sys
sys.modules["camox"] = None
import torch
files = {"camox.json": ""}
model = torch.export.load("model.pt2", extra_files=files).module(check_guards=False)
torch.save([*model(torch.load("images.pt"))], "maps.pt")
print(files["camox.json"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["threshold"] == 0.375
    with torch.no_grad():
        expected = load_model(run, device="cpu").model(images)
    logits, uncertainty = torch.load(tmp_path / "maps.pt")
    assert torch.allclose(logits, expected.logits, atol=1e-4)
    assert torch.allclose(uncertainty, expected.uncertainty, atol=1e-4)


VARIANTS = {
    "all experts": {
        "experts": ["texture", "edge", "contrast", "frequency", "attention", "semantic"],
        "scales": [4, 8, 32],
    },
    "others": {"experts": ["patch_frequency", "hybrid", "edge"], "shared": True, "scales": [8, 32]},
    "regions": {"granularity": 2, "scales": [8]},
    "dense": {"mode": "dense", "experts": ["attention", "patch_frequency", "hybrid"], "scales": [8]},
    "static": {"mode": "static", "scales": [16]},
    "random": {"mode": "random", "scales": [16]},
    "none": {"scales": [], "refinement_steps": 0, "deep_supervision": False},
    "linear gate": {"gate": "linear", "logit_limit_mode": "clamp", "prob_floor": 0.1, "channels_last": True},
    "a transformer": {"backbone": "pvt_v2_b0"},
    "edgenext": {"backbone": "edgenext_xx_small"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_can_be_exported_both_ways(name, tmp_path):
    model = network(**VARIANTS[name])
    program = trace(model)
    write_onnx(program, tmp_path / "model.onnx", FACTS)
    write_program(program, tmp_path / "model.pt2", FACTS)
    for exported in (open_onnx(tmp_path / "model.onnx"), open_program(tmp_path / "model.pt2")):
        parity = measure_parity(model, exported, parity_batches(SHAPES))
        assert parity.holds, parity
        assert parity.largest < 1e-4


@pytest.mark.slow
def test_fifty_images_of_fifty_sizes(run, onnx_file):
    rng = np.random.default_rng(0)
    shapes = [(1, int(height), int(width)) for height, width in rng.integers(33, 256, (50, 2))]
    parity = measure_parity(load_model(run).model, open_onnx(onnx_file), parity_batches(shapes))
    assert parity.images == 50
    assert parity.holds, parity
