"""Damaged checkpoints, with hashes that tell and with hashes that were made to fit: an answer, or a CheckpointError."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import strategies as st

from camox.checkpoints.folders import clean_leftovers, list_checkpoints, rank_checkpoints, resolve
from camox.checkpoints.inspection import main as inspect
from camox.checkpoints.manifest import MANIFEST
from camox.checkpoints.scan import last_clean, scan
from camox.checkpoints.store import Checkpoint, read_checkpoint
from camox.errors import CheckpointError
from camox.experiment import Experiment
from camox.inference.loading.loaded_model import load_model
from camox.models.camoxpert import CamoXpert
from camox.training.run_state import open_to_resume
from camox.training.trainer import Trainer
from tests.fuzz.cases import few_or_many, run_cases, survives
from tests.fuzz.damage import damage, seal_again, ways

HASHED = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "rng_0.safetensors",
    "state.json",
    "config.json",
)
HEADERS = 0.02
"""Share of a trained network's file that its header is at most: the part that is parsed."""


def inspected(*arguments: str) -> int:
    """The exit code of `camox inspect` in a terminal that takes UTF-8 alone."""
    with (
        redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),
        redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8")),
    ):
        return inspect(arguments)


def read_all(checkpoint: Checkpoint) -> None:
    """All that a checkpoint can be asked for."""
    survives(lambda: checkpoint.state)
    survives(lambda: checkpoint.config)
    for stem in checkpoint.stems:
        survives(lambda stem=stem: checkpoint.tensors(stem))


def ask_everything(run: Path, damaged: Path) -> None:
    """Everything that reads a run or a checkpoint without building a model."""
    survives(lambda: scan(damaged))
    assert {report.path for report in scan(run).subjects} >= set(list_checkpoints(run))
    for verify in (True, False):
        checkpoint = survives(lambda verify=verify: read_checkpoint(damaged, verify))
        if checkpoint is not None:
            read_all(checkpoint)
    for pointer in ("best", "latest"):
        survives(lambda pointer=pointer: resolve(run, (pointer,)))
    rank_checkpoints(run, "iou")
    assert inspected(str(damaged), "--all") in (0, 1, 2)
    assert inspected(str(damaged), "--all", "--json") in (0, 1, 2)
    assert inspected(str(run)) in (0, 1, 2)
    assert inspected(str(run), "--last-clean") == 0
    clean_leftovers(run)


@few_or_many(25, 500)
def test_damage_is_seen_and_the_checkpoint_beside_it_found(copies: Any, saved_run: Path, cases: int) -> None:
    def each(case: Any) -> None:
        name, how = case
        run, whole, damaged = copies(saved_run)
        before = (damaged / name).read_bytes()
        damage(damaged / name, how)
        is_changed = not (damaged / name).is_file() or (damaged / name).read_bytes() != before
        ask_everything(run, damaged)
        if is_changed:
            with pytest.raises(CheckpointError, match="epoch_0001"):
                read_checkpoint(damaged)
            assert last_clean(run) == whole
        read_checkpoint(whole)

    run_cases(st.tuples(st.sampled_from(HASHED), ways()), each, cases)


@few_or_many(25, 500)
def test_a_damaged_manifest(copies: Any, saved_run: Path, cases: int) -> None:
    def each(how: Any) -> None:
        run, whole, damaged = copies(saved_run)
        damage(damaged / MANIFEST, how)
        ask_everything(run, damaged)
        read_checkpoint(whole)

    run_cases(ways(), each, cases)


@few_or_many(25, 500)
def test_damage_that_fits_its_hash(copies: Any, saved_run: Path, cases: int) -> None:
    def each(case: Any) -> None:
        name, how = case
        run, whole, damaged = copies(saved_run)
        damage(damaged / name, how)
        seal_again(damaged)
        ask_everything(run, damaged)
        read_checkpoint(whole)

    run_cases(st.tuples(st.sampled_from(HASHED), ways()), each, cases)


@few_or_many(12, 250)
def test_a_model_of_damage_that_fits_its_hash(copies: Any, trained_run: Path, cases: int) -> None:
    images = torch.zeros(1, 3, 64, 64)

    def each(case: Any) -> None:
        name, how = case
        _, _, damaged = copies(trained_run)
        damage(damaged / name, how)
        seal_again(damaged)
        for weights in ("model", "ema"):
            model = survives(lambda weights=weights: CamoXpert.from_pretrained(damaged, weights))
            if model is not None:
                assert model(images).logits.shape == (1, 1, 64, 64)
        survives(lambda: load_model(damaged))

    names = st.sampled_from(["config.json", "config.json", "model.safetensors", "state.json"])
    run_cases(st.tuples(names, ways(HEADERS)), each, cases)


@few_or_many(25, 400)
def test_a_state_of_damage_that_fits_its_hash(
    copies: Any, trained_run: Path, small_experiment: Experiment, cases: int
) -> None:
    trainer = Trainer(small_experiment, None, Accelerator(cpu=True))
    trainer._build()

    def restore(path: Path) -> None:
        checkpoint = open_to_resume(path)
        with checkpoint.restoring():
            trainer.state.restore(checkpoint.state, checkpoint, path)
        for parameter in trainer.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.optimizer.step()

    def each(case: Any) -> None:
        name, how = case
        _, _, damaged = copies(trained_run)
        damage(damaged / name, how)
        seal_again(damaged)
        generator = torch.get_rng_state()
        survives(lambda: restore(damaged))
        torch.set_rng_state(generator)

    names = st.sampled_from(
        ["state.json", "state.json", "optimizer.safetensors", "rng_0.safetensors", "model.safetensors"]
    )
    run_cases(st.tuples(names, ways(HEADERS)), each, cases)
