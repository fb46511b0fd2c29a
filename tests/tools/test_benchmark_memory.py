"""The benchmark's suite of memory: which steps it counts, and that the steps it measures on a GPU are real ones."""

import pytest
import torch

from benchmarking import memory
from benchmarking.memory import Case, dearest_pair, real_step
from camox.training.building import build_training_step


def test_each_phase_of_both_recipes_is_counted_with_and_without_checkpointing():
    cases = [case for recipe in memory.LIMITS for on in (True, False) for case in memory._cases(recipe, on)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for part in ("416², frozen, 12 images, fp16", "416², full, 8 images, fp16", "416², full, 12 images, fp16"):
        assert {part, f"{part}, checkpointing"} <= set(names)
    assert {"704², frozen, 4 images, fp16", "704², full, 4 images, fp16, checkpointing"} <= set(names)
    assert [case.stages for case in cases if case.phase.name == "frozen"] == [4, 4, 4, 4]
    assert any(case.one_pair for case in cases)


def test_on_a_gpu_both_recipes_are_asked_at_their_largest_with_and_without_checkpointing(monkeypatch):
    reserved = {"416², full, 12 images, fp16, checkpointing": 4.0, "416², full, 12 images, fp16": 9.5}
    reserved["704², full, 4 images, fp16, checkpointing"] = 5.0

    def measured(case):
        if case.name not in reserved:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"allocated GiB": 1.0, "reserved GiB": reserved[case.name]}

    monkeypatch.setattr(memory, "_measured", measured)
    found = memory.measure_recipes()
    rows = found.results["memory of the recipes"]
    assert list(rows) == [*reserved, "704², full, 4 images, fp16"]
    assert rows["704², full, 4 images, fp16"] == {"remark": "out of memory"}
    assert [(target.at_most, target.measured, target.met) for target in found.targets] == [
        (10, 9.5, True),
        (15, float("inf"), False),
    ]


def test_the_dearest_pair_gets_all_images():
    sizes = dearest_pair()(24, 6)
    assert sorted(sizes) == [0, 0, 0, 0, 12, 12]


def test_the_step_that_a_gpu_takes_trains(tiny_experiment, monkeypatch):
    experiment = tiny_experiment("optimizer.accumulate=2")
    built = []

    def build(experiment, accelerator, network):
        built.append(build_training_step(experiment, accelerator, network))
        return built[0]

    monkeypatch.setattr(memory, "build_training_step", build)
    take = real_step(Case(experiment, experiment.phases_resolved()[1], 6, 0, "fp32"), torch.device("cpu"))
    parameters = list(built[0].network.parameters())
    before = [parameter.clone() for parameter in parameters]
    take()
    changed = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
    assert sum(changed) > 0.7 * len(changed)  # of experts that no image chose nothing changes


@pytest.mark.parametrize(("device", "said"), [("cpu", "Counted, not timed"), ("cuda", "Counted, and measured")])
def test_the_page_says_how_figures_came_to_be(device, said):
    from benchmarking.report import markdown_tables

    document = {
        "machine": {"processor": "one", "threads": 1}, "versions": {"torch": "2"}, "settings": {"device": device},
        "command": "python tools/benchmark.py memory", "results": {}, "ratios": {}, "targets": [],
    }  # fmt: skip
    assert markdown_tables(document).startswith(f"{said}; one, 1 threads, torch 2.")
