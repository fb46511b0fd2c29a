"""Whole runs of a tiny experiment: repeated, resumed, stopped, and what they leave behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from camox.checkpoints.scan import scan
from camox.checkpoints.store import list_checkpoints, read_checkpoint
from camox.errors import CheckpointError, DataError, ExperimentError, TrainingPaused, TrainingStopped
from camox.training.routing import routed_images
from camox.training.step import TrainingStep
from camox.training.trainer import Trainer
from camox.training.validation import Validator
from camox.training.watching import Watch
from tests.conftest import fp16_accelerator


def train(experiment: Any, resume: str | None = None, fp16: bool = False) -> Path:
    """Runs it as a new process would, as far as Accelerate's process-wide state goes."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = fp16_accelerator(growth_interval=2) if fp16 else Accelerator(cpu=True)
    Trainer(experiment, resume, accelerator).run()
    return experiment.run_folder


def bits(checkpoint: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != "manifest.json"}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


MEASURES = [
    "iou", "dice", "s_measure", "f_weighted", "f_max", "f_mean", "f_adaptive", "e_max", "e_mean", "e_adaptive", "mae",
]  # fmt: skip
EMPTY: dict[str, Any] = {"groups": {}, "empty": {"count": 0}}
TIMES = {"train/images_per_second", "train/data_wait", "checkpoint/seconds", "checkpoint/blocked_seconds"}


