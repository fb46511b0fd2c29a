"""Memory and time: what is estimated adds up, and what does not fit is said with a remedy."""

import pytest

from camox.diagnosis.estimates import CARDS, GIB, PhaseMemory, card_capacity, check_estimates
from camox.errors import ExperimentError
from camox.models.camoxpert import CamoXpert
from camox.training.building import build_training_step
from camox.training.trainer import Trainer


@pytest.fixture
def small(subject):
    """The tiny experiment with experts at one scale only: counting goes by the number of operators."""
    return lambda *overrides: subject("model.moe.scales=[4]", "model.refinement_steps=0", *overrides)


@pytest.mark.parametrize(
    ("card", "gib"),
    [("T4", 14.6), ("t4", 14.6), ("a100-40gb", 39.4), ("rtx3090", 23.7), ("16GiB", 16), ("24 GB", 24), ("7.5g", 7.5)],
)
def test_cards_have_names_and_sizes(card, gib):
    assert card_capacity(card) == gib


def test_an_unknown_card_is_refused_with_what_there_is():
    with pytest.raises(ExperimentError, match=r'"T5" is not known: give its memory, such as 16GiB, or one of .*T4'):
        card_capacity("T5")


def test_names_of_cards_are_distinct():
    assert len({card_capacity(name) for name in CARDS}) > 5
    assert all(card_capacity(name) == gib for name, gib in CARDS.items())


def test_the_largest_batch_fits_and_one_more_does_not():
    memory = PhaseMemory(state=GIB, constant=0.1 * GIB, per_image=0.3 * GIB, saved_per_image=0.2 * GIB)
    largest = memory.largest_batch(8 * GIB)
    assert memory.needed(largest) <= 8 * GIB < memory.needed(largest + 1)


def test_the_tiny_experiment_fits_a_t4(small):
    finding = check_estimates(small(), "T4", 1)
    assert finding.status == "pass"
    frozen, full = finding.values["phases"]["frozen"], finding.values["phases"]["full"]
    assert frozen["state_gib"] < full["state_gib"]
    assert frozen["activations_per_image_gib"] < full["activations_per_image_gib"]
    assert 0 < full["saved_per_image_gib"] <= full["activations_per_image_gib"]
    assert full["seconds_per_epoch_here"] > 0
    assert finding.values["measured_on"] in ("cpu", "cuda")


@pytest.mark.slow
def test_several_processes_hold_gradients_twice_and_sizes_count_as_the_largest(small):
    def full(*overrides, processes=1):
        return check_estimates(small(*overrides), "T4", processes).values["phases"]["full"]

    one, two = full("data.image_size=64"), full("data.multi_scale=[0.5, 2.0]", processes=2)
    assert two["activations_per_image_gib"] == pytest.approx(one["activations_per_image_gib"])
    gradients = sum(p.nbytes for p in small().network.parameters()) / GIB
    assert two["state_gib"] - one["state_gib"] == pytest.approx(gradients)


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_how_many_would(small, messages):
    finding = check_estimates(small(), "0.9GiB", 1)
    assert finding.status == "pass"
    largest = check_estimates(small("precision.dtype=fp32"), "0.9GiB", 1).values["phases"]["full"]["largest_batch"]
    broken = small("precision.dtype=fp32", f"phases.full.batch_size={2 * largest}")
    finding = check_estimates(broken, "0.9GiB", 1)
    assert finding.status == "fail"
    assert "phase full needs about" in messages(finding)
    assert "images fit: lower batch_size and raise accumulate" in messages(finding)
    assert "set model.gradient_checkpointing = true" in messages(finding)


def test_the_builder_makes_what_the_trainer_makes(tiny_experiment):
    """The trainer still builds its own: until it calls the builder, the two must not drift apart."""
    experiment = tiny_experiment("optimizer.backbone_lr_mult=0.5", "ema.decay=0.9", "model.moe.balance.entropy=0.1")
    trainer = Trainer(experiment)
    trainer._build()
    ours = build_training_step(experiment, trainer.accelerator, CamoXpert.from_experiment(experiment))
    theirs = trainer.training_step
    assert vars(ours).keys() == vars(theirs).keys()
    assert ours.objective.weights == theirs.objective.weights
    assert vars(ours.routing_objective) == vars(theirs.routing_objective)
    assert (ours.average.decay, ours.average.warmup) == (theirs.average.decay, theirs.average.warmup)
    assert (ours.clip, ours.router_clip) == (theirs.clip, theirs.router_clip)
    groups = [[{k: v for k, v in g.items() if k != "params"} for g in s.optimizer.param_groups] for s in (ours, theirs)]
    assert groups[0] == groups[1]
