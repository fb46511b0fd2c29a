"""Runs on streamed sets: the same for any number of workers, and after any interruption."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator

from camox.checkpoints.store import list_checkpoints
from camox.data.loading import TrainSet, train_loader
from camox.data.streams import Reading, open_stream
from camox.diagnosis.replay import replay_kept
from camox.errors import DataError, ExperimentError, TrainingPaused, TrainingStopped
from camox.training.check import check
from camox.training.run_state import Position
from camox.training.sampler import EpochBatches
from camox.training.step import TOTAL, TrainingStep
from camox.training.stream_batches import StreamBatches
from camox.training.trainer import Trainer
from tests.data.hub_sets import encoded, rows, write_shards
from tests.training.test_replay import broken_decoder, replays_of
from tests.training.test_trainer import bits, numbers, read_events, stopped_after, train

VAL = 'data.val=[{synthetic="habitats",count=4,size=32,tiny=0.0}]'
FLIPPED = [{"name": "HorizontalFlip", "p": 0.5}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "set", rows(14), 3)


@pytest.fixture
def streamed(tiny_experiment: Any, folder: Path) -> Any:
    """The tiny experiment on a stream: epochs of 12, 3 batches each, blocks of 5 rows."""
    source = f'data.train=[{{hub="{folder}",streaming=true,count=12,shuffle_buffer=5}}]'
    return lambda *overrides, **given: tiny_experiment(source, VAL, "data.val_fraction=0.0", *overrides, **given)


def reading(folder: Path, rank: int = 0, ranks: int = 1) -> Reading:
    return Reading(open_stream({"hub": str(folder), "count": 12, "shuffle_buffer": 5}), 3, rank, ranks)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_are_the_same_for_any_number_of_workers(folder, workers):
    def batches(workers: int) -> list:
        sampler = StreamBatches(reading(folder), 4)
        loader = train_loader(TrainSet(sampler.reading, 32, FLIPPED, seed=3), sampler, workers, pin_memory=False)
        found = []
        for epoch in range(3):
            sampler.set_position(epoch)
            for batch in loader:
                sampler.consumed(1)
                found.append((batch.names, batch.images, sampler.reading.place))
        return found

    for (names, images, place), (theirs, others, other_place) in zip(batches(0), batches(workers), strict=True):
        assert names == theirs
        assert images.equal(others)
        assert place == other_place


def test_the_place_is_that_of_the_last_batch_that_was_trained_on(folder):
    sampler = StreamBatches(reading(folder), 2)
    keys = list(sampler)
    sampler.consumed(2)
    again = StreamBatches(reading(folder), 2)
    again.reading.load_state_dict(json.loads(json.dumps(sampler.reading.state_dict())))
    again.set_position(0, start=2)
    assert list(again) == keys[2:]


def test_numbers_count_an_epochs_samples_over_all_ranks(folder):
    batches = [list(StreamBatches(reading(folder, rank, 2), 3)) for rank in (0, 1)]
    assert [len(of_rank) for of_rank in batches] == [2, 2]
    found = [row.number for of_rank in batches for batch in of_rank for _, row in batch]
    assert sorted(found) == list(range(12))


def test_sizes_are_those_of_other_sets(folder):
    """All ranks have one size per batch, and a part of an epoch the sizes of the whole."""
    sampler = StreamBatches(reading(folder), 2, sizes=(32, 64, 96))
    sizes = [{size for _, _, size in batch} for batch in sampler]
    indexed = EpochBatches([1.0] * 12, 2, seed=3, sizes=(32, 64, 96))
    assert sizes == [{size for _, _, size in batch} for batch in indexed]
    sampler.set_position(0, start=4)
    assert [{size for _, _, size in batch} for batch in sampler] == sizes[4:]


def test_fewer_samples_than_a_batch_are_refused(folder):
    with pytest.raises(ExperimentError, match="12 training samples cannot fill one batch of 7 on 2 processes"):
        StreamBatches(reading(folder, 0, 2), 7)


@pytest.mark.parametrize(("stop", "workers"), [pytest.param(2, 2, marks=pytest.mark.slow), (5, 0)])
def test_a_run_resumed_in_mid_stream_is_the_uninterrupted_one(streamed, tmp_path, stop, workers):
    whole = train(streamed(output=tmp_path / "whole"))
    experiment = streamed(f"data.workers={workers}", output=tmp_path / "parts")
    with stopped_after(stop), pytest.raises(TrainingPaused):
        train(experiment)
    parts = train(experiment, resume="auto")
    assert numbers(parts) == numbers(whole)
    theirs = {path.name: bits(path) for path in list_checkpoints(whole)}
    ours = {path.name: bits(path) for path in list_checkpoints(parts)}
    assert {name: ours[name] for name in theirs} == theirs


def test_epochs_and_phases_go_on_with_the_stream(streamed, monkeypatch):
    seen = trained_names(monkeypatch)
    train(streamed("phases.full.batch_size=2", "phases.full.epochs=2"))
    assert len(seen) == 36
    everything = {Path(row["image_name"]).stem for row in rows(14)}
    assert set(seen[:14]) == set(seen[14:28]) == everything


def trained_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Will hold the names of all samples in the order in which steps had them."""
    take, seen = TrainingStep.__call__, []

    def note(step: TrainingStep, shell: Any, window: Any, controls: Any) -> None:
        seen.extend(name for batch in window for name in batch.names)
        take(step, shell, window, controls)

    monkeypatch.setattr(TrainingStep, "__call__", note)
    return seen


