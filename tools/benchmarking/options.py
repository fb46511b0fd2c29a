"""Suite `options`: a training step, or the part of it that is concerned, with and without each choice made for speed.

Each choice has a prediction, written down before it was measured: the ratio of cost with it to cost without it. Parts
are also told as a share of a step, what the choice saves or costs of one. What draws random numbers draws the same with
and without. Choices that are made when a process starts are measured in processes that take turns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarking import cuda
from benchmarking.option_parts import Pair, prepare_parts, restarted_workers
from benchmarking.report import Report, Rows
from benchmarking.settings import Settings
from benchmarking.step import Variant, prepare
from benchmarking.step_process import NEIGHBOUR, measure_processes
from benchmarking.timing import Sample, Work, cost, figures, interleaved, ratio, wall_ratio


class Prediction(NamedTuple):
    """What the ratio of cost with a choice to cost without it is expected to be, least and most, and why."""

    least: float
    most: float
    why: str


CPU, GPU = "cpu", "cuda"
PREDICTIONS: dict[str, dict[str, Prediction]] = {
    "fused AdamW": {
        CPU: Prediction(0.2, 0.5, "one pass over weights and moments, not eight"),
        GPU: Prediction(0.05, 0.5, "a few kernels, not eight for each list of tensors, and no wait for the scaler"),
    },
    "average by lists of tensors": {
        CPU: Prediction(0.7, 1.0, "the same passes over memory; the loop moves from Python to C++"),
        GPU: Prediction(0.02, 0.3, "a few kernels, not two for each of 500 tensors"),
    },
    "packed meters": {
        CPU: Prediction(0.5, 1.5, "nothing runs ahead that could be waited for"),
        GPU: Prediction(0.02, 0.5, "one kernel for all values; each value read is a wait"),
    },
    "a step with packed meters": {
        GPU: Prediction(0.7, 0.97, "the host runs ahead; each value read makes it wait, and then the GPU for it"),
    },
    "bytes until on the device": {
        CPU: Prediction(0.3, 0.7, "a quarter of the memory is moved; the division is the same"),
        GPU: Prediction(0.05, 0.4, "a quarter crosses the bus, and the GPU divides"),
    },
    "channels_last": {
        CPU: Prediction(0.8, 1.0, "oneDNN reorders less; norms and pools gain nothing"),
        GPU: Prediction(0.75, 0.95, "tensor cores want it in fp16 and bf16"),
    },
    "compiled": {
        CPU: Prediction(0.85, 1.0, "element-wise chains of experts and decoder are fused; convolutions stay"),
        GPU: Prediction(0.7, 0.95, "the same, and far fewer kernels to launch"),
    },
    "gradient checkpointing": {
        CPU: Prediction(1.2, 1.4, "backbone and experts go forward twice: a third of a step more; it buys memory"),
        GPU: Prediction(1.2, 1.4, "backbone and experts go forward twice: a third of a step more; it buys memory"),
    },
    "sorted dispatch": {
        CPU: Prediction(0.4, 0.7, "2 of 6 experts for each image, not all of them masked"),
        GPU: Prediction(0.5, 0.85, "the same work saved, at the price of smaller kernels and one wait"),
    },
    "workers that live on": {
        CPU: Prediction(0.3, 0.9, "nothing is started at the beginning of an epoch"),
        GPU: Prediction(0.3, 0.9, "nothing is started at the beginning of an epoch"),
    },
    "16384 primitives kept": {
        CPU: Prediction(0.85, 1.0, "a thousand are too few for the sizes of sub-batches: compiled again and again"),
    },
    "threads that sleep": {
        CPU: Prediction(0.7, 1.0, "one that spins until the next operator costs CPU time and gains little"),
    },
    f"threads that sleep, {NEIGHBOUR}": {
        CPU: Prediction(0.3, 0.8, "threads that spin take the core from the one they wait for; wall time"),
    },
}
"""Choice → device → what was expected before anything was measured; none where there is nothing to choose."""
STEPS = {
    "channels_last": ("channels_last", "sparse"),
    "compiled": ("sparse_compiled", "sparse"),
    "gradient checkpointing": ("checkpointed", "sparse"),
    "sorted dispatch": ("sparse", "masked"),
}
"""Choice → the variants of the network with and without it."""


def measure_options(settings: Settings) -> Report:
    """Parts first, in as many rounds as asked for; whole steps, which take longer, in half as many."""
    rounds = settings.rounds
    found, parts_of_step = _measure_parts(settings), set[str]()
    parts_of_step |= found.keys()
    found |= restarted_workers(settings)
    # For a CPU the compiler of two dozen experts takes longer than all else together.
    of_steps = {choice: pair for choice, pair in STEPS.items() if settings.on_gpu or choice != "compiled"}
    variants, steps = _measure_steps(of_steps, settings, -(-rounds // 2))
    found |= {choice: (steps[given], steps[other]) for choice, (given, other) in of_steps.items()}
    if settings.on_gpu:
        found["a step with packed meters"] = steps["sparse"], steps[_READING]
    on_wall = {"workers that live on"}
    if not settings.on_gpu:
        found |= measure_processes(settings, -(-rounds // 3))
        on_wall.add(f"threads that sleep, {NEIGHBOUR}")
    ratios = {
        choice: (wall_ratio if choice in on_wall else ratio)(given, other) for choice, (given, other) in found.items()
    }
    whole = cost(steps["sparse"])
    choices = {
        choice: _row(
            choice, ratios.get(choice), found.get(choice) if choice in parts_of_step else None, whole, settings
        )
        for choice in PREDICTIONS
    }
    results: dict[str, Rows] = {"choice": choices, "step": variants, "part": _figures(found, parts_of_step)}
    return Report(results, {"with / without": ratios}, [], settings.of_targets)


def _measure_parts(settings: Settings) -> dict[str, Pair]:
    works = prepare_parts(settings)
    flat: dict[str, Work] = {
        f"{choice}{suffix}": work
        for choice, pair in works.items()
        for suffix, work in zip(("", _WITHOUT), pair, strict=True)
    }
    samples = interleaved(flat, settings.rounds, settings.torch_device)
    return {choice: (samples[choice], samples[choice + _WITHOUT]) for choice in works}


_WITHOUT = ", without"
_READING = "sparse, each value read"


def _measure_steps(
    pairs: Mapping[str, tuple[str, str]], settings: Settings, rounds: int
) -> tuple[Rows, dict[str, list[Sample]]]:
    variants: dict[str, Variant] = {}
    peaks: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for pair in pairs.values() for name in pair):
        variants[name] = prepare(name, settings)
        peaks[name] = {"peak_bytes": cuda.peak_bytes(variants[name].step)} if settings.on_gpu else {}
    works: dict[str, Work] = {name: variant.step for name, variant in variants.items()}
    if settings.on_gpu:
        works[_READING] = _reading(variants["sparse"])
    samples = interleaved(works, rounds, settings.torch_device)
    rows: Rows = {name: {**figures(found), **peaks.get(name, {})} for name, found in samples.items()}
    return rows, samples


def _reading(variant: Variant) -> Work:
    """A step after which the host reads each value of the meters, as programs without meters do."""

    def work() -> None:
        variant.step()
        for meters in (variant.training_step.batch_meters, variant.training_step.step_meters):
            for value in meters.state().values():
                for number in value.flatten():
                    number.item()

    return work


def _row(
    choice: str, measured: Mapping[str, float] | None, part: Pair | None, step: float, settings: Settings
) -> dict[str, Any]:
    """What was expected of a choice and what came of it; `part` where it concerns a part of a step only."""
    device = GPU if settings.on_gpu else CPU
    prediction = PREDICTIONS[choice].get(device)
    elsewhere = PREDICTIONS[choice].get(CPU if settings.on_gpu else GPU)
    return {
        f"predicted, {device}": _range(prediction),
        "with / without": "not measured here" if measured is None else dict(measured),
        "as predicted": "" if measured is None or prediction is None else _held(prediction, measured["median"]),
        "of a step": "" if part is None else f"{(cost(part[0]) - cost(part[1])) / step:+.2%}",
        "because": next(iter(PREDICTIONS[choice].values())).why if prediction is None else prediction.why,
        f"predicted, {CPU if settings.on_gpu else GPU}": _range(elsewhere),
    }


def _held(prediction: Prediction, measured: float) -> str:
    if prediction.least <= measured <= prediction.most:
        return "yes"
    return "no: better" if measured < prediction.least else "no: worse"


def _range(prediction: Prediction | None) -> str:
    return "–" if prediction is None else f"{prediction.least:g} to {prediction.most:g}"


def _figures(found: Mapping[str, Pair], parts: Sequence[str] | set[str]) -> Rows:
    return {
        name: figures(samples)
        for choice, pair in found.items()
        if choice in parts
        for name, samples in zip((choice, choice + _WITHOUT), pair, strict=True)
    }