def slow(*values: Any) -> Any:
    """Parameters that are left to the long tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


def read_events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict[str, Any]]:
    """All that is logged but times; rows that hold nothing else come whenever a checkpoint is safe."""
    logged = [row for row in rows(run) if "checkpoint/seconds" not in row]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in logged]


def test_a_run_leaves_the_folder_of_the_contract(tiny_experiment):
    experiment = tiny_experiment('data.test=[{synthetic="habitats",count=4,size=32,seed=9,empty=0.0}]')
    run = train(experiment)
    checkpoint = run / "checkpoints" / "epoch_0002"
    files = {file.name for file in checkpoint.iterdir()}
    assert files == {
        "model.safetensors", "ema.safetensors", "optimizer.safetensors", "rng_0.safetensors",
        "config.json", "state.json", "manifest.json",
    }  # fmt: skip
    assert (run / "checkpoints" / "latest").read_text().strip() == "epoch_0002"
    assert (run / "checkpoints" / "best").read_text().strip() in ("epoch_0001", "epoch_0002")
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 3
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert scan(run).exit_code == 0
    scores = json.loads((run / "evaluation" / "measures.json").read_text())
    assert scores["datasets"]["habitats"]["count"] == 4


def test_the_names_of_the_contract_are_logged(tiny_experiment):
    run = train(tiny_experiment(f"validation.measures={json.dumps(MEASURES)}"), fp16=True)
    names = {name for row in rows(run) for name in row}
    terms = {f"train/loss/{t}" for t in ("structure", "boundary", "uncertainty", "search", "deep", "refinement")}
    expected = {
        "train/loss", "train/images_per_second", "train/data_wait", "train/effective_batch",
        *(f"lr/{group}" for group in ("backbone", "router", "experts", "head")),
        *(f"grad_norm/{group}" for group in ("total", "backbone", "router", "experts", "head")),
        "grad_norm/clipped/router", "grad_norm/clipped/rest", "amp/scale", "amp/skip_rate", "amp/skipped_steps",
        *(f"router/{name}" for name in ("warmup_factor", "load_balance", "z_loss", "coefficient")),
        *(f"{prefix}/{name}" for prefix in ("val", "val_ema") for name in (*MEASURES, "loss", "threshold")),
        "stability/skipped_batches", "stability/rollbacks", "stability/events",
        "checkpoint/seconds", "checkpoint/blocked_seconds", *terms,
    }  # fmt: skip
    measured = {
        "load_balance", "dead", "starved", "max_violation", "cv", "entropy", "marginal_entropy", "conditional_entropy",
        "mutual_information", "pair_share", "saturation", *(f"usage/{expert}" for expert in ("texture", "semantic")),
        *(f"cost/{expert}" for expert in ("texture", "semantic")),
    }  # fmt: skip
    for stride in (4, 8, 16, 32):
        expected |= {f"router/stride_{stride}/{name}" for name in measured | {"bias_max"}}
        expected |= {f"val/router/stride_{stride}/{name}" for name in measured | {"kind_information", "churn"}}
    expected |= {"val/router/collapsed"}
    assert expected <= names, sorted(expected - names)


def test_the_threshold_of_held_out_images_is_in_the_card_of_a_checkpoint(tiny_experiment):
    run = train(tiny_experiment())
    validated = [row for row in rows(run) if "val/iou" in row][-1]
    measures = json.loads((run / "checkpoints" / "epoch_0002" / "manifest.json").read_text())["measures"]
    for name in ("val/threshold", "val_ema/threshold"):
        assert 0 < measures[name] < 1
        assert measures[name] == validated[name]
    assert not any("iou_max" in name for name in measures)  # counted for it, and not asked for


def test_nobody_works_out_how_the_averaged_weights_route(tiny_experiment, monkeypatch):
    """It is not logged: one batch of held-out images, at four scales, after each of two epochs."""
    calls: list[int] = []

    def count(routing: Any, limit: float, indices: Any, kinds: Any) -> Any:
        calls.append(len(indices))
        return routed_images(routing, limit, indices, kinds)

    monkeypatch.setattr("camox.training.validation.routed_images", count)
    run = train(tiny_experiment())
    assert calls == [4] * 4 * 2
    assert sum("val_ema/iou" in row for row in rows(run)) == 2


@pytest.mark.parametrize(
    ("overrides", "learns_routing"),
    [
        (["model.moe.mode=dense"], True),
        slow(["model.moe.mode=static"], False),
        slow(["model.moe.mode=random"], False),
        (["model.moe.scales=[]"], False),
        (["model.moe.granularity=2", "data.image_size=64"], True),
        slow(["model.moe.balance.kind=switch"], True),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_every_kind_of_mixture_trains_logs_its_routing_and_repeats(
    tiny_experiment, tmp_path, overrides, learns_routing
):
    first, second = (train(tiny_experiment(*overrides, output=tmp_path / name)) for name in "ab")
    assert numbers(first) == numbers(second)
    assert [bits(path) for path in list_checkpoints(first)] == [bits(path) for path in list_checkpoints(second)]
    names = {name for row in rows(first) for name in row}
    assert ("router/z_loss" in names) == learns_routing
    assert ("lr/router" in names) == learns_routing


def test_the_frozen_phase_leaves_the_backbone_alone_and_the_full_one_trains_it(tiny_experiment):
    run = train(tiny_experiment("phases.full.epochs=2", "ema.enabled=false"))
    first, second, third = (load_file(path / "model.safetensors") for path in list_checkpoints(run))
    backbone = [name for name in first if name.startswith("backbone.network")]
    norms = [row.get("grad_norm/backbone") for row in rows(run) if row["phase"] == "frozen"]
    assert {norm for norm in norms if norm is not None} == {0.0}
    moved = [name for name in backbone if not torch.equal(first[name], second[name])]
    assert any("running_mean" in name for name in moved)
    assert any(name.endswith("weight") for name in moved)
    assert any(not torch.equal(second[name], third[name]) for name in backbone)


@pytest.mark.parametrize("fp16", [slow(False), True])
def test_the_same_run_twice_gives_the_same_bits(tiny_experiment, tmp_path, fp16):
    first = train(tiny_experiment(output=tmp_path / "a"), fp16=fp16)
    second = train(tiny_experiment(output=tmp_path / "b"), fp16=fp16)
    assert numbers(first) == numbers(second)
    for ours, theirs in zip(list_checkpoints(first), list_checkpoints(second), strict=True):
        assert bits(ours) == bits(theirs)


@pytest.mark.slow
def test_another_seed_gives_another_run(tiny_experiment, tmp_path):
    first = train(tiny_experiment(output=tmp_path / "a"))
    second = train(tiny_experiment("experiment.seed=4", output=tmp_path / "b"))
    assert numbers(first) != numbers(second)


@pytest.mark.parametrize(("after", "fp16"), [slow(1, True), (2, False), slow(1, False), slow(2, True)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tiny_experiment, tmp_path, fp16, after, monkeypatch):
    """Interrupted after an epoch, at the phase change and inside a phase, then continued by --resume auto."""
    overrides = ("phases.full.epochs=2", f"data.workers={after - 1}")
    whole = train(tiny_experiment(*overrides, output=tmp_path / "whole"), fp16=fp16)
    experiment = tiny_experiment(*overrides, output=tmp_path / "parts")
    run = interrupted_and_resumed(experiment, after, monkeypatch, fp16)
    assert_same_run(run, whole)


@pytest.mark.parametrize("mixture", [
    slow("model.moe.mode='static'"), "model.moe.mode='random'", slow("model.moe.mode='dense'"),
    slow("model.moe.balance.kind='switch'"),
])  # fmt: skip
def test_every_kind_of_mixture_goes_on_bit_for_bit(tiny_experiment, tmp_path, mixture, monkeypatch):
    whole = train(tiny_experiment(mixture, output=tmp_path / "whole"))
    run = interrupted_and_resumed(tiny_experiment(mixture, output=tmp_path / "parts"), 1, monkeypatch, False)
    assert_same_run(run, whole)


@pytest.mark.parametrize("stop", [slow(3), 6, slow(7)])
def test_weights_in_channels_last_go_on_bit_for_bit(tiny_experiment, tmp_path, stop):
    """As the quickstart has them. Fused AdamW pairs weights and moments by their order in memory, and a file has one
    order alone; at step 3 the backbone has no moments yet, at 6 and 7 it has."""
    overrides = ("model.channels_last=true", "data.batch_size=2", "phases.full.epochs=2", "checkpoints.keep_last=9")
    whole = train(tiny_experiment(*overrides, output=tmp_path / "whole"))
    experiment = tiny_experiment(*overrides, output=tmp_path / "parts")
    with stopped_after(stop), pytest.raises(TrainingPaused):
        train(experiment)
    run = train(experiment, resume="auto")
    assert numbers(run) == numbers(whole)
    ours, theirs = ({path.name: bits(path) for path in list_checkpoints(of)} for of in (run, whole))
    assert {name: ours[name] for name in theirs} == theirs


MID_EPOCH = ("data.batch_size=1", "optimizer.accumulate=2", "data.image_size=64", "tracking.log_every=3")


@pytest.mark.parametrize(
    ("step", "fp16", "workers", "asynchronous"),
    [(1, False, 0, "true"), slow(3, True, 2, "true"), slow(4, False, 2, "false"), slow(6, True, 0, "false")],
)
def test_a_run_stopped_in_mid_epoch_goes_on_bit_for_bit(
    tiny_experiment, tmp_path, record, step, fp16, workers, asynchronous
):
    """Steps 1 and 3 are within an epoch, 3 after a logged one; 4 ends it, 6 is in the second phase. The data order,
    augmentation, routing noise, drop-out of paths, loss scale, averages and half-summed meters all have to go on."""
    overrides = (
        *MID_EPOCH, f"data.workers={workers}", "model.moe.router.noise=1", f"checkpoints.asynchronous={asynchronous}",
    )  # fmt: skip
    whole = train(tiny_experiment(*overrides, output=tmp_path / "whole"), fp16=fp16)
    experiment = tiny_experiment(*overrides, output=tmp_path / "parts")
    with stopped_after(step), pytest.raises(TrainingPaused, match=f"SIGTERM at step {step}, .*--resume auto"):
        train(experiment, fp16=fp16)
    assert json.loads((experiment.run_folder / "exit.json").read_text())["code"] == 4
    assert {event["severity"] for event in read_events(experiment.run_folder)} == {"info"}
    run = train(experiment, resume="auto", fp16=fp16)
    assert numbers(run) == numbers(whole)
    ours, theirs = ({path.name: bits(path) for path in list_checkpoints(of)} for of in (run, whole))
    assert ours.keys() - theirs.keys() == {f"epoch_{(step - 1) // 4:04d}_step_{step:07d}"}
    assert {name: ours[name] for name in theirs} == theirs
    told = "saved, exit code 4; resumed to the bits of the uninterrupted run"
    record(13, "SIGTERM in mid-epoch", with_guards=told)


def test_a_run_whose_camox_train_was_killed_saves_and_stops(tiny_experiment, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    monkeypatch.setenv("CAMOX_STARTED_BY", str(gone.pid))
    with pytest.raises(TrainingPaused, match=r"stopped by the end of camox train at step 1, in epoch 1; saved as"):
        train(tiny_experiment())


@pytest.mark.slow
def test_a_run_stopped_after_an_epochs_shorter_last_window_goes_on_bit_for_bit(tiny_experiment, tmp_path):
    """8 samples one by one, 3 to a step: the third step has 2, and there is no fourth."""
    overrides = ("data.batch_size=1", "optimizer.accumulate=3", "data.image_size=64")
    whole = train(tiny_experiment(*overrides, output=tmp_path / "whole"))
    experiment = tiny_experiment(*overrides, output=tmp_path / "parts")
    with stopped_after(3), pytest.raises(TrainingPaused):
        train(experiment)
    run = train(experiment, resume="auto")
    assert numbers(run) == numbers(whole)
    ours, theirs = ({path.name: bits(path) for path in list_checkpoints(of)} for of in (run, whole))
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("epoch", [slow(1), 2])
def test_a_run_stopped_in_a_validation_goes_on_bit_for_bit(tiny_experiment, tmp_path, epoch, monkeypatch):
    """A validation of thousands of images takes longer than a scheduler waits: it ends early, and is done anew."""
    whole = train(tiny_experiment("data.batch_size=1", "data.image_size=64", output=tmp_path / "whole"))
    experiment = tiny_experiment("data.batch_size=1", "data.image_size=64", output=tmp_path / "parts")
    score, batches = Validator._loss, []

    def score_and_signal(validator: Validator, *arguments: Any) -> Any:
        batches.append(1)
        if len(batches) == 8 * (epoch - 1) + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(validator, *arguments)

    monkeypatch.setattr(Validator, "_loss", score_and_signal)
    with pytest.raises(TrainingPaused, match=r"SIGTERM at step \d+, .*--resume auto"):
        train(experiment)
    assert len(batches) == 8 * (epoch - 1) + 2  # of four for raw and four for averaged weights in each
    run = train(experiment, resume="auto")
    assert numbers(run) == numbers(whole)
    ours, theirs = ({path.name: bits(path) for path in list_checkpoints(of)} for of in (run, whole))
    assert {name: ours[name] for name in theirs} == theirs


@contextmanager
def stopped_after(step: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Sends this process a signal while its step of that number is under way."""
    take = TrainingStep.__call__

    def take_and_signal(training_step: TrainingStep, *arguments: Any) -> None:
        count.append(1)
        if len(count) == step:
            os.kill(os.getpid(), number)
        take(training_step, *arguments)

    count: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", take_and_signal)
        yield