def test_bad_samples_count_as_elsewhere(streamed, folder, tmp_path):
    made = rows(14)
    for number in (1, 6, 11):
        made[number]["image"]["bytes"] = encoded(torch.zeros(32, 40, 3).byte().numpy(), "JPEG")[:-2]
    write_shards(folder, made, 3)
    run = train(streamed("stability.max_bad_samples=0.9", output=tmp_path / "few"))
    told = [event["message"] for event in read_events(run) if "the JPEG is truncated" in event["message"]]
    # Each once, though some come in both epochs.
    assert sorted(message.split("row 1 of ")[1][:6] for message in told) == ["file 1", "file 2", "file 3"]
    with pytest.raises((DataError, TrainingStopped), match="the JPEG is truncated"):
        train(streamed("stability.bad_samples=false", output=tmp_path / "none"))


def test_a_bad_step_is_kept_with_its_batch_and_taken_once_more(streamed, monkeypatch):
    """The batch cannot be loaded again by index: its loss is that of the step itself, now and from the disk."""
    losses, seen = TrainingStep.losses, []

    def note(step: Any, *arguments: Any) -> Any:
        found = losses(step, *arguments)
        seen.append(found[TOTAL].item())
        return found | {TOTAL: found[TOTAL] * float("nan")} if len(seen) == 3 else found

    monkeypatch.setattr(TrainingStep, "losses", note)
    run = train(streamed("model.moe.router.noise=1", "model.moe.router.noise_fraction=1"))
    (event,) = replays_of(run)
    assert seen[2] == seen[3]
    replay_kept(Path(event["details"]["folder"]))
    assert seen[-1] == seen[2]


def test_the_samples_of_a_bad_step_are_named(streamed, monkeypatch):
    seen = trained_names(monkeypatch)
    with broken_decoder(lambda count: count in (2, 3)):  # a step, and its replay
        run = train(streamed())
    (event,) = replays_of(run)
    (found,) = event["details"]["ranks"]
    assert found["samples"] == seen[4:8]


def test_a_rollback_goes_back_in_the_stream_too(streamed, monkeypatch):
    """To the same rows in another order; nothing is left out, because no sample has an index.

    After 12 of 14 rows the second pass begins with a block of five: two bad steps later it comes again.
    """
    seen = trained_names(monkeypatch)
    with broken_decoder(lambda count: count in (5, 6)):
        run = train(
            streamed("stability.max_skipped_steps=1", "stability.replays=0", "phases.full.epochs=2", "data.workers=1")
        )
    (rollback,) = [event for event in read_events(run) if event["kind"] == "rollback"]
    assert rollback["details"]["left_out"] == []
    first, again = seen[14:19], seen[24 + 2 : 24 + 7]
    assert set(first) == set(again)
    assert first != again


def test_on_another_number_of_processes_the_stream_begins_anew(streamed):
    trainer = Trainer(streamed(), accelerator=Accelerator(cpu=True))
    trainer._build()
    trainer.train_source.place = {**trainer.train_source.place, "offset": 4}
    remembered = trainer.state.remember(Position(step=3, epoch=1))
    for ranks, place in ((1, {"block": 0, "offset": 4}), (2, {"block": 0, "offset": 0})):
        trainer.train_source.begin(0)
        trainer.state.restore({**remembered.state, "ranks": ranks}, remembered, "it")
        assert place.items() <= trainer.train_source.place.items()
    assert trainer.train_source.place["start"]["pass"] == 1  # another order than that of the beginning


def test_check_says_what_is_streamed(streamed, capsys):
    check(streamed())
    printed = " ".join(capsys.readouterr().out.split())
    assert "its 3 files are streamed in random order" in printed
    assert "ready to train on 12 samples" in printed
    assert "1 epoch of 3 steps on one process" in printed
