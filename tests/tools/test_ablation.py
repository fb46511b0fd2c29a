"""The ablation study: what it trains, what it does not train again, its arithmetic, and a small one from end to end."""

import json
import sys
from pathlib import Path

import cv2
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import ablation
from ablation_figures import draw_figures
from ablation_summary import spread, summarise
from ablation_tables import markdown_tables
from camox.errors import DataError, ExperimentError
from camox.experiment import Experiment
from camox.training.trainer import Trainer
from pages import replace_block
from tests.conftest import TINY_EXPERIMENT

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.toml"
TEST_DATA = 'data.test=[{ synthetic = "habitats", count = 10, size = 32, seed = 7, empty = 0.0, tiny = 0.0 }]'


@pytest.fixture
def tiny(tmp_path):
    """A file with the tiny experiment; with `TEST_DATA` it can be studied."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_EXPERIMENT)
    return path


# ---- equal steps


@pytest.mark.parametrize(("size", "steps"), [(96, 800), (64, 300)])
def test_smaller_quickstart_has_exactly_these_steps(size, steps):
    full = Experiment.load(QUICKSTART)
    experiment = Experiment.load(QUICKSTART, ablation.smaller(full, size, steps))
    assert ablation.optimizer_steps(experiment) == steps
    assert {source.plain()["size"] for source in (*experiment.data.train, *experiment.data.test)} == {size}
    assert experiment.data.image_size == size
    assert experiment.data.train[0].plain()["count"] >= full.data.train[0].plain()["count"]
    assert experiment.phases[0] == full.phases[0]
    assert experiment.validation.every_epochs == experiment.checkpoints.every_epochs == experiment.epochs


def test_steps_are_those_of_the_trainer(tiny_experiment):
    experiment = tiny_experiment("optimizer.accumulate=2", "phases.full.batch_size=1")
    trainer = Trainer(experiment, accelerator=Accelerator(cpu=True))
    trainer._build()
    expected = sum(phase.epochs * trainer._steps_in(phase) for phase in trainer.phases)
    assert ablation.optimizer_steps(experiment) == expected == 1 + 4


@pytest.mark.parametrize(
    ("override", "steps", "message"),
    [
        ('data.train=[{ layout = "folder", images = "i", masks = "m" }]', 4, "give --full"),
        ("phases.full.batch_size=2", 4, "give --full"),
        (None, 1, "no whole number of epochs"),
    ],
)
def test_what_cannot_be_made_smaller(tiny_experiment, override, steps, message):
    experiment = tiny_experiment(*([override] if override else []))
    with pytest.raises(ExperimentError, match=message):
        ablation.smaller(experiment, 32, steps)


def test_rows_of_unequal_steps_are_refused(tiny, tmp_path, capsys):
    rows = ["--modes", "sparse", "--variant", "longer", "phases.full.epochs=3"]
    places = ["--output", str(tmp_path / "runs"), "--json", str(tmp_path / "study.json")]
    assert ablation.main([str(tiny), TEST_DATA, *rows, "--full", *places]) == 2
    assert "{'sparse': 4, 'longer': 8}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# ---- runs that are used again


def finished(experiment, code=0):
    folder = experiment.run_folder
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(experiment.to_toml())
    (folder / "exit.json").write_text(json.dumps({"code": code}))
    return experiment


def test_a_finished_run_is_used_again(tiny_experiment, tmp_path):
    assert not ablation.is_finished(tiny_experiment())
    experiment = finished(tiny_experiment())
    assert ablation.is_finished(experiment)
    experiment.run_folder.parent.rename(tmp_path / "moved")
    assert ablation.is_finished(tiny_experiment("tracking.log_every=7", output=tmp_path / "moved"))


@pytest.mark.parametrize("override", ["experiment.seed=4", "model.moe.mode=static", "phases.full.epochs=2"])
def test_another_run_is_not_used(tiny_experiment, override):
    finished(tiny_experiment())
    assert not ablation.is_finished(tiny_experiment(override))


@pytest.mark.parametrize("code", [3, 130])
def test_a_run_that_did_not_finish_is_not_used(tiny_experiment, code):
    assert not ablation.is_finished(finished(tiny_experiment(), code))


# ---- what training took


@pytest.fixture
def child(monkeypatch):
    """Runs this code in place of a training."""

    def child(code):
        monkeypatch.setattr(ablation, "training_command", lambda *_: [sys.executable, "-c", code])

    return child


def test_resources_are_those_of_the_process_and_its_children(child, tiny_experiment):
    experiment = tiny_experiment()
    busy = "import time\nwhile time.process_time() < 0.3: pass\nblock = b'x' * (50 * 2**20)"
    child(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])")
    ballast = b"x" * (200 * 2**20)  # of this process: no part of what training took
    ablation.train(Path("x.toml"), [], experiment)
    resources = json.loads((experiment.run_folder / "resources.json").read_text())
    assert resources["cpu_seconds"] >= 0.3
    assert resources["wall_seconds"] >= 0.3
    assert 50 * 2**20 < resources["peak_memory_bytes"] < len(ballast)


def test_of_a_run_that_was_cut_off_resources_are_not_known(child, tiny_experiment):
    experiment = tiny_experiment()
    (experiment.run_folder / "checkpoints" / "epoch_0001").mkdir(parents=True)
    child("pass")
    ablation.train(Path("x.toml"), [], experiment)
    assert not (experiment.run_folder / "resources.json").exists()


def test_failed_training_ends_the_study(child, tiny_experiment):
    child("import sys; sys.exit(3)")
    experiment = tiny_experiment()
    with pytest.raises(ExperimentError, match="exit code 3"):
        ablation.train(Path("x.toml"), [], experiment)
    assert not (experiment.run_folder / "resources.json").exists()


# ---- arithmetic


def made_up(name, seed, iou, seconds=None, gained=()):
    """A run of these numbers."""
    scales = {
        str(4 * 2**position): {
            "usage": [0.5, 0.3, 0.2],
            "usage_by_kind": {"forest": [0.75, 0.25, 0.0], "rock": [0.25, 0.35, 0.4]},
            "dead": position,
            "effective_experts": 2.8,
            "pair_share": 0.5,
            "information": value + 0.3,
            "chance": 0.1,
            "untrained": {"information": 0.25, "chance": 0.05},
            "information_gained": value,
        }
        for position, value in enumerate(gained)
    }
    resources = {"cpu_seconds": seconds, "wall_seconds": seconds, "peak_memory_bytes": 2**30}
    cost = {"iou": iou - 0.05, "cost": 0.05, "standard_error": 0.0125, "images": 9, "cost_by_kind": {}}
    return {
        "name": name,
        "seed": seed,
        "resources": None if seconds is None else resources,
        "parameters": 5_000_000,
        "test": {
            "iou": iou,
            "s_measure": iou + 0.1,
            "mae": 0.05,
            "groups": {"forest": {"iou": iou}, "rock": {"iou": iou}},
        },
        "routing": {"experts": ["texture", "edge", "contrast"], "scales": scales} if gained else None,
        "counterfactual": {"other_kind": cost, "same_kind": cost, "random": cost} if gained else None,
    }


RUNS = [
    made_up("sparse", 42, 0.70, 100.0, gained=(0.1, 0.2)),
    made_up("static", 42, 0.60, 80.0),
    made_up("sparse", 1, 0.80, 120.0, gained=(0.3, -0.1)),
    made_up("static", 1, 0.75),
    made_up("sparse", 2, 0.90, 110.0, gained=(0.2, 0.2)),
]


@pytest.fixture
def study():
    return {
        "settings": {"experiment": "e.toml", "image_size": 96, "steps": 800, "images": 1600},
        "machine": {"processor": "P", "cores": 2},
        "versions": {"torch": "2"},
        "runs": RUNS,
        "summary": summarise(RUNS),
    }


def test_summary_has_mean_and_spread_of_each_row():
    rows = summarise(RUNS)["rows"]
    assert rows["sparse"]["iou"] == {
        "mean": pytest.approx(0.8),
        "deviation": pytest.approx(0.1),
        "minimum": 0.7,
        "maximum": 0.9,
        "runs": 3,
    }
    assert rows["sparse"]["dead"]["maximum"] == 1
    assert rows["sparse"]["largest_information_gained"]["mean"] == pytest.approx((0.2 + 0.3 + 0.2) / 3)
    assert rows["sparse"]["other_kind_cost"]["mean"] == pytest.approx(0.05)


def test_what_a_run_lacks_is_left_out():
    rows = summarise(RUNS)["rows"]
    assert rows["static"]["cpu_seconds"]["runs"] == 1
    assert "dead" not in rows["static"]
    assert "other_kind_cost" not in rows["static"]


def test_differences_are_paired_by_seed():
    summary = summarise(RUNS)
    difference = summary["differences"]["static"]["iou"]
    assert summary["reference"] == "sparse"
    assert difference["by_seed"] == {"42": pytest.approx(0.1), "1": pytest.approx(0.05)}
    assert difference["mean"] == pytest.approx(0.075)
    assert difference["deviation"] == pytest.approx(0.05 / 2**0.5)


def test_one_run_has_no_deviation():
    assert spread([0.5]) == {"mean": 0.5, "deviation": None, "minimum": 0.5, "maximum": 0.5, "runs": 1}


# ---- tables and figures


def cells(tables, first, second=None):
    """The cells of the lines that begin with these."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if "|" in line]
    return [line for line in lines if line[0] == first and (second is None or line[1] == second)]


