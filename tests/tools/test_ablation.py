"""The ablation study: what it trains, what it does not train again, and a small one from end to end."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import ablation
import ablation_reuse
from camox.checkpoints.store import write_checkpoint
from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.training.trainer import Trainer
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
    experiment = tiny_experiment("optimizer.accumulate=2", "phases.full.batch_size=2", "phases.full.accumulate=1")
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
    assert "equally many steps, sparse for 4, longer for 8: compare" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# ---- runs that are used again


def ended_well(folder):
    (folder / "exit.json").write_text('{"code": 0}')


def trained_a_while(folder):
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


def saved(folder):
    about = {"state": {}, "config": {}, "measures": {}, "experiment_fingerprint": "f" * 64}
    write_checkpoint(folder, "epoch_0001", {"model": {"weight": torch.ones(1)}}, **about, step=1, epoch=1)


@pytest.fixture
def held(tiny, tmp_path):
    """Puts a run into the study's folder: its name, its states, and what is different in its experiment."""

    def held(name, *states, overrides=()):
        row, _, seed = name.partition("_seed_")
        common = ["tracking.log_every=7", TEST_DATA, *overrides]  # how much was logged does not matter
        arguments = ablation.arguments_of(ablation.Row(row, (f"model.moe.mode={row}",)), int(seed), common)
        experiment = Experiment.load(tiny, arguments, tmp_path / "where_it_was")
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "experiment.toml").write_text(experiment.to_toml())
        (folder / "resources.json").write_text(
            json.dumps({"code_digest": ablation_reuse.code_digest(), "cpu_seconds": 9})
        )
        for state in states:
            state(folder)
        return folder

    return held


@pytest.fixture
def study(tiny, tmp_path):
    """Runs the command on two rows and gives its exit code."""

    def study(*arguments):
        places = ["--output", str(tmp_path / "runs"), "--json", str(tmp_path / "study.json")]
        rows = ["--seeds", "5", "--modes", "sparse", "static"]
        return ablation.main([str(tiny), TEST_DATA, "--full", *rows, *places, *arguments])

    return study


@pytest.mark.parametrize(
    ("states", "overrides", "message"),
    [
        ([ended_well], ["optimizer.lr=5e-3"], "holds a run of other settings"),
        ([ended_well, trained_a_while, saved], ["optimizer.lr=5e-3"], "holds a run of other settings"),
        ([saved], ["optimizer.lr=5e-3"], "holds a run of other settings"),
        ([trained_a_while], ["phases.full.batch_size=2"], "holds a run of other settings"),
        ([ended_well, trained_a_while], [], "holds a finished run without a checkpoint"),
        ([saved, lambda folder: (folder / "experiment.toml").unlink()], [], "holds a run without experiment.toml"),
    ],
)
def test_a_conflict_in_a_later_row_is_found_before_anything_is_trained(
    held, study, tmp_path, in_process, capsys, states, overrides, message
):
    folder = held("static_seed_5", *states, overrides=overrides)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert study() == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{folder}: {message}" in error
    assert "remove the folder to train it again, or give another --output" in error
    assert in_process == []
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("states", "trained"),
    [
        ([ended_well, trained_a_while, saved], ["sparse_seed_5"]),
        ([trained_a_while, saved], ["sparse_seed_5", "static_seed_5"]),
        ([lambda folder: (folder / "exit.json").write_text('{"code": 3}')], ["sparse_seed_5", "static_seed_5"]),
    ],
)
def test_what_is_finished_is_used_again_and_what_is_not_is_trained(
    held, study, in_process, monkeypatch, states, trained
):
    monkeypatch.setattr(ablation, "measured", lambda experiment: {"test": {"iou": 0, "s_measure": 0, "mae": 0}})
    monkeypatch.setattr(ablation, "headline", str)
    monkeypatch.setattr(ablation, "summarise", len)
    monkeypatch.setattr(
        ablation, "train", lambda _file, _overrides, experiment: in_process.append(experiment.experiment.name)
    )
    held("static_seed_5", *states)
    assert study() == 0
    assert in_process == trained


