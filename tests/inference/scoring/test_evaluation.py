import csv
import io
import shutil

import numpy as np
import pytest
import torch

from camox.data.loading import EvalSet, eval_loader
from camox.data.sources import open_source, open_training_sources
from camox.errors import CheckpointError, DataError
from camox.experiment import Experiment
from camox.inference.loading.loaded_model import load_model
from camox.inference.prediction.predictor import predict
from camox.inference.scoring import evaluation
from camox.inference.scoring.evaluation import evaluate, evaluate_model
from camox.measures.evaluator import Evaluator
from camox.measures.scoring import score_folder
from camox.tracking.console import Console

RNG = np.random.default_rng(0)
HELD_OUT = "habitats (held out, selected on)"


@pytest.fixture(scope="module")
def loaded(template_run):
    return load_model(template_run)


@pytest.fixture
def habitats():
    source = open_source({"synthetic": "habitats", "count": 7, "size": 48, "seed": 3})
    return EvalSet(source, 64)


@pytest.fixture
def run_evaluate(run_folder):
    """Evaluates without loading processes; the second value is what was printed."""

    def run(path=run_folder, **arguments):
        stream = io.StringIO()
        document = evaluate(path, workers=0, console=Console(stream=stream, width=200), **arguments)
        return document, stream.getvalue()

    return run


def loader(dataset, batch_size=3, indices=None):
    return eval_loader(dataset, indices or range(len(dataset)), batch_size, workers=0, pin_memory=False)


# ------------------------------------------------------------------------------------------ the loop


def test_every_image_is_scored_once_whatever_the_batches(loaded, habitats):
    summaries = []
    for batch_size in (1, 7):
        evaluator = Evaluator()
        evaluate_model(loaded.model, loader(habitats, batch_size), evaluator, "cpu")
        summaries.append(evaluator.summary())
        assert [record.index for record in evaluator.results] == list(range(7))
    assert summaries[0]["s_measure"] == pytest.approx(summaries[1]["s_measure"], abs=1e-5)


def test_maps_on_a_gpu_are_measured_there(loaded, habitats, monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    expected = Evaluator()
    evaluate_model(loaded.model, loader(habitats), expected, "cpu")
    honest, evaluator, sizes = evaluation.infer, Evaluator(), []
    add_batch = evaluator.add_batch
    monkeypatch.setattr(evaluator, "add_batch", lambda *batch: (sizes.append(len(batch[0])), add_batch(*batch)))

    def infer_there(*arguments):
        output, maps = honest(*arguments)
        return output, maps.as_subclass(OnGpu)

    monkeypatch.setattr(evaluation, "infer", infer_there)
    evaluate_model(loaded.model, loader(habitats), evaluator, "cpu")
    assert sizes == [3, 3, 1]
    assert [record.name for record in evaluator.results] == [record.name for record in expected.results]
    assert evaluator.summary()["s_measure"] == pytest.approx(expected.summary()["s_measure"], abs=1e-6)


def test_shards_join_to_the_whole(loaded, habitats):
    whole, joined = Evaluator(), Evaluator()
    evaluate_model(loaded.model, loader(habitats, 1), whole, "cpu")
    for rank in range(2):
        shard = Evaluator()
        evaluate_model(loaded.model, loader(habitats, 1, range(rank, 7, 2)), shard, "cpu")
        joined.extend(shard.results)
    assert joined.summary() == whole.summary()


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_put_back(loaded, habitats, training):
    loaded.model.train(training)
    evaluate_model(loaded.model, loader(habitats), Evaluator(), "cpu")
    assert loaded.model.training is training
    loaded.model.eval()


def test_the_model_is_left_unchanged(loaded, habitats):
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    loaded.model.train()
    evaluate_model(loaded.model, loader(habitats), Evaluator(), "cpu")
    loaded.model.eval()
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_observer_sees_every_batch_without_gradients(loaded, habitats):
    seen = []

    def observe(output, batch):
        assert not output.logits.requires_grad
        seen.append((len(output.logits), batch.names))

    evaluate_model(loaded.model, loader(habitats), Evaluator(), "cpu", observe=observe)
    assert [count for count, _ in seen] == [3, 3, 1]
    assert [name for _, names in seen for name in names] == list(habitats.source.names)


def test_the_forward_pass_runs_under_the_given_context(loaded, habitats):
    dtypes = set()

    def note(module, inputs, output):
        dtypes.add(output.dtype)

    hook = loaded.model.get_submodule("laterals.0").register_forward_hook(note)
    evaluator = Evaluator()
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    evaluate_model(loaded.model, loader(habitats), evaluator, "cpu", autocast)
    hook.remove()
    assert dtypes == {torch.bfloat16}
    assert len(evaluator.results) == 7


def test_an_unreadable_image_is_an_error(loaded, pairs):
    source = open_source({"layout": "folder", "images": str(pairs / "Imgs"), "masks": str(pairs / "GT")})
    (pairs / "Imgs" / "2.jpg").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"2\.jpg"):
        evaluate_model(loaded.model, loader(EvalSet(source, 64)), Evaluator(), "cpu")