def test_tables_hold_the_numbers(study):
    tables = markdown_tables(study)
    measures, by_kind = cells(tables, "static")
    assert measures == [
        "static", "0.6750 ± 0.1061", "0.7750 ± 0.1061", "0.0500", "+0.0750 ± 0.0354", "+0.1000, +0.0500", "80",
        "1.00", "5.00", "–",
    ]  # fmt: skip
    assert by_kind == ["static", "0.6750 ± 0.1061", "0.6750 ± 0.1061"]
    assert cells(tables, "sparse")[0][-1] == "1"
    assert cells(tables, "sparse")[2][1] == "+0.0500 (0.0125)"
    assert cells(tables, "sparse", "8") == [
        ["sparse", "8", "0.3000 ± 0.1732", "0.2000", "+0.1000 ± 0.1732", "1", "2.80", "50%"]
    ]
    assert cells(tables, "forest")[0][1] == "texture 75%, edge 25%"
    assert cells(tables, "rock")[0][1] == "contrast 40%, edge 35%"
    assert "seeds 42, 1, 2" in tables


def test_tables_of_one_seed_without_routing(study):
    runs = [run for run in RUNS if run["seed"] == 1 and run["name"] == "static"]
    tables = markdown_tables({**study, "runs": runs, "summary": summarise(runs)})
    assert cells(tables, "static")[0][1] == "0.7500"
    assert "habitat uses most" not in tables