def test_sigusr1_saves_and_training_goes_on(tiny_experiment):
    with stopped_after(1, signal.SIGUSR1):
        run = train(tiny_experiment(*MID_EPOCH, "checkpoints.keep_last=9"))
    names = [path.name for path in list_checkpoints(run)]
    assert names == ["epoch_0000_step_0000001", "epoch_0001", "epoch_0002"]
    assert scan(run).exit_code == 0


def test_after_a_run_signals_do_what_they_did_before(tiny_experiment):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    train(tiny_experiment())
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_time_limit_saves_and_stops(tiny_experiment):
    experiment = tiny_experiment(*MID_EPOCH, "experiment.max_hours=1e-9")
    with pytest.raises(TrainingPaused, match="time limit at step 1, "):
        train(experiment)
    assert [path.name for path in list_checkpoints(experiment.run_folder)] == ["epoch_0000_step_0000001"]


def interrupted_and_resumed(experiment: Any, after: int, monkeypatch: Any, fp16: bool = False) -> Path:
    """Breaks off in the validation behind epoch `after` + 1, then goes on by --resume auto."""
    validate = Trainer._validate

    def interrupt(trainer: Trainer) -> Any:
        if trainer.at.epoch > after:
            raise KeyboardInterrupt
        return validate(trainer)

    monkeypatch.setattr(Trainer, "_validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, fp16=fp16)
    monkeypatch.setattr(Trainer, "_validate", validate)
    assert json.loads((experiment.run_folder / "exit.json").read_text())["code"] == 130
    return train(experiment, resume="auto", fp16=fp16)


def assert_same_run(run: Path, whole: Path) -> None:
    assert numbers(run) == numbers(whole)
    for ours, theirs in zip(list_checkpoints(run), list_checkpoints(whole), strict=True):
        assert bits(ours) == bits(theirs), ours


PROGRESSIVE = (
    "model.backbone=edgenext_xx_small",
    "phases.full.epochs=4",
    "phases.full.unfreeze=progressive",
    "checkpoints.keep_last=9",
    "ema.enabled=false",
)


def test_a_progressive_phase_trains_one_stage_more_after_each_quarter(tiny_experiment):
    run = train(tiny_experiment(*PROGRESSIVE))
    weights = [load_file(path / "model.safetensors") for path in list_checkpoints(run)]
    moved = [
        {
            name.split(".")[2]
            for name in after
            if name.startswith("backbone.") and not torch.equal(after[name], before[name])
        }
        for before, after in itertools.pairwise(weights)
    ]
    shallow = {"stages_0", "stem_0", "stem_1"}
    assert moved == [
        {"stages_3"},
        {"stages_3", "stages_2"},
        {"stages_3", "stages_2", "stages_1"},
        {"stages_3", "stages_2", "stages_1"} | shallow,
    ]
    events = read_events(run)
    assert [event["message"][0] for event in events if event["kind"] == "frozen"] == ["4", "3", "2", "1", "0"]
    norms = [row["grad_norm/backbone"] for row in rows(run) if row.get("phase") == "full" and "train/loss" in row]
    assert min(norms) > 0


@pytest.mark.parametrize(("backbone", "after"), [slow("resnet10t", 3), slow("edgenext_xx_small", 2)])
def test_resuming_in_the_middle_of_a_progressive_phase_changes_no_bit(
    tiny_experiment, tmp_path, after, backbone, monkeypatch
):
    overrides = (*PROGRESSIVE, f"model.backbone={backbone}", "ema.enabled=true")
    whole = train(tiny_experiment(*overrides, output=tmp_path / "whole"))
    run = interrupted_and_resumed(tiny_experiment(*overrides, output=tmp_path / "parts"), after, monkeypatch)
    assert_same_run(run, whole)


def test_a_plateau_lowers_the_rate_and_a_resumed_run_remembers_it(tiny_experiment, tmp_path, monkeypatch):
    """A rate of next to nothing never improves: one validation sets the best, then every second lowers the rate."""
    overrides = (
        "schedule.name=plateau", "schedule.patience=2", "schedule.gamma=0.5", "schedule.min_lr=0",
        "schedule.warmup_epochs=0", "phases.full.epochs=5", "optimizer.lr=1e-12", "ema.enabled=false",
        "checkpoints.keep_last=9", "checkpoints.monitor=mae",
    )  # fmt: skip
    monkeypatch.setattr("camox.training.validation.Evaluator.summary", lambda _: {"mae": 0.5, "iou": 0.1} | EMPTY)
    whole = train(tiny_experiment(*overrides, output=tmp_path / "whole"))
    rates = {row["epoch"]: row["lr/head"] for row in rows(whole) if "lr/head" in row}
    assert [rates[epoch] / 1e-12 for epoch in range(6)] == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])
    events = read_events(whole)
    assert [event["epoch"] for event in events if event["kind"] == "plateau"] == [3, 5]
    run = interrupted_and_resumed(tiny_experiment(*overrides, output=tmp_path / "parts"), 4, monkeypatch)
    assert_same_run(run, whole)