def test_nan_from_the_model_is_an_error(run_folder, habitats):
    model = load_model(run_folder).model
    with torch.no_grad():
        model.get_parameter(f"heads.{len(model.heads) - 1}.bias").fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        evaluate_model(model, loader(habitats), Evaluator(), "cpu")


# ------------------------------------------------------------------------------------------ camox evaluate


def test_without_test_data_the_held_out_part_is_scored_and_labelled(run_evaluate, run_folder):
    document, printed = run_evaluate()
    data = Experiment.load(run_folder / "experiment.toml").data
    train = [source.plain() for source in data.train]
    _, held_out = open_training_sources(train, [], data.val_fraction, 42)
    assert list(document["datasets"]) == [HELD_OUT]
    assert document["datasets"][HELD_OUT]["count"] == len(held_out) == 4
    assert document["protocol"]["data"][HELD_OUT]["used_for"] == "selection"
    assert "optimistic" in printed
    with (run_folder / "evaluation" / "per_image.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(held_out.names)


def test_test_data_of_the_experiment_are_scored_each_for_itself(run_evaluate, override):
    tests = ", ".join(f'{{ synthetic = "habitats", count = 3, size = 64, seed = {seed} }}' for seed in (7, 8))
    override(f"data.test=[{tests}]")
    document, _ = run_evaluate()
    assert list(document["datasets"]) == ["habitats", "habitats 2"]
    assert {entry["used_for"] for entry in document["protocol"]["data"].values()} == {"test"}


def test_test_data_that_were_trained_on_are_labelled(run_evaluate, override):
    override('data.test=[{ synthetic = "habitats", count = 3, size = 64, empty = 0.0 }]')
    document, _ = run_evaluate()
    assert list(document["datasets"]) == ["habitats (training images)"]


def test_validation_data_of_the_experiment_are_labelled(run_evaluate, override):
    override('data.val=[{ synthetic = "habitats", count = 3, size = 64, seed = 7 }]', "data.val_fraction=0.0")
    document, _ = run_evaluate()
    assert document["protocol"]["data"][HELD_OUT]["images"] == 3
    assert document["protocol"]["selected_on"]["data"] == "validation data named by the experiment"


def test_files_are_written_into_the_runs_folder(run_evaluate, run_folder, read_scores):
    document, printed = run_evaluate()
    folder = run_folder / "evaluation"
    names = {path.name for path in folder.iterdir()}
    assert names == {"measures.json", "per_image.csv", "curves.csv", "curves.png", "table.md", "table.tex"}
    assert read_scores(folder) == document
    assert str(folder) in printed


def test_data_named_by_hand_leave_the_runs_own_scores_alone(run_evaluate, run_folder, pairs, read_scores):
    own, _ = run_evaluate()
    named, _ = run_evaluate(data={"CAMO": pairs})
    assert read_scores(run_folder / "evaluation") == own
    assert read_scores(run_folder / "evaluation-CAMO") == named


def test_the_protocol_says_what_was_scored(run_evaluate, pairs, tmp_path):
    document, _ = run_evaluate(data={"CAMO": pairs}, out=tmp_path / "scores")
    protocol = document["protocol"]
    assert protocol["name"] == "camox"
    assert protocol["weights"] == "ema"
    assert protocol["checkpoint"].endswith("epoch_0001")
    assert protocol["image_size"] == 64
    assert protocol["selected_on"]["monitor"] == "s_measure"
    assert protocol["selected_on"]["data"] == "held-out 20% of the training data, seed 42"
    assert protocol["data"]["CAMO"]["used_for"] == "other"
    assert protocol["data"]["CAMO"]["images"] == document["datasets"]["CAMO"]["count"] == 6


def test_training_images_are_labelled_as_such(run_evaluate, override, pairs, tmp_path):
    source = f'{{ layout = "folder", images = "{pairs / "Imgs"}", masks = "{pairs / "GT"}" }}'
    override(f"data.train=[{source}]")
    document, printed = run_evaluate(data={"mine": pairs}, out=tmp_path / "scores")
    assert list(document["datasets"]) == ["mine (training images)"]
    assert "trained on" in printed
    assert "training images" in (tmp_path / "scores" / "table.md").read_text()


def test_evaluation_equals_prediction_followed_by_scoring(run_evaluate, run_folder, pairs, tmp_path):
    document, _ = run_evaluate(data={"x": pairs}, out=tmp_path / "scores", protocol="pysod")
    quiet = Console(active=False)
    predict(run_folder, pairs / "Imgs", tmp_path / "maps", console=quiet)
    scored = score_folder(tmp_path / "maps", pairs / "GT", "pysod").summary
    for measure in ("s_measure", "f_weighted", "e_max", "mae", "iou"):
        assert document["datasets"]["x"][measure] == pytest.approx(scored[measure], abs=1e-5)


@pytest.mark.parametrize(("images", "masks"), [("Image", "Mask"), ("images", "masks"), ("im", "gt"), ("Imgs", "GT")])
def test_layouts_are_recognised(run_evaluate, pairs, tmp_path, images, masks):
    folder = tmp_path / "renamed"
    folder.mkdir()
    shutil.move(pairs / "Imgs", folder / images)
    shutil.move(pairs / "GT", folder / masks)
    document, _ = run_evaluate(data={"x": folder}, out=tmp_path / "scores")
    assert document["datasets"]["x"]["count"] == 6


@pytest.mark.parametrize("given", [".", "Test", "Train"])
def test_cod10k_and_its_halves_are_recognised(run_evaluate, save, tmp_path, given):
    root, blank = tmp_path / "COD10K", np.zeros((20, 20), np.uint8)
    for split, count in (("Train", 3), ("Test", 2)):
        for i in range(count):
            name = f"COD10K-CAM-1-Aquatic-3-Crab-{i}"
            save(root / split / "Image" / f"{name}.jpg", RNG.integers(0, 255, (20, 20, 3), np.uint8))
            save(root / split / "GT_Object" / f"{name}.png", np.full((20, 20), 255, np.uint8))
        save(root / split / "Image" / "COD10K-NonCAM-1-x-1-y-1.jpg", blank)
        save(root / split / "GT_Object" / "COD10K-NonCAM-1-x-1-y-1.png", blank)
    document, printed = run_evaluate(data={"x": root / given}, out=tmp_path / "scores")
    assert document["datasets"]["x"]["count"] == (3 if given == "Train" else 2)
    assert document["datasets"]["x"]["groups"].keys() == {"Aquatic"}
    assert "1 non-camouflaged" in printed


@pytest.mark.parametrize(
    ("folders", "message"),
    [([], "no folder"), (["a/Imgs", "a/GT"], r"holds no dataset itself, but .*a does"), (["Imgs"], "Imgs")],
    ids=["empty", "one level too high", "no masks"],
)
def test_an_unknown_layout_says_what_was_looked_for(run_evaluate, tmp_path, folders, message):
    (tmp_path / "data").mkdir()
    for folder in folders:
        (tmp_path / "data" / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        run_evaluate(data={"x": tmp_path / "data"})


def test_missing_data_is_an_error(run_evaluate, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        run_evaluate(data={"x": tmp_path / "nowhere"})


def test_a_copied_checkpoint_needs_data_and_a_place(run_evaluate, run_folder, pairs, tmp_path):
    copy = shutil.copytree(run_folder / "checkpoints" / "epoch_0001", tmp_path / "copy")
    with pytest.raises(DataError, match="--out"):
        run_evaluate(copy, image_size=64, data={"x": pairs})
    with pytest.raises(DataError, match="--data"):
        run_evaluate(copy, image_size=64, out=tmp_path / "scores")
    document, _ = run_evaluate(copy, image_size=64, out=tmp_path / "scores", data={"x": pairs})
    assert document["protocol"]["data"]["x"]["used_for"] == "unknown"
