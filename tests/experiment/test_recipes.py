"""The recipes have the numbers they are named for, and each describes a network that can be built."""

import json
from pathlib import Path

import pytest
import torch

from camox.experiment import Experiment, ResolvedPhase
from camox.models.camoxpert import CamoXpert

RECIPES = Path(__file__).parents[2] / "experiments"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml") if path.name != "base.toml")


def recipe(name: str) -> Experiment:
    return Experiment.load(RECIPES / f"{name}.toml", ["model.pretrained=false"])


@pytest.mark.parametrize("name", NAMES)
def test_its_network_can_be_built(name, monkeypatch):
    monkeypatch.setenv("CAMOX_OPEN_PAIRS", "open_pairs")
    with torch.device("meta"):
        network = CamoXpert.from_experiment(recipe(name))
    assert network.scales == (4, 8, 16, 32)


def test_the_origin_differs_from_the_main_job_in_its_router_alone():
    main, origin = recipe("sparse_moe_416"), recipe("sparse_moe_416_origin")
    ours, theirs = main.plain(), origin.plain()
    assert {name for name in ours if ours[name] != theirs[name]} == {"experiment", "model", "optimizer", "precision"}
    assert {key for key in ours["optimizer"] if ours["optimizer"][key] != theirs["optimizer"][key]} == {
        "router_lr_mult"
    }
    assert {key for key in ours["model"] if ours["model"][key] != theirs["model"][key]} == {"moe"}
    assert {key for key in ours["model"]["moe"] if ours["model"]["moe"][key] != theirs["model"]["moe"][key]} == {
        "router",
        "balance",
    }
    router, balance = origin.model.moe.router, origin.model.moe.balance
    assert (router.logit_limit_mode, router.logit_limit, router.prob_floor, router.noise) == ("clamp", 10, 1e-6, 0)
    assert (balance.kind, balance.coefficient, balance.coefficient_after_warmup) == ("importance", 1e-5, 5e-4)
    assert (balance.warmup_epochs, balance.entropy, balance.z_loss, balance.mutual_information) == (20, 1e-3, 0, 0)
    assert origin.optimizer.router_lr_mult == 1  # one rate for all
    assert (origin.optimizer.router_clip, origin.optimizer.clip, origin.precision.init_scale) == (0.1, 0.5, 512)


def test_the_dense_twin_has_seven_experts_and_is_the_main_job_otherwise():
    main, dense = recipe("sparse_moe_416"), recipe("dense_416")
    assert (dense.model.moe.mode, len(dense.model.moe.experts)) == ("dense", 7)
    assert dense.model.moe.experts == (*main.model.moe.experts, "hybrid")
    for table in ("data", "loss", "optimizer", "schedule", "phases", "precision", "ema"):
        assert getattr(dense, table) == getattr(main, table), table


@pytest.mark.parametrize(
    ("name", "batches", "lr", "unfreeze", "checkpointing"),
    [("small_batch_384", (2, 1), 2.5e-4, "progressive", True), ("large_batch_384", (16, 4), 1e-3, "all", False)],
)
def test_batch_recipes_have_the_agreed_numbers(name, batches, lr, unfreeze, checkpointing):
    experiment = recipe(name)
    assert experiment.phases_resolved() == (
        ResolvedPhase("frozen", 30, ("backbone",), batches[0], accumulate=4, lr=lr, image_size=384),
        ResolvedPhase("full", 90, (), batches[1], accumulate=4, lr=lr, image_size=384, unfreeze=unfreeze),
    )
    assert experiment.model.gradient_checkpointing == checkpointing
    assert (experiment.schedule.name, experiment.schedule.min_lr) == ("cosine", 1e-5)


def test_recovery_is_the_second_stage_alone_at_a_low_rate():
    experiment = recipe("recovery_384")
    (phase,) = experiment.phases_resolved()
    assert (phase.batch_size, phase.accumulate, phase.lr, phase.unfreeze) == (1, 4, 1.5e-4, "progressive")
    assert (experiment.schedule.min_lr, experiment.model.deep_supervision) == (1e-5, True)
    assert experiment.experiment.init_from is not None


def test_the_larger_twin_differs_from_the_main_job_in_pixels_and_not_in_steps():
    main, larger = recipe("sparse_moe_416"), recipe("sparse_moe_704")
    ours, theirs = main.plain(), larger.plain()
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "experiment", "data", "model", "optimizer", "phases",
    }  # fmt: skip
    assert larger.data.image_size == 704
    for one, other in zip(main.phases_resolved(), larger.phases_resolved(), strict=True):
        assert other.batch_size == 4
        assert other.batch_size * other.accumulate == one.batch_size * one.accumulate
        assert (other.name, other.epochs, other.lr, other.freeze) == (one.name, one.epochs, one.lr, one.freeze)
    assert main.model.model_copy(update={"gradient_checkpointing": False}) == larger.model


def test_the_counted_memory_of_both_is_within_its_limit():
    """By the committed counts, and on the cards that their first lines name."""
    counted = json.loads((RECIPES.parent / "benchmarks/results/memory.json").read_text())
    assert [target["at_most"] for target in counted["targets"]] == [10, 15]
    assert all(target["met"] for target in counted["targets"])
    needed = {name: row["needed GiB"] for name, row in counted["results"]["step"].items()}
    for name, card in (("sparse_moe_416", 6.0), ("sparse_moe_704", 8.0)):
        experiment = recipe(name)
        checkpointing = ", checkpointing" if experiment.model.gradient_checkpointing else ""
        for phase in experiment.phases_resolved():
            title = f"{phase.image_size}², {phase.name}, {phase.batch_size} images, fp16{checkpointing}"
            assert needed[title] < 0.95 * card