def test_multipliers_of_the_file_reach_the_groups(tiny_experiment):
    run = train(tiny_experiment("optimizer.backbone_lr_mult=0.5", "optimizer.router_lr_mult=3"))
    for row in rows(run):
        if "lr/head" in row:
            assert row["lr/backbone"] == pytest.approx(0.5 * row["lr/head"])
            assert row["lr/router"] == pytest.approx(3 * row["lr/head"])
            assert row["lr/experts"] == row["lr/head"]


def test_weighted_terms_of_the_loss_are_logged(tiny_experiment):
    run = train(tiny_experiment("loss.dice=1", "loss.frequency=0.5", "loss.foreground=0.5", "loss.structure=0"))
    logged = [row for row in rows(run) if "train/loss" in row]
    assert all(row[f"train/loss/{term}"] > 0 for row in logged for term in ("dice", "frequency", "foreground"))
    assert not any("train/loss/structure" in row for row in logged)


def test_accumulation_ends_an_epoch_with_its_true_tail(tiny_experiment, monkeypatch):
    """8 training samples one by one, 3 to a step: windows of 3, 3 and 2, each averaged over its own length."""
    experiment = tiny_experiment(
        "data.batch_size=1", "optimizer.accumulate=3", "data.image_size=64", "phases.full.batch_size=2"
    )
    windows: list[int] = []
    take = TrainingStep.__call__

    def take_and_count(step: TrainingStep, shell: Any, window: Any, controls: Any) -> None:
        windows.append(len(window))
        take(step, shell, window, controls)

    monkeypatch.setattr(TrainingStep, "__call__", take_and_count)
    train(experiment)
    assert windows == [3, 3, 2, 3, 1]