def test_block_of_a_page_is_replaced_each_time():
    page = "Before.\n\n<!-- ablation -->\nold\n<!-- /ablation -->\n\nAfter.\n"
    new = replace_block(page, "ablation", "new", "page.md")
    assert new == "Before.\n\n<!-- ablation -->\nnew\n<!-- /ablation -->\n\nAfter.\n"
    assert replace_block(new, "ablation", "new", "page.md") == new


@pytest.mark.parametrize(
    "page",
    ["", "<!-- ablation -->", "<!-- /ablation --><!-- ablation -->", "<!-- ablation --><!-- /ablation -->" * 2],
)
def test_page_without_a_place_for_the_tables(page):
    with pytest.raises(DataError, match=r"page\.md: has no place"):
        replace_block(page, "ablation", "new", "page.md")


def test_figures_are_pictures(study, tmp_path):
    paths = draw_figures(study, tmp_path / "figures")
    assert [path.name for path in paths] == ["ablation.png", "experts_by_habitat.png"]
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert min(picture.shape[:2]) > 200
        assert picture[0, 0].tolist() == [255, 255, 255]
        assert picture.std() > 10


def test_without_routing_there_is_one_figure(study, tmp_path):
    runs = [run for run in RUNS if run["name"] == "static"]
    assert [path.name for path in draw_figures({**study, "runs": runs}, tmp_path)] == ["ablation.png"]


