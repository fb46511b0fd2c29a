"""An epoch belongs to one phase, trains the stages it should, and its steps have what the schedules set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.experiment import ResolvedPhase
from camox.stability.recovery import Adjustments
from camox.training.phases import begins_stage, controls_at, frozen_stages, phase_of


def phase(epochs: int, unfreeze: str = "all", freeze: tuple[str, ...] = ()) -> ResolvedPhase:
    return ResolvedPhase("p", epochs, freeze, 4, 1, 1e-3, 32, unfreeze)


def test_every_epoch_has_its_phase(tiny_experiment):
    phases = tiny_experiment("phases.frozen.epochs=2", "phases.full.epochs=3").phases_resolved()
    assert [phase_of(epoch, phases).name for epoch in range(5)] == ["frozen"] * 2 + ["full"] * 3


def test_a_phase_takes_over_what_it_leaves_open(tiny_experiment):
    phases = tiny_experiment(
        "phases.full.lr=5e-4", "phases.full.image_size=64", "optimizer.accumulate=3"
    ).phases_resolved()
    assert [(p.lr, p.image_size, p.accumulate, p.batch_size) for p in phases] == [(1e-3, 32, 3, 4), (5e-4, 64, 3, 4)]


def test_a_phase_freezes_all_stages_or_none(tiny_experiment):
    phases = tiny_experiment("phases.frozen.epochs=2", "phases.full.epochs=2").phases_resolved()
    assert [frozen_stages(epoch, phases) for epoch in range(4)] == [4, 4, 0, 0]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [0]), (2, [2, 0]), (3, [2, 1, 0]), (4, [3, 2, 1, 0]), (6, [3, 2, 2, 1, 0, 0]), (8, [3, 3, 2, 2, 1, 1, 0, 0])],
)
def test_stages_join_one_by_one_over_a_progressive_phase(epochs, expected):
    phases = [phase(2, freeze=("backbone",)), phase(epochs, "progressive"), phase(1)]
    assert [frozen_stages(epoch, phases) for epoch in range(epochs + 3)] == [4, 4, *expected, 0]


def test_a_stage_begins_with_the_run_with_a_phase_and_where_more_is_trained():
    phases = [phase(2, freeze=("backbone",)), phase(6, "progressive"), phase(2)]
    begun = [epoch for epoch in range(10) if begins_stage(epoch, phases)]
    assert begun == [0, 2, 3, 5, 6, 8]


@given(st.integers(1, 200))
def test_a_progressive_phase_gives_its_stages_equal_parts_and_ends_with_all(epochs):
    frozen = [frozen_stages(epoch, [phase(epochs, "progressive")]) for epoch in range(epochs)]
    assert frozen == sorted(frozen, reverse=True)
    assert frozen[-1] == 0
    if epochs >= 4:
        parts = [frozen.count(stages) for stages in range(4)]
        assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["schedule.name=constant"], {1: 1e-3, 5: 1e-3, 5.5: 2e-3, 10: 2e-3}),
        (["schedule.name=multistep", "schedule.milestones=[2, 7]"], {2: 1e-3, 2.5: 1e-4, 7: 2e-4, 7.5: 2e-5}),
        (["schedule.name=multistep", "schedule.milestones=[2]", "schedule.gamma=0.5"], {2.5: 5e-4, 10: 1e-3}),
        (["schedule.name=multistep", "schedule.milestones=[2]", "schedule.min_lr=3e-4"], {2.5: 3e-4, 10: 3e-4}),
        (["schedule.name=plateau", "schedule.gamma=0.5"], {2: 2.5e-4, 7: 5e-4}),
        (["schedule.name=cosine"], {1: 1e-3, 10: 1e-5}),
        (["schedule.name=one_cycle"], {1e-9: 4e-5, 1: 1e-3, 10: 1e-5}),
    ],
)
def test_the_rate_is_the_schedules_at_the_height_of_the_phase(tiny_experiment, overrides, expected):
    """Two reductions by a plateau, which only a plateau minds."""
    experiment = tiny_experiment(*overrides, "phases.frozen.epochs=5", "phases.full.epochs=5", "phases.full.lr=2e-3")
    phases = experiment.phases_resolved()
    for position, rate in expected.items():
        here = phases[0] if position <= 5 else phases[1]
        controls = controls_at(position, experiment, here, reductions=2)
        assert controls.learning_rate == pytest.approx(rate, rel=1e-6), position


def test_routing_noise_and_balance_follow_their_own_settings(tiny_experiment):
    experiment = tiny_experiment(
        "phases.full.epochs=9", "model.moe.balance.warmup_epochs=4", "model.moe.router.noise_fraction=0.5"
    )
    controls = controls_at(2.0, experiment, experiment.phases_resolved()[1], reductions=0)
    assert controls.balance_coefficient == pytest.approx(5e-4)
    assert controls.noise_share == pytest.approx(0.6)
    off = tiny_experiment("model.moe.balance.kind=none")
    assert controls_at(2.0, off, off.phases_resolved()[1], reductions=0).balance_coefficient == 0


def test_what_recovery_has_changed_is_in_the_controls(tiny_experiment):
    experiment = tiny_experiment("phases.full.epochs=9", "model.moe.balance.warmup_epochs=4")
    changed = Adjustments(
        rate=0.5, router_rate=0.1, router_clip=0.25, balance_coefficient=10.0, balance_warmup=2.0, noise_from=100
    )
    phase = experiment.phases_resolved()[1]
    plain = controls_at(2.0, experiment, phase, reductions=0)
    controls = controls_at(2.0, experiment, phase, 0, changed, step=350)
    assert controls.learning_rate == pytest.approx(0.5 * plain.learning_rate)
    assert controls.balance_coefficient == pytest.approx(10 * plain.balance_coefficient / 2)
    assert (controls.router_rate, controls.router_clip, controls.noise_share) == (0.1, 0.25, 0.5)