def test_a_run_may_start_from_the_weights_of_another_and_nothing_else(tiny_experiment, tmp_path):
    first = train(tiny_experiment(output=tmp_path / "first"))
    start = f"experiment.init_from={first}"
    trainer = Trainer(tiny_experiment(start, output=tmp_path / "second"), None, Accelerator(cpu=True))
    trainer._build()
    best = read_checkpoint(first / "checkpoints" / (first / "checkpoints" / "best").read_text().strip())
    weights = [best.tensors(stem) for stem in ("model", "ema")]
    ours = trainer.network.state_dict()
    assert any(all(torch.equal(ours[name], tensor) for name, tensor in one.items()) for one in weights)
    assert trainer.at.step == 0
    with pytest.raises(CheckpointError, match=r"init_from.*does not fit"):
        train(tiny_experiment(start, "model.width=16", output=tmp_path / "third"))
    with pytest.raises(CheckpointError, match=r"init_from: nowhere: no such folder"):
        train(tiny_experiment("experiment.init_from=nowhere", output=tmp_path / "fourth"))


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_experiment):
    experiment = tiny_experiment()
    run = train(experiment)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ExperimentError, match=r"already holds a run.*--resume auto"):
        train(experiment)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resuming_with_other_settings_is_refused_and_names_them(tiny_experiment):
    train(tiny_experiment())
    with pytest.raises(ExperimentError, match=r"optimizer\.lr"):
        train(tiny_experiment("optimizer.lr=5e-3"), resume="auto")
    train(tiny_experiment("tracking.log_every=7", "data.workers=1"), resume="auto")


