"""Suite `gpu` without a GPU: its parts at toy size on a CPU, its time budget, what it asks of CUDA played by hand."""

import dataclasses
import io
import json
import signal
import subprocess
import time
import warnings
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

import benchmark
from benchmark import main
from benchmarking import cases, cuda, gpu, networks, timing, waits
from benchmarking.cases import COPY, PRODUCT, Machinery, measure_cases
from benchmarking.counters import StepWork, step_work
from benchmarking.gpu import PARTS, Plan, measure_gpu
from benchmarking.report import Report, Target, markdown_tables, show
from benchmarking.settings import Settings
from benchmarking.timing import Sample
from camox.errors import ExperimentError
from camox.training.trainer import Trainer

TOY = Settings(backbone="resnet10t", image_size=64, batch=2, width=8, rounds=3)
SMALL = Machinery(product_side=64, copied_bytes=2**16, seconds=0.01)
CASES = ("sparse", "dense", "static")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer steps that do not count."""
    monkeypatch.setattr(timing, "ROUTINGS", 1)
    monkeypatch.setattr(cases, "TURN", 1)
    monkeypatch.setattr(cuda, "STEPS", 1)
    monkeypatch.setattr(cuda, "release_memory", lambda: None)


# ---- cases


def test_every_network_has_a_compiled_twin():
    for name in cases.NETWORKS:
        assert networks.VARIANTS[f"{name}_compiled"] == networks.VARIANTS[name] | {"compile": True}


def test_steps_are_compared_with_one_another_and_with_the_device():
    found = measure_cases(TOY, SMALL, cases.NETWORKS, compiled=False)
    rows, ratios = found.results["steps"], found.ratios
    assert list(rows) == [f"64² fp32 {name}" for name in CASES]
    assert all(row["ms / step"]["median"] > 0 and row["images/s"]["median"] > 0 for row in rows.values())
    assert rows["64² fp32 sparse"]["traffic_bytes"] < rows["64² fp32 dense"]["traffic_bytes"]
    assert set(ratios["step time, 64² fp32"]) == {"sparse / dense", "sparse / static"}
    assert set(found.results["units"]) == {f"64² fp32 {unit}" for unit in (PRODUCT, COPY)}
    assert set(ratios) == {
        "step time, 64² fp32",
        *(f"share of the {unit}'s rate, 64² fp32" for unit in (PRODUCT, COPY)),
    }


def test_shares_are_those_of_the_devices_own_rates():
    # A product of 64³ in 1 s, a copy that moves twice 2¹⁶ bytes in 2 s; a step of half the work and bytes in 4 s.
    seconds = {PRODUCT: 1, COPY: 2, "sparse": 4}
    samples = {name: [Sample(taken, 0, None)] for name, taken in seconds.items()}
    case = cases.Counted({}, StepWork(multiply_adds=64**3 // 2, traffic_bytes=2**16), 4.0)
    shares = cases._shares("label", {"sparse": case}, samples, SMALL)
    assert shares[f"share of the {PRODUCT}'s rate, label"]["sparse"]["median"] == 0.125
    assert shares[f"share of the {COPY}'s rate, label"]["sparse"]["median"] == 0.25


@pytest.fixture
def played_steps(monkeypatch):
    """Steps without networks; gives the names of those that are too large for the device."""
    too_large = set()

    def prepare(name, settings):
        if name in too_large:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        x = torch.rand(32, 32)
        return SimpleNamespace(step=lambda: x @ x)

    monkeypatch.setattr(cases, "prepare", prepare)
    return too_large


@pytest.mark.usefixtures("played_steps")
def test_compiled_steps_are_compared_with_the_ones_that_are_not():
    found = measure_cases(dataclasses.replace(TOY, precision="bf16"), SMALL, ("sparse", "static"), compiled=True)
    assert list(found.results["compiled steps"]) == ["64² bf16 sparse_compiled", "64² bf16 static_compiled"]
    assert set(found.ratios) == {"step time, 64² bf16"}
    assert set(found.ratios["step time, 64² bf16"]) == {
        "sparse_compiled / static_compiled",
        "sparse_compiled / sparse",
        "static_compiled / static",
    }


@pytest.mark.parametrize(("compiled", "built"), [(False, CASES), (True, ("sparse_compiled", "sparse"))])
@pytest.mark.usefixtures("played_steps")
def test_networks_are_built_once_to_be_counted_and_timed(monkeypatch, compiled, built):
    seen, prepare = [], cases.prepare
    monkeypatch.setattr(cases, "prepare", lambda name, settings: seen.append(name) or prepare(name, settings))
    measure_cases(TOY, SMALL, ("sparse",) if compiled else CASES, compiled)
    assert seen == list(built)


def test_a_network_that_does_not_fit_is_told_and_the_others_are_measured(played_steps):
    played_steps.add("dense")
    found = measure_cases(TOY, SMALL, cases.NETWORKS, compiled=False)
    assert found.results["steps"]["64² fp32 dense"] == {"remark": "out of memory"}
    assert found.results["steps"]["64² fp32 sparse"]["ms / step"]["median"] > 0
    assert set(found.ratios["step time, 64² fp32"]) == {"sparse / static"}


@pytest.mark.usefixtures("played_steps")
def test_what_fits_alone_but_not_beside_the_others_is_not_timed(monkeypatch):
    interleaved = cases._interleaved

    def crowded(names, *rest):
        if len(names) > 1:
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
        return interleaved(names, *rest)

    monkeypatch.setattr(cases, "_interleaved", crowded)
    rows = measure_cases(TOY, SMALL, cases.NETWORKS, compiled=False).results["steps"]
    assert sorted("ms / step" in row for row in rows.values()) == [False, False, True]
    assert sum("not timed" in row.get("remark", "") for row in rows.values()) == 2


def test_the_work_of_a_step_is_that_of_both_passes_and_its_traffic_that_of_each_operator():
    layer, x = nn.Linear(7, 11, bias=False), torch.zeros(2, 7)
    assert step_work(lambda: layer(x).sum().backward()).multiply_adds == 2 * (2 * 7 * 11)  # no gradient of the input
    x = torch.zeros(10, 4, requires_grad=True)
    assert step_work(lambda: x.t() * 2).traffic_bytes == 2 * 160  # the view moves nothing
    assert step_work(lambda: torch.empty(10)).traffic_bytes == 0
    one, many = torch.zeros(4), torch.zeros(10, 4)
    assert step_work(lambda: many.add_(one.expand(10, 4))).traffic_bytes == 160 + 16 + 160


# ---- the parts and their time


class Clock:
    """Seconds that only pass when a part is measured."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def played(monkeypatch):
    """Parts that take a known time each; gives the names of what was measured, in order."""
    clock, measured = Clock(), []

    def part(name, seconds, targets=()):
        def measure(settings, *rest, **options):
            measured.append(
                f"{name} {settings.image_size} {settings.precision}" if name in ("steps", "compiled") else name
            )
            clock.now += seconds
            return Report({"table": {measured[-1]: {"x": 1}}}, {"time": {measured[-1]: 2.0}}, list(targets), True)

        return measure

    steps, compiled = part("steps", 30), part("compiled", 80)
    monkeypatch.setattr(gpu, "measure_cases", lambda s, machinery, of, c: (compiled if c else steps)(s))
    monkeypatch.setattr(gpu, "_loops", part("loops", 10, [Target("loop", 1.05, 1.04)]))
    monkeypatch.setattr(gpu, "measure_inference", part("inference", 10, [Target("of a CPU", 1, 2)]))
    monkeypatch.setattr(gpu, "measure_measures", part("measures", 10, [Target("difference", 1e-6, 1e-8)]))
    monkeypatch.setattr(gpu, "measure_mixtures", part("mixtures", 10, [Target("of a CPU", 1, 2)]))
    monkeypatch.setattr(gpu, "_waits", part("waits", 10))
    monkeypatch.setattr(gpu, "measure_recipes", partial(part("memory", 10, [Target("GiB", 10, 5)]), TOY))
    return clock, measured


