"""The two loops that suite `step` times against each other do the same training."""

import dataclasses

import pytest
import torch

from benchmarking import loop
from benchmarking.settings import Settings
from camox.training.reporting import Reporter

TOY = Settings(backbone="resnet10t", image_size=64, batch=2, width=8, rounds=2)


@pytest.fixture
def logged(monkeypatch):
    """The steps whose values were logged, in order."""
    steps = []
    log = Reporter.log

    def note(self, values, step, epoch, phase):
        steps.append(step)
        log(self, values, step, epoch, phase)

    monkeypatch.setattr(Reporter, "log", note)
    monkeypatch.setattr(loop, "ROUTINGS", 1)
    monkeypatch.setattr(loop, "STEPS", 3)
    return steps


def equal(one, other):
    """Whether all floating-point tensors are equal up to rounding."""
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], atol=2e-5, rtol=1e-3, msg=name)


def test_the_bare_loop_trains_as_the_trainer_does(logged, capsys):
    trainer = loop.run_trainer(TOY)
    assert trainer.at.step == 10  # one round to warm up and two, of three steps; one more so that the last round ends
    assert trainer.bare.average.updates.item() == 9
    torch.manual_seed(0)
    trainer.bare.step(trainer.batch)
    equal(trainer.network, trainer.bare.network)
    equal(trainer.average.model, trainer.bare.average.model)
    moments = [
        torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
        for optimizer in (trainer.optimizer.optimizer, trainer.bare.optimizer)
    ]
    torch.testing.assert_close(*moments, atol=1e-6, rtol=1e-2)
    assert moments[0].abs().max() > 1e-4
    assert capsys.readouterr().out == ""


def test_a_round_has_one_step_that_is_logged_and_counts_as_one_step(logged, monkeypatch):
    trainers = []
    run = loop.run_trainer

    def note(settings):
        trainers.append(run(settings))
        return trainers[0]

    monkeypatch.setattr(loop, "run_trainer", note)
    samples = loop.measure_loops(TOY)
    assert logged == [3, 6, 9, 10]
    for name, found in trainers[0].samples.items():
        assert len(found) == 9  # on a CPU they take turns after each step
        rounds = found[3:6], found[6:]
        expected = [sum(sample.process for sample in of_round) / 3 for of_round in rounds]
        assert [sample.process for sample in samples[name]] == expected


@pytest.mark.parametrize(
    ("least", "most", "rounds", "limits"),
    [
        (1.005, 1.02, 3, [1.05, 1.02]),
        (1.0, 1.03, 3, [1.05]),  # a range in which 1.02 is lost
        (1.01, 1.01, 2, [1.05]),  # too few rounds to know
    ],
)
def test_the_narrow_limit_is_asked_where_the_noise_lets_it_be_seen(least, most, rounds, limits):
    share = {"median": 1.01, "least": least, "most": most}
    targets = loop.loop_targets(share, dataclasses.replace(TOY, rounds=rounds))
    assert [target.at_most for target in targets] == limits
    assert len({target.what for target in targets}) == len(targets)