def test_resume_latest_without_a_run_says_so(tiny_experiment):
    with pytest.raises(ExperimentError, match="no run at"):
        train(tiny_experiment(), resume="latest")


def test_resume_auto_starts_where_there_is_nothing(tiny_experiment):
    assert list_checkpoints(train(tiny_experiment(), resume="auto"))


def test_weights_that_are_not_finite_never_become_a_checkpoint(tiny_experiment, monkeypatch):
    experiment = tiny_experiment("phases.full.epochs=2")
    train_epoch = Trainer._train_epoch

    def poison_the_third(trainer: Trainer, *arguments: Any) -> None:
        train_epoch(trainer, *arguments)
        if trainer.at.epoch == 2:
            with torch.no_grad():
                trainer.network.decoder.blocks[0].enter.weight[0, 0] = float("nan")
            # The validation would notice first; what is tested is the last line of defence.
            monkeypatch.setattr(Trainer, "_validate", lambda trainer: None)

    monkeypatch.setattr(Trainer, "_train_epoch", poison_the_third)
    with pytest.raises(TrainingStopped, match=r"model/decoder\.blocks\.0\.enter\.weight.*last clean.*epoch_0002"):
        train(experiment)
    run = experiment.run_folder
    assert [path.name for path in list_checkpoints(run)] == ["epoch_0001", "epoch_0002"]
    assert scan(run).exit_code == 0
    report = json.loads((run / "exit.json").read_text())
    assert report["code"] == 3
    assert report["last_clean_checkpoint"].endswith("epoch_0002")
    events = read_events(run)
    assert events[-1]["severity"] == "error"