def test_what_there_is_no_time_for_is_left_out_and_told(played):
    clock, measured = played
    found = measure_gpu(TOY, clock=clock)
    steps = [f"steps {size} {precision}" for size in (352, 416, 704) for precision in ("fp16", "bf16")]
    # 6 × 30 + 4 × 10 = 220 of 400 seconds. Compiled steps are expected to take 60 s and take 80: two end at 380.
    assert measured == [*steps, "loops", "inference", "measures", "mixtures", "compiled 352 fp16", "compiled 352 bf16"]
    parts = found.results[PARTS]
    left_out = {name: row["remark"] for name, row in parts.items() if row["seconds"] is None}
    each = [f"{size}² × {batch}, {of}" for size, batch in Plan().batches.items() for of in ("fp16", "bf16")]
    assert list(left_out) == [f"compiled steps, {network}, {case}" for network in CASES for case in each][2:]
    assert set(left_out.values()) == {"left out: 20 s were left, about 80 s are needed"}
    assert parts["steps, 704² × 4, bf16"] == {"seconds": 30.0, "remark": ""}
    assert parts["all"]["seconds"] == 380.0


def test_a_kill_leaves_what_was_measured_before(played, monkeypatch, tmp_path):
    clock, _ = played

    class Killed(BaseException):
        pass

    def killed(settings):
        raise Killed

    monkeypatch.setattr(gpu, "_loops", killed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "origin", lambda settings, used, arguments: {"settings": dict.fromkeys(used, 0)})
    monkeypatch.setattr(benchmark, "measure_gpu", partial(measure_gpu, clock=clock))
    file = tmp_path / "new" / "gpu.json"
    with pytest.raises(Killed):
        main(["gpu", "--device", "cuda", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["settings"].keys() == {"device", "backbone", "width", "rounds"}
    assert list(found["results"][PARTS])[-1] == "steps, 704² × 4, bf16"
    assert len(found["results"]["table"]) == 1 + 6
    assert list(file.parent.iterdir()) == [file]


def test_tables_are_joined_and_only_limits_for_a_gpu_are_asked(played):
    clock, _ = played
    found = measure_gpu(TOY, Plan(seconds=2000), clock)
    assert len(found.results["table"]) == len(found.ratios["time"]) == 6 + 1 + 6
    assert found.results["measures: table"] == {"measures": {"x": 1}}
    assert [target.what for target in found.targets] == ["loop", "difference"]
    assert not found.judged


def test_what_takes_longer_than_all_the_time_is_broken_off_and_told(played, monkeypatch):
    clock, measured = played

    def endless(settings):
        while True:
            with suppress(Exception):  # as compilers do
                time.sleep(10)

    monkeypatch.setattr(gpu, "_loops", endless)
    found = measure_gpu(TOY, Plan(limit=6 * 30 + 0.2), clock)
    assert found.results[PARTS]["trainer and bare loop"]["remark"] == "broken off after 0 s: the time was over"
    assert list(found.results["table"])[:6] == measured[:6]
    assert "inference: table" in found.results
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_on_a_gpu_memory_is_measured_before_any_compiler_is_at_work(played):
    clock, measured = played
    measure_gpu(dataclasses.replace(TOY, device="cuda"), clock=clock)
    assert measured[0] == "waits"
    assert measured.index("memory") == measured.index("compiled 352 fp16") - 1


def test_a_part_that_fails_leaves_the_others_their_figures(played, monkeypatch, capsys):
    clock, _ = played

    def broken(settings):
        raise ValueError("no such thing\nand more")

    monkeypatch.setattr(gpu, "_loops", broken)
    parts = measure_gpu(TOY, Plan(seconds=1000), clock).results[PARTS]
    assert parts["trainer and bare loop"]["remark"] == "failed: ValueError: no such thing"
    assert parts["mixtures"]["remark"] == ""
    assert "Traceback" in capsys.readouterr().err


def test_a_backbone_that_does_not_exist_is_an_error_as_ever(played, monkeypatch):
    def wrong(*arguments):
        raise ExperimentError("no such backbone")

    monkeypatch.setattr(gpu, "measure_cases", wrong)
    with pytest.raises(ExperimentError, match="no such backbone"):
        measure_gpu(TOY, clock=played[0])


def test_results_are_shown_and_become_tables(played):
    report = measure_gpu(TOY, clock=played[0])
    stream = io.StringIO()
    show(report.plain(), Console(file=stream, width=100))
    assert "left out" in stream.getvalue()
    document = {
        "command": "python tools/benchmark.py gpu",
        "machine": {"processor": "a processor", "threads": 2, "gpu": "a card"},
        "versions": {"torch": "2.15"},
        "settings": {"device": "cuda", "backbone": "resnet10t", "width": 8, "rounds": 9},
        **report.plain(),
    }
    assert markdown_tables(document).startswith(
        "resnet10t, width 8, medians of 9 interleaved rounds; a card, 2 threads"
    )


def test_the_suite_is_for_a_gpu(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["gpu"])
    assert "suite gpu needs --device cuda" in capsys.readouterr().err


# ---- what needs a GPU, with torch.cuda played by hand


@pytest.fixture
def modes(monkeypatch):
    """The sync debug modes that were set, in order."""
    found = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", found.append)
    return found


@pytest.mark.parametrize(("waiting", "per_step"), [(range(1, 9), 1.0), ((4, 6, 8), 1 / 3)])
def test_waits_of_the_trainer_are_those_between_two_logged_steps(modes, monkeypatch, waiting, per_step):
    monkeypatch.setattr(waits, "LOG_EVERY", 4)
    take = Trainer._heed_requests

    def heed(trainer):
        assert (modes[-1:] == ["warn"]) == (4 < trainer.at.step < 8)
        if trainer.at.step in waiting and modes[-1:] == ["warn"]:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        take(trainer)

    monkeypatch.setattr(Trainer, "_heed_requests", heed)
    assert waits.trainer_waits(TOY, "masked") == pytest.approx(per_step)
    assert modes == ["warn", "default"]


def profiles(monkeypatch, *of_each):
    """Lets the profiler see these calls, one list for each profile."""
    calls = iter(of_each)

    class Played:
        def __init__(self, activities, acc_events):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self):
            self.names = next(calls)
            return self

        def __exit__(self, *error):
            return None

        def events(self):
            return [SimpleNamespace(name=name) for name in self.names]

    monkeypatch.setattr(torch.profiler, "profile", Played)


@pytest.mark.usefixtures("modes")
def test_launches_and_waiting_calls_are_counted_less_the_profilers_own(monkeypatch):
    monkeypatch.setattr(cuda, "STEPS", 2)
    step = [
        "cudaLaunchKernel",
        "aten::add",
        "cuLaunchKernelEx",
        "cudaMemcpyAsync",
        "cudaLaunchKernelExC",
        "void gemm()",
    ]
    waiting = ["cudaStreamSynchronize", "cudaEventSynchronize"]
    profiles(monkeypatch, ["cudaDeviceSynchronize"], [*step, *step, *waiting, "cudaDeviceSynchronize"])
    taken = []
    assert cuda.api_calls(lambda: taken.append(None)) == cuda.ApiCalls(launches=3, waits=1)
    assert len(taken) == 4


@pytest.mark.usefixtures("modes")
def test_a_profiler_that_may_not_look_is_unknown_not_zero(monkeypatch):
    profiles(monkeypatch, [], [])
    assert cuda.api_calls(lambda: None) is None
    profiles(monkeypatch, ["cudaDeviceSynchronize"], ["cudaDeviceSynchronize"])
    assert cuda.api_calls(lambda: None) is None


PROPERTIES = SimpleNamespace(
    name="a card", total_memory=16 * 2**30, major=7, minor=5, multi_processor_count=40, uuid="1234-abcd"
)


def test_the_card_is_described_with_what_its_driver_tells(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: PROPERTIES)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    asked = []

    def answer(command, **options):
        asked.append(command)
        told = {"power.limit": "70.00", "driver_version": "580.65"}
        return SimpleNamespace(returncode=0, stdout=told[command[2].partition("=")[2]] + "\n")

    monkeypatch.setattr(subprocess, "run", answer)
    found = cuda.card(torch.device("cuda"))
    assert found["gpu"] == "a card"
    assert (found["compute_capability"], found["power_limit_watts"]) == ("7.5", "70.00")
    assert cuda.versions() == {
        "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version()), "driver": "580.65",
    }  # fmt: skip
    assert all("--id=GPU-1234-abcd" in command for command in asked)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "answer", [FileNotFoundError("nvidia-smi"), SimpleNamespace(returncode=9, stdout="No devices were found\n")]
)
def test_without_the_drivers_tool_its_part_is_left_out(monkeypatch, answer):
    def run(command, **options):
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: PROPERTIES)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert "power_limit_watts" not in cuda.card(torch.device("cuda"))
    assert "driver" not in cuda.versions()