# ---- the code that made a run


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, which is then the one whose code counts."""
    package = shutil.copytree(ablation_reuse.PACKAGE, tmp_path / "copy" / "camox")
    monkeypatch.setattr(ablation_reuse, "PACKAGE", package)
    return package


def test_the_same_code_has_the_same_digest_wherever_it_lies(package, monkeypatch):
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "more.pyc").write_bytes(b"0")
    (package / "notes.txt").write_text("no code")
    of_copy = ablation_reuse.code_digest()
    monkeypatch.undo()
    assert package != ablation_reuse.PACKAGE
    assert ablation_reuse.code_digest() == of_copy


def edited(package):
    with (package / "models" / "experts.py").open("a") as file:
        file.write("\n")


def renamed(package):
    (package / "models" / "experts.py").rename(package / "models" / "other.py")


def with_an_empty_file(package):
    (package / "models" / "empty.py").touch()


def with_text_moved_between_files(package):
    (package / "a.py").write_text("x")
    (package / "b.py").write_text("")
    before = ablation_reuse.code_digest()
    (package / "a.py").write_text("")
    (package / "b.py").write_text("x")
    return before


@pytest.mark.parametrize("change", [edited, renamed, with_an_empty_file, with_text_moved_between_files])
def test_other_code_has_another_digest(package, change):
    before = ablation_reuse.code_digest()
    before = change(package) or before
    assert ablation_reuse.code_digest() != before


@pytest.mark.parametrize("state", [ended_well, saved])
@pytest.mark.parametrize("noted", [None, '{"cpu_seconds": 3.0}', '{"code_digest": "0123abc"}'])
def test_a_study_refuses_runs_of_other_code_before_it_trains(tiny, tmp_path, in_process, capsys, state, noted):
    folder = tmp_path / "runs" / "static_seed_5"
    folder.mkdir(parents=True)
    state(folder)
    if noted is not None:
        (folder / "resources.json").write_text(noted)
    before = sorted(tmp_path.rglob("*"))
    places = ["--output", str(tmp_path / "runs"), "--json", str(tmp_path / "study.json")]
    assert ablation.main([str(tiny), TEST_DATA, "--full", "--seeds", "5", "--modes", "sparse", "static", *places]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"{folder}: this run was made by other code" in message
    assert "0123abc" in message or "none" in message
    assert "remove the folder to train it again, or give another --output" in message
    assert in_process == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_start_that_failed_before_its_first_checkpoint_may_be_of_other_code(tmp_path):
    (tmp_path / "exit.json").write_text('{"code": 2}')
    ablation_reuse.require_same_code(tmp_path, "0123abc")


def test_a_study_ends_where_the_code_is_changed_while_it_runs(tiny, tmp_path, in_process, capsys, package):
    in_process.after = lambda: edited(package)
    places = ["--output", str(tmp_path / "runs"), "--json", str(tmp_path / "study.json")]
    assert ablation.main([str(tiny), TEST_DATA, "--full", "--seeds", "5", "6", "--modes", "random", *places]) == 2
    assert "was changed while the study ran" in capsys.readouterr().err
    assert in_process == ["random_seed_5"]
    assert len(json.loads((tmp_path / "study.json").read_text())["runs"]) == 1


def test_training_runs_the_code_whose_digest_is_noted(tiny_experiment, tmp_path, monkeypatch):
    """Not a package of the same name that lies where the study is started."""
    (tmp_path / "camox").mkdir()
    (tmp_path / "camox" / "__init__.py").touch()
    (tmp_path / "camox" / "__main__.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ExperimentError, match="exit code 2"):  # ours: there is no such file
        ablation.train(Path("none.toml"), [], tiny_experiment())


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
    assert resources["code_digest"] == ablation_reuse.code_digest()


def test_of_a_run_that_was_cut_off_only_the_code_is_known(child, tiny_experiment):
    experiment = tiny_experiment()
    saved(experiment.run_folder)
    child("pass")
    ablation.train(Path("x.toml"), [], experiment)
    assert json.loads((experiment.run_folder / "resources.json").read_text()) == {
        "code_digest": ablation_reuse.code_digest()
    }


def test_the_code_is_noted_before_training_starts(child, tiny_experiment):
    experiment = tiny_experiment()
    noted = experiment.run_folder / "resources.json"
    child(f"import json; assert json.load(open({str(noted)!r}))['code_digest'] == {ablation_reuse.code_digest()!r}")
    ablation.train(Path("x.toml"), [], experiment)


def test_failed_training_ends_the_study(child, tiny_experiment):
    child("import sys; sys.exit(3)")
    experiment = tiny_experiment()
    with pytest.raises(ExperimentError, match="exit code 3"):
        ablation.train(Path("x.toml"), [], experiment)
    assert "cpu_seconds" not in json.loads((experiment.run_folder / "resources.json").read_text())


# ---- end to end


class Trained(list):
    """Names of the runs that were trained, and what is to happen after each."""

    def after(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    """Trains in this process, which spares some seconds of imports, and lists what was trained."""
    trained = Trained()

    def train(file, overrides, experiment):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        Trainer(experiment, accelerator=Accelerator(cpu=True)).run()
        noted = {"code_digest": ablation_reuse.code_digest()}
        (experiment.run_folder / "resources.json").write_text(json.dumps(noted))
        trained.append(experiment.experiment.name)
        trained.after()

    monkeypatch.setattr(ablation, "train", train)
    return trained


@pytest.mark.slow
def test_small_study_from_end_to_end(tiny, tmp_path, in_process, capsys):
    results = tmp_path / "results" / "study.json"
    arguments = [str(tiny), TEST_DATA, "--seeds", "5", "--size", "32", "--steps", "4"]
    arguments += ["--output", str(tmp_path / "runs"), "--json", str(results)]
    static = ["--variant", "plain", "model.moe.mode=static", "model.moe.top_k=1"]
    assert ablation.main([*arguments, "--modes", "sparse"]) == 0
    assert in_process == ["sparse_seed_5"]
    assert ablation.main([*arguments, "--modes", "sparse", *static]) == 0
    assert in_process == ["sparse_seed_5", "plain_seed_5"]  # what was finished is not trained again

    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"see the tables: python tools/ablation.py --from {results}"
    header = printed[printed.rindex("ablation\n") :].partition("run 1")[0]
    assert not re.search(r"\[\W?'|\[\d|\{'", header)  # lists and dictionaries as Python writes them
    assert re.search(r"row plain +model\.moe\.mode=static model\.moe\.top_k=1\n", header)
    study = json.loads(results.read_text())
    sparse, plain = study["runs"]
    assert shlex.split(study["command"])[:4] == ["python", "tools/ablation.py", str(tiny), TEST_DATA]
    assert study["code_digest"] == ablation_reuse.code_digest()
    assert study["settings"]["steps"] == 4
    assert study["settings"]["rows"]["plain"] == ["model.moe.mode=static", "model.moe.top_k=1"]
    assert (sparse["mode"], plain["mode"]) == ("sparse", "static")
    assert sparse["resources"] is None  # nothing is known of what these took
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


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        ablation.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    options = ablation.parse(["e.toml", "--json", "x"])
    for value in (*options.modes, options.size, options.steps, options.output, *options.seeds):
        assert re.search(rf"\(default: [^)]*\b{value}\b", text), value


@pytest.mark.parametrize(
    "arguments", [[], ["e.toml"], ["e.toml", "--json", "x", "--markdown", "y"], ["e.toml", "--json", "x", "--modes"]]
)
def test_command_lines_that_say_too_little(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as results"),
        (b"", "cannot be read as results"),
        (b"\xff", "cannot be read as results"),
        (b"[]", "holds no results"),
        (b"{}", "holds no study"),
        (b'{"runs": []}', "holds no study"),
        (b'{"runs": 3}', "holds only a part of a study"),
        (b'{"runs": [{"name": "sparse"}]}', "holds only a part of a study"),
        (b'{"runs": ["sparse"], "settings": [], "machine": {}, "versions": {}}', "holds only a part of a study"),
    ],
)
def test_results_that_are_no_study_are_one_message(tmp_path, capsys, content, message):
    file, page = tmp_path / "study.json", tmp_path / "page.md"
    if content is not None:
        file.write_bytes(content)
    page.write_text("<!-- ablation -->\nold\n<!-- /ablation -->\n")
    for options in ([], ["--markdown", str(page), "--figures", str(tmp_path / "figures")]):
        assert ablation.main(["--from", str(file), *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {file}: {message}")
        assert captured.err.count("\n") == 1
    assert "old" in page.read_text()