def test_too_many_skipped_steps_stop_the_run_with_a_reason(tiny_experiment, monkeypatch):
    experiment = tiny_experiment("stability.max_skipped_steps=1", "phases.full.epochs=2")
    enter = Trainer._enter

    def enter_and_break(trainer: Trainer, phase: Any) -> None:
        enter(trainer, phase)
        if phase.name == "full":
            losses = trainer.training_step.losses
            trainer.training_step.losses = lambda *arguments: {
                name: value * float("nan") for name, value in losses(*arguments).items()
            }

    monkeypatch.setattr(Trainer, "_enter", enter_and_break)
    with pytest.raises(TrainingStopped, match="2 steps in a row"):
        train(experiment)
    run = experiment.run_folder
    assert json.loads((run / "exit.json").read_text())["code"] == 3
    kinds = [event["kind"] for event in read_events(run)]
    assert "skipped_step" in kinds
    assert [path.name for path in list_checkpoints(run)] == ["epoch_0001"]


def test_an_unreadable_sample_is_named_and_too_many_end_the_run(tiny_experiment, tmp_path):
    from PIL import Image

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    noise = torch.randint(0, 255, (40, 40, 3), dtype=torch.uint8).numpy()
    for i in range(8):
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.jpg")
        Image.fromarray((noise[..., 0] > 128).astype("uint8") * 255).save(tmp_path / "masks" / f"{i}.png")
    broken = tmp_path / "images" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:-60])
    source = f'data.train=[{{layout="folder",images="{tmp_path}/images",masks="{tmp_path}/masks"}}]'
    overrides = (source, "data.workers=1", "data.batch_size=2", "data.val_fraction=0.2")
    with pytest.raises(
        TrainingStopped, match=r"stopped at step \d, .*3\.jpg.*max_bad_samples.*--resume auto; there is no"
    ):
        train(tiny_experiment(*overrides, output=tmp_path / "few"))
    assert json.loads((tmp_path / "few" / "tiny" / "exit.json").read_text())["code"] == 3
    with pytest.raises((DataError, TrainingStopped), match=r"3\.jpg.*mend it"):
        train(tiny_experiment(*overrides, "stability.bad_samples=false", output=tmp_path / "none"))
    run = train(tiny_experiment(*overrides, "stability.max_bad_samples=0.5", output=tmp_path / "many"))
    events = read_events(run)
    assert ["3.jpg" in event["message"] for event in events if event["kind"] == "bad_sample"] == [True]


