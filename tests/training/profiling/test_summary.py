"""What a profile advises: a sentence where there is something to do, none where there is not."""

import io
from pathlib import Path
from typing import Any

import pytest

from camox.tracking.console import Console
from camox.training.profiling.parts import Breakdown, Cost
from camox.training.profiling.summary import Recorded, Setting, as_json, findings, show

NETWORK = {"backbone": 40.0, "experts: edge, stride 4": 30.0, "experts: edge, stride 8": 10.0, "decoder": 20.0}


def recorded(experiment: Any, on_gpu: bool = False, waits: float = 0.0, idle: float = 0.0, **parts: float) -> Recorded:
    """A network that takes 100 ms, and so many ms of other parts, `_` for a space."""
    times = NETWORK | {name.replace("_", " "): time for name, time in parts.items()}
    labels = {
        name: Cost(host=time, device=time if on_gpu else 0, calls=1, kernels=10, on_gpu=on_gpu)
        for name, time in times.items()
    }
    labels["routers"] = Cost(waits=waits, idle=idle, on_gpu=on_gpu)
    setting = Setting("full", 1, experiment.phases_resolved()[-1], 0, ranks=2)
    operators = {"aten::convolution": Cost(host=70.0, device=60.0, calls=9), "aten::add": Cost(host=1.0)}
    return Recorded(setting, Breakdown(labels, operators, on_gpu), 0.1, {"backbone": 2**21}, 0, Path("trace.json.gz"))


def advice(experiment: Any, *args: Any, **parts: Any) -> str:
    return "\n".join(findings(experiment, recorded(experiment, *args, **parts)))


def test_nothing_is_advised_where_nothing_stands_out(tiny_experiment):
    experiment = tiny_experiment("data.workers=2")
    assert findings(experiment, recorded(experiment, decoder=100.0)) == [
        "nothing stands out: the step is spent in the network"
    ]


@pytest.mark.parametrize(
    ("overrides", "parts", "expected"),
    [
        ((), {"waiting_for_data": 40.0}, "29% of the time waits for data: images are loaded between the steps; set"),
        (("data.workers=1000",), {"waiting_for_data": 40.0}, "set data.cache"),
        (("data.workers=1000", 'data.cache="x"'), {"waiting_for_data": 40.0}, "make data.augment cheaper"),
        (("data.workers=0",), {"waiting_for_data": 40.0, "on_gpu": True}, "set data.workers to"),
        ((), {"gradient_reduction": 25.0}, "20% of the step waits for other ranks' gradients: raise optimizer.acc"),
        ((), {"logging": 25.0}, "20% of the time goes into logging: raise tracking.log_every=1"),
        (("optimizer.fused=false",), {"optimizer": 25.0}, "the optimizer takes 20% of the step and is not fused"),
        ((), {"clipping": 15.0, "meters": 10.0}, "20% of the step does not depend on the batch"),
        ((), {"backbone": 900.0}, "the backbone takes 94% of the step"),
        ((), {"on_gpu": True, "idle": 100.0}, "the GPU stands idle for 50% of the step while the host launches 40 ker"),
        ((), {"on_gpu": True, "waits": 3.0}, "the host waits for the GPU 3 × a step, not 1 ×: routers 3"),
    ],
)
def test_what_stands_out_is_told_with_what_to_do(tiny_experiment, overrides, parts, expected):
    assert expected in advice(tiny_experiment(*overrides), **parts)


def test_the_one_copy_of_the_routing_is_expected_and_other_waits_are_not(tiny_experiment):
    assert "waits for the GPU" not in advice(tiny_experiment(), on_gpu=True, waits=1.0)
    assert "1 × a step, not 0 ×" in advice(tiny_experiment('model.moe.dispatch="masked"'), on_gpu=True, waits=1.0)


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        (("model.moe.mode='sparse'",), 1),
        (("model.moe.mode='random'", "optimizer.accumulate=3"), 3),
        (("model.moe.mode='dense'",), 0),
        (("model.moe.mode='static'",), 0),
        (("model.moe.scales=[]",), 0),
    ],
)
def test_only_modes_that_route_each_image_copy_the_routing(tiny_experiment, overrides, copies):
    told = advice(tiny_experiment(*overrides), on_gpu=True, waits=copies + 1.0)
    assert f"the host waits for the GPU {copies + 1} × a step, not {copies} ×" in told
    assert "waits for the GPU" not in advice(tiny_experiment(*overrides), on_gpu=True, waits=float(copies))


