"""A step that was not finite is kept, and taken once more, with what it was taken with."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from camox.checkpoints.store import list_checkpoints
from camox.diagnosis.replay import replay_kept
from camox.errors import CheckpointError
from camox.models.decoder import Decoder
from camox.stability.guards import StepReport
from camox.training.replay import Attempted, Replays
from camox.training.step import Controls
from tests.training.test_trainer import bits, train


@contextmanager
def broken_decoder(bad: Callable[[int], bool]) -> Iterator[None]:
    """Lets the decoder divide its first output by zero in those of its training passes, counted from 1."""
    forward, count = Decoder.forward, [0]

    def broken(decoder: Decoder, *arguments: Any) -> Any:
        output = forward(decoder, *arguments)
        if decoder.training:
            count[0] += 1
            if bad(count[0]):
                first, *others = output
                return [first / torch.zeros(()), *others]
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "forward", broken)
        yield


def replays_of(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "replay"]


def test_the_module_the_operation_and_the_samples_are_named_and_named_again_later(tiny_experiment, capsys):
    with broken_decoder(lambda count: count in (2, 3)):  # a step, and its replay
        run = train(tiny_experiment())
    (event,) = replays_of(run)
    assert event["step"] == 2
    assert "decoder: aten.div.Tensor (tests/training/test_replay.py:" in event["message"]
    folder = Path(event["details"]["folder"])
    assert f"camox diagnose --replay {folder}" in event["message"]
    (found,) = event["details"]["ranks"]
    assert found["culprit"]["stage"] == "forward"
    assert len(found["samples"]) == 4

    with broken_decoder(lambda count: True):
        assert replay_kept(folder) == 1
    again = capsys.readouterr().out
    assert "decoder: aten.div.Tensor (tests/training/test_replay.py:" in again
    assert found["samples"][0] in again
    assert replay_kept(run) == 0  # nothing is broken any more
    assert "all values are finite" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", ["[]", "[1.0, 2.0, 3.0]"])
def test_a_replay_sees_the_very_same_batch_weights_and_random_numbers(tiny_experiment, monkeypatch, sizes):
    """The loss of the replayed step is that of the step itself, bit for bit: with augmentation and routing noise."""
    from camox.training.step import TOTAL, TrainingStep

    losses, seen = TrainingStep.losses, []

    def note(step: Any, *arguments: Any) -> Any:
        found = losses(step, *arguments)
        seen.append(found[TOTAL].item())
        if len(seen) == 3:
            return found | {TOTAL: found[TOTAL] * float("nan")}
        return found

    monkeypatch.setattr(TrainingStep, "losses", note)
    # Noise until the end: by default none is left at the third step of four.
    noise = ("model.moe.router.noise=1", "model.moe.router.noise_fraction=1")
    run = train(tiny_experiment(*noise, f"data.multi_scale={sizes}"))
    assert len(replays_of(run)) == 1
    assert seen[2] == seen[3]
    assert len(set(seen)) == 4

    folder = Path(replays_of(run)[0]["details"]["folder"])
    replay_kept(folder)
    assert seen[-1] == seen[2]


@pytest.mark.slow
def test_replaying_changes_nothing_in_the_run(tiny_experiment, tmp_path):
    """Of two micro-batches the first is at fault, and the second not replayed: random numbers are drawn fewer times."""
    noisy = ("model.moe.router.noise=1", "model.moe.router.noise_fraction=1")
    halves = ("data.batch_size=2", "optimizer.accumulate=2", "data.image_size=64")

    def trained(name: str, bad: set[int], *overrides: str) -> Path:
        with broken_decoder(lambda count: count in bad):
            return train(tiny_experiment(*noisy, *halves, *overrides, output=tmp_path / name))

    ours, theirs = trained("with", {3, 5}), trained("without", {3}, "stability.replays=0")
    assert len(replays_of(ours)) == 1
    assert replays_of(theirs) == []
    assert not (theirs / "replays").exists()
    assert [bits(path) for path in list_checkpoints(ours)] == [bits(path) for path in list_checkpoints(theirs)]


def report(step: int, finite: bool, terms: tuple[str, ...] = ()) -> StepReport:
    return StepReport(step, finite, 1.0, 1.0, finite, False, False, terms)


@pytest.mark.parametrize(("scaled", "reports", "wanted"), [
    (False, [report(1, True), report(2, False), report(3, False)], 2),
    (True, [report(1, True), report(2, False), report(3, True)], None),
    (True, [report(1, True), report(2, False), report(3, False)], 3),
    (True, [report(1, False, ("dice",)), report(2, True)], 1),
    (True, [report(1, False), report(2, False, ("dice",)), report(3, False)], 2),
    (False, [report(1, True)], None),
])  # fmt: skip
def test_which_steps_are_taken_once_more(tiny_experiment, scaled, reports, wanted):
    replays = Replays(tiny_experiment(), [], scaled)
    for step in (1, 2, 3):
        replays.note(Attempted.of(step, 0, [], Controls(1e-3, 0.0, 0.0)))
    found = replays._wanted(reports)
    assert (None if found is None else found.step) == wanted


def test_a_row_of_bad_steps_and_more_than_the_budget_are_not_taken_again(tiny_experiment):
    replays, wanted = Replays(tiny_experiment("stability.replays=2"), [], scaled=False), []
    for step, finite in enumerate([False, False, False, True, False, True, False], start=1):
        replays.note(Attempted.of(step, 0, [], Controls(1e-3, 0.0, 0.0)))
        found = replays._wanted([report(step, finite)])
        wanted += [] if found is None else [found.step]
    assert wanted == [1, 5]


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "replay.json").unlink(), "replay.json is missing"),
    (lambda folder: (folder / "replay.json").write_text("{"), "cannot be read"),
    (lambda folder: (folder / "replay.json").write_text('{"version": 9}'), "another version"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read"),
    (lambda folder: (folder / "rng_0.safetensors").unlink(), "rng_0.safetensors"),
])  # fmt: skip
def test_a_damaged_one_is_named(tiny_experiment, damage, message):
    with broken_decoder(lambda count: count == 2):
        run = train(tiny_experiment())
    folder = Path(replays_of(run)[0]["details"]["folder"])
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        replay_kept(folder)


def test_a_run_without_one_says_so(tiny_experiment):
    run = train(tiny_experiment())
    with pytest.raises(CheckpointError, match=r"tiny has kept no step: all that it took were finite"):
        replay_kept(run)
    with pytest.raises(CheckpointError, match="no such folder"):
        replay_kept(run / "nowhere")


def test_two_overflows_in_a_row_under_fp16_are_finite_in_fp32(tiny_experiment, monkeypatch):
    from camox.training.step import TrainingStep

    unscaled, count = TrainingStep._judge, [0]

    def judge(step: Any, loss: Any, terms: Any, norms: Any) -> Any:
        count[0] += 1
        if count[0] in (1, 2):
            norms = norms._replace(total=norms.total * float("inf"))
        return unscaled(step, loss, terms, norms)

    monkeypatch.setattr(TrainingStep, "_judge", judge)
    run = train(tiny_experiment("phases.frozen.epochs=2"), fp16=True)
    (event,) = replays_of(run)
    assert event["step"] == 2
    assert "too large for fp16" in event["message"]