@pytest.mark.parametrize(("bad", "error", "code"), [(1, DataError, 2), (3, TrainingStopped, 3)])
def test_data_that_fail_are_a_mistake_before_the_first_step_and_stop_the_run_after_it(
    tiny_experiment, monkeypatch, bad, error, code
):
    meet, windows = Watch.met, [0]

    def lose(watch: Watch, problems: Any) -> None:
        windows[0] += 1
        meet(watch, ["frog.jpg: cannot be read"] if windows[0] == bad else problems)

    monkeypatch.setattr(Watch, "met", lose)
    experiment = tiny_experiment("stability.bad_samples=false")
    with pytest.raises(error, match=r"frog\.jpg: cannot be read; mend it") as caught:
        train(experiment)
    end = json.loads((experiment.run_folder / "exit.json").read_text())
    assert (end["code"], end["reason"]) == (code, str(caught.value))
    assert ("the last clean checkpoint is" in end["reason"]) == (code == 3)
    train(experiment, resume="auto")
    assert json.loads((experiment.run_folder / "exit.json").read_text())["code"] == 0


def test_the_best_checkpoint_is_kept_among_the_last(tiny_experiment):
    run = train(tiny_experiment("phases.full.epochs=4", "checkpoints.keep_last=1", "checkpoints.keep_best=1"))
    best = (run / "checkpoints" / "best").read_text().strip()
    names = {path.name for path in list_checkpoints(run)}
    assert names == {best, "epoch_0005"}
    scores = {row["epoch"]: max(row["val/iou"], row["val_ema/iou"]) for row in rows(run) if "val/iou" in row}
    assert max(scores, key=lambda epoch: scores[epoch]) + 1 == int(best.removeprefix("epoch_"))


def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(tiny_experiment):
    experiment = tiny_experiment("phases.full.epochs=3")
    run = train(experiment)
    whole = {path.name: bits(path) for path in list_checkpoints(run)}
    train(experiment, resume=str(run / "checkpoints" / "epoch_0002"))
    assert {path.name: bits(path) for path in list_checkpoints(run)} == whole
    aside = sorted(path.name.rpartition("-")[0] for path in (run / "abandoned").iterdir())
    assert aside == ["epoch_0003", "epoch_0004"]
    assert [row["step"] for row in rows(run) if "train/loss" in row] == list(range(1, 9))


def test_a_kill_before_the_pointers_moved_loses_nothing(tiny_experiment):
    """The newest finished checkpoint counts, not the one that `latest` still names."""
    experiment = tiny_experiment("phases.full.epochs=2")
    run = train(experiment)
    (run / "checkpoints" / "latest").write_text("epoch_0001\n")
    before = rows(run)
    train(experiment, resume="auto")
    assert (run / "checkpoints" / "latest").read_text() == "epoch_0003\n"
    assert rows(run) == before


def test_a_start_that_failed_before_its_first_number_may_be_repeated(tiny_experiment, tmp_path):
    wrong = f'data.train=[{{layout="folder",images="{tmp_path}/none",masks="{tmp_path}/none"}}]'
    with pytest.raises(DataError):
        train(tiny_experiment(wrong))
    assert list_checkpoints(train(tiny_experiment()))


def test_test_data_that_vanish_during_training_do_not_spoil_the_run(tiny_experiment, tmp_path, monkeypatch):
    from camox.training import trainer

    def vanished(*_: Any, **__: Any) -> None:
        raise DataError("gone")

    monkeypatch.setattr(trainer, "evaluate", vanished)
    run = train(tiny_experiment('data.test=[{synthetic="habitats",count=4,size=32,seed=9}]'))
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    events = read_events(run)
    assert any(event["kind"] == "evaluation" and event["severity"] == "warning" for event in events)