def test_of_what_is_done_once_a_step_the_three_largest_are_told(tiny_experiment):
    parts = {"clipping": 5.0, "optimizer": 11.0, "weight_average": 2.0, "guards": 6.0, "meters": 1.0}
    told = "20% of the step does not depend on the batch (optimizer 9%, guards 5%, clipping 4%): raise data.batch_size"
    assert told in advice(tiny_experiment(), **parts)
    assert "the batch (optimizer 20%): raise" in advice(tiny_experiment(), optimizer=25.0, clipping=0.0)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"reduction": 50}, ["raise optimizer.accumulate"]),
        ({"optimizer": 50}, ["raise data.batch_size or optimizer.accumulate"]),
        ({"optimizer": 50, "reduction": 50}, ["raise data.batch_size or optimizer.accumulate"]),
        ({"idle": 50}, ["raise data.batch_size (and lower optimizer.accumulate)"]),
        ({"idle": 50, "reduction": 50}, ["raise data.batch_size,", "raise optimizer.accumulate"]),
        ({"idle": 50, "optimizer": 50}, ["raise data.batch_size,", "raise optimizer.accumulate"]),
        ({"idle": 50, "optimizer": 50, "reduction": 50}, ["raise data.batch_size,", "raise optimizer.accumulate"]),
    ],
)
def test_each_way_to_a_larger_batch_is_advised_once_and_not_with_its_opposite(tiny_experiment, parts, expected):
    times = {"gradient_reduction" if name == "reduction" else name: float(time) for name, time in parts.items()}
    found = findings(tiny_experiment(), recorded(tiny_experiment(), on_gpu="idle" in parts, **times))
    told = [text for text in found if "optimizer.accumulate" in text or "data.batch_size" in text]
    assert len(told) == len(expected)
    assert all(way in text for way, text in zip(expected, told, strict=True)), told
    lines = "\n".join(told)
    assert lines.count("data.batch_size") <= 1
    assert lines.count("optimizer.accumulate") <= 1
    assert ("gradient reduction" in lines) == ({"reduction", "optimizer"} <= set(parts))


@pytest.mark.parametrize(("longer", "is_told"), [(0.77, True), (1.0, False), (2.0, False), (3.0, True)])
def test_recorded_steps_much_shorter_or_longer_than_the_others_say_that_the_machine_was_busy(
    tiny_experiment, longer, is_told
):
    experiment = tiny_experiment()
    stage = recorded(experiment)
    stage = stage._replace(plain_step=stage.breakdown.step / 1e3 / longer)
    first, *others = findings(experiment, stage)
    assert first.startswith(f"recorded steps took {longer:.2f} times as long as the others") == is_told
    assert len(others) == is_told  # what is found otherwise is told too


def test_tables_hold_parts_experts_operators_and_where_the_trace_is(tiny_experiment):
    experiment, stream = tiny_experiment(), io.StringIO()
    show(Console(stream=stream, width=100), experiment, [recorded(experiment, optimizer=25.0)])
    text = stream.getvalue()
    rows = [line.split() for line in text.splitlines()]
    assert ["optimizer", "20.0%", "25", "1"] in rows
    assert ["experts", "32.0%", "40", "2"] in rows
    assert ["all", "100.0%", "125"] in rows
    assert ["edge", "30", "10", "40"] in rows
    assert ["aten::convolution", "70", "9"] in rows
    assert "80 images/s" in text  # batch 4 × 2 ranks in 0.1 s
    assert "trace.json.gz" in text


def test_on_a_gpu_tables_hold_kernels_idle_time_and_memory(tiny_experiment):
    experiment, stream = tiny_experiment(), io.StringIO()
    show(Console(stream=stream, width=120), experiment, [recorded(experiment, on_gpu=True, idle=25.0, waits=1.0)])
    rows = [line.split() for line in stream.getvalue().splitlines()]
    assert ["backbone", "32.0%", "40", "40", "10", "0", "2", "1"] in rows
    assert ["routers", "20.0%", "25", "25", "0", "1", "0", "0"] in rows


def test_the_file_holds_what_is_shown(tiny_experiment):
    experiment = tiny_experiment()
    stage = as_json(experiment, [recorded(experiment, optimizer=25.0)])["stages"]["full"]
    assert stage["parts"]["optimizer"]["total"] == 25.0
    assert stage["labels"]["experts: edge, stride 4"]["host"] == 30.0
    assert stage["findings"] == findings(experiment, recorded(experiment, optimizer=25.0))