# ---- end to end


@pytest.fixture
def in_process(monkeypatch):
    """Trains in this process, which spares some seconds of imports, and lists what was trained."""
    trained = []

    def train(file, overrides, experiment):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        Trainer(experiment, accelerator=Accelerator(cpu=True)).run()
        trained.append(experiment.experiment.name)

    monkeypatch.setattr(ablation, "train", train)
    return trained


def test_small_study_from_end_to_end(tiny, tmp_path, in_process, capsys):
    results = tmp_path / "results" / "study.json"
    arguments = [str(tiny), TEST_DATA, "--seeds", "5", "--size", "32", "--steps", "4"]
    arguments += ["--output", str(tmp_path / "runs"), "--json", str(results)]
    static = ["--variant", "plain", "model.moe.mode=static", "model.moe.top_k=1"]
    assert ablation.main([*arguments, "--modes", "sparse"]) == 0
    assert in_process == ["sparse_seed_5"]
    assert ablation.main([*arguments, "--modes", "sparse", *static]) == 0
    assert in_process == ["sparse_seed_5", "plain_seed_5"]  # what was finished is not trained again

    study = json.loads(results.read_text())
    sparse, plain = study["runs"]
    assert study["command"].startswith(f"python tools/ablation.py {tiny}")
    assert study["settings"]["steps"] == 4
    assert study["settings"]["rows"]["plain"] == ["model.moe.mode=static", "model.moe.top_k=1"]
    assert (sparse["mode"], plain["mode"]) == ("sparse", "static")
    assert set(sparse["routing"]["scales"]) == {"4", "8", "16", "32"}
    assert plain["routing"] is None
    assert plain["counterfactual"] is None
    # The same scores as the run's own evaluation of the same weights.
    own = json.loads((Path(sparse["run"]) / "evaluation" / "measures.json").read_text())["datasets"]["habitats"]
    assert sparse["test"]["iou"] == pytest.approx(own["iou"], abs=1e-9)

    page = tmp_path / "page.md"
    page.write_text("<!-- ablation -->\n<!-- /ablation -->\n")
    capsys.readouterr()
    assert ablation.main(["--from", str(results), "--markdown", str(page), "--figures", str(tmp_path)]) == 0
    assert "| plain |" in page.read_text()
    assert (tmp_path / "experts_by_habitat.png").is_file()
    assert ablation.main(["--from", str(results)]) == 0
    assert capsys.readouterr().out.strip().endswith(page.read_text().splitlines()[-2])


@pytest.mark.slow
def test_study_trains_in_a_process_of_its_own(tiny, tmp_path):
    results = tmp_path / "study.json"
    arguments = [str(tiny), TEST_DATA, "--seeds", "5", "--full", "--modes", "random"]
    assert ablation.main([*arguments, "--output", str(tmp_path / "runs"), "--json", str(results)]) == 0
    (run,) = json.loads(results.read_text())["runs"]
    assert run["mode"] == "random"
    assert run["resources"]["cpu_seconds"] > 0


@pytest.mark.parametrize(
    "arguments", [[], ["e.toml"], ["e.toml", "--json", "x", "--markdown", "y"], ["e.toml", "--json", "x", "--modes"]]
)
def test_command_lines_that_say_too_little(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main(arguments)
    assert "error: " in capsys.readouterr().err


def test_results_that_cannot_be_read(tmp_path, capsys):
    assert ablation.main(["--from", str(tmp_path / "none.json")]) == 2
    assert "cannot be read as results" in capsys.readouterr().err
