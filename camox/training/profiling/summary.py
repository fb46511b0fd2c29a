"""What a profile says: tables of the costliest parts and operators, and a sentence for each thing worth changing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from camox.experiment import Experiment, ResolvedPhase
from camox.tracking.console import Console, counted
from camox.training.environment import describe_environment
from camox.training.launching.options import cores
from camox.training.profiling.labels import (
    AVERAGE,
    BACKBONE,
    CLIPPING,
    COPY,
    EXPERTS,
    GUARDS,
    LOGGING,
    METERS,
    OPTIMIZER,
    PARTS,
    REDUCTION,
    REQUESTS,
    WAITING,
)
from camox.training.profiling.parts import Breakdown, Cost

_MIB = 2**20
_OPERATORS = 10
"""So many of the costliest are told."""
_ONCE = (CLIPPING, OPTIMIZER, AVERAGE, GUARDS, METERS, REQUESTS)
"""What is done once a step, however large the batch."""
_LARGEST = 3
"""So many of them are told."""


class Setting(NamedTuple):
    """What the recorded steps were like."""

    name: str
    epoch: int
    phase: ResolvedPhase
    frozen: int
    """Stages of the backbone that are frozen."""
    ranks: int

    def __str__(self) -> str:
        phase = self.phase
        sizes = ", ".join(f"{size}²" for size in phase.image_sizes)
        parts = [f"batch {phase.batch_size} × {phase.accumulate} × {self.ranks}", sizes]
        parts += [f"{self.frozen} stages of the backbone frozen"] if self.frozen else []
        return f"{self.name} (from epoch {self.epoch + 1} on): {', '.join(parts)}"


class Recorded(NamedTuple):
    """What was found of one stage, on the main process."""

    setting: Setting
    breakdown: Breakdown
    plain_step: float
    """Seconds of a step without the recorder."""
    kept: Mapping[str, int]
    """Part → bytes of GPU memory that it keeps for the backward pass; all 0 on a CPU."""
    peak: int
    """Most bytes of GPU memory in use at once, 0 on a CPU."""
    trace: Path


def show(console: Console, experiment: Experiment, recorded: Sequence[Recorded]) -> None:
    """Prints the tables of every stage, what to do about them, and where the traces are."""
    for stage in recorded:
        step, images = stage.plain_step, stage.setting.phase.batch_size * stage.setting.phase.accumulate
        rows: list[tuple[str, object]] = [
            ("a step", f"{step * 1e3:.4g} ms, {images * stage.setting.ranks / step:.3g} images/s"),
            ("recorded", f"{stage.breakdown.step / step / 1e3:.2f} times as long; times below are recorded ones"),
        ]
        if not stage.breakdown.on_gpu:
            rows.append(("threads", f"{torch.get_num_threads()} of torch on {counted(cores(), 'core')}"))
        if stage.peak:
            rows.append(("GPU memory", f"{stage.peak / 2**30:.2f} GiB at most"))
        console.summary(str(stage.setting), rows)
        console.table("", _columns(stage), _part_rows(stage))
        strides, experts = _expert_rows(stage.breakdown)
        if experts:
            console.table("experts, ms of a step", ["", *(f"stride {stride}" for stride in strides), "all"], experts)
        columns = ["operators that take most", "ms", *(["GPU ms"] if stage.breakdown.on_gpu else []), "calls"]
        console.table("", columns, _operator_rows(stage.breakdown))
        for text in findings(experiment, stage):
            console.notice(f"→ {text}")
    console.summary("traces, for ui.perfetto.dev", [(stage.setting.name, stage.trace) for stage in recorded])


def as_json(experiment: Experiment, recorded: Sequence[Recorded]) -> dict[str, Any]:
    """All that is shown, and the costs of every label; times in milliseconds of one step."""
    return {
        "experiment": experiment.run_folder.parent.name,
        "environment": describe_environment(experiment.experiment.seed),
        "threads": torch.get_num_threads(),
        "stages": {
            stage.setting.name: {
                "setting": str(stage.setting),
                "step_ms": stage.plain_step * 1e3,
                "recorded_step_ms": stage.breakdown.step,
                "peak_bytes": stage.peak,
                "parts": {part: _plain(cost) for part, cost in _ordered(stage.breakdown)},
                "labels": {label: _plain(cost) for label, cost in stage.breakdown.labels.items()},
                "operators": {name: _plain(cost) for name, cost in _costliest(stage.breakdown)},
                "kept_bytes": dict(stage.kept),
                "findings": findings(experiment, stage),
                "trace": stage.trace.name,
            }
            for stage in recorded
        },
    }


def findings(experiment: Experiment, recorded: Recorded) -> list[str]:
    """What to do about what was found, the most telling first."""
    breakdown = recorded.breakdown
    found = [*_of_data(experiment, breakdown), *_of_batch(experiment, breakdown)]
    found += [*_of_gpu(experiment, recorded), *_of_rest(experiment, breakdown)]
    return [*_of_noise(recorded), *(found or ["nothing stands out: the step is spent in the network"])]


def _of_noise(recorded: Recorded) -> Iterator[str]:
    # A recorder makes a step longer; what makes it shorter is a machine that had less else to do meanwhile.
    longer = recorded.breakdown.step / recorded.plain_step / 1e3
    if not 0.9 < longer < 2.5:
        yield (
            f"recorded steps took {longer:.2f} times as long as the others: the machine was busy with something else, "
            "so these times tell little; run it again on a quiet one"
        )


def _of_data(experiment: Experiment, breakdown: Breakdown) -> Iterator[str]:
    waiting, workers, available = breakdown.share(WAITING), experiment.data.workers, cores()
    if waiting < 0.05:
        return
    start = f"{waiting:.0%} of the time waits for data"
    if workers == 0:
        yield f"{start}: images are loaded between the steps; set data.workers to {min(4, available)}"
    elif workers < available and breakdown.on_gpu:
        yield f"{start}: raise data.workers from {workers} ({counted(available, 'core')} here)"
    elif not experiment.data.cache:
        yield f"{start} with {counted(workers, 'worker')} on {counted(available, 'core')}: set data.cache"
    else:
        yield f"{start} though images come from data.cache: make data.augment cheaper, or take more cores"


def _of_batch(experiment: Experiment, breakdown: Breakdown) -> Iterator[str]:
    """What is less of a step that takes more images. Each way there is advised once, and none with its opposite."""
    reduction, fixed = breakdown.share(REDUCTION), breakdown.share(*_ONCE)
    waits, is_fixed = reduction > 0.1, fixed > 0.15
    idle = sum(cost.idle for part, cost in breakdown.parts.items() if part != WAITING) / breakdown.step
    if idle > 0.15:
        kernels = sum(cost.kernels for cost in breakdown.parts.values())
        instead = "" if waits or is_fixed else " (and lower optimizer.accumulate)"
        compiled = "" if experiment.model.compile else ", or set model.compile=true"
        yield (
            f"the GPU stands idle for {idle:.0%} of the step while the host launches {kernels:.0f} kernels: raise "
            f"data.batch_size{instead}{compiled}"
        )
    if is_fixed:
        once = (*_ONCE, REDUCTION) if waits else _ONCE
        shares = sorted(((breakdown.share(part), part) for part in once), reverse=True)
        largest = ", ".join(f"{part} {share:.0%}" for share, part in shares[:_LARGEST] if share)
        larger = "optimizer.accumulate" if idle > 0.15 else "data.batch_size or optimizer.accumulate"
        yield (
            f"{breakdown.share(*once):.0%} of the step does not depend on the batch ({largest}): raise {larger}, if "
            "training allows it"
        )
    elif waits:
        yield f"{reduction:.0%} of the step waits for other ranks' gradients: raise optimizer.accumulate"


def _of_gpu(experiment: Experiment, recorded: Recorded) -> Iterator[str]:
    breakdown = recorded.breakdown
    if not breakdown.on_gpu:
        return
    parts = breakdown.parts
    in_step = {part: cost.waits for part, cost in parts.items() if part not in (LOGGING, "wait at the end")}
    expected = recorded.setting.phase.accumulate * _copies_routing(experiment)
    if sum(in_step.values()) > expected + 0.5:
        where = ", ".join(f"{part} {waits:.3g}" for part, waits in in_step.items() if waits)
        yield f"the host waits for the GPU {sum(in_step.values()):.3g} × a step, not {expected} ×: {where}"
    if (copies := breakdown.share(COPY)) > 0.05:
        yield f"{copies:.0%} of the step goes into copies to the GPU: are other programs using its bus?"
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    if experiment.model.gradient_checkpointing and 0 < recorded.peak < 0.4 * total:
        yield (
            f"of the GPU's memory {recorded.peak / total:.0%} is used: try model.gradient_checkpointing=false, which "
            "computes nothing twice"
        )


def _copies_routing(experiment: Experiment) -> bool:
    """Whether a forward pass waits for the sizes of the experts' sub-batches."""
    moe = experiment.model.moe
    return moe.dispatch == "sorted" and moe.mode in ("sparse", "random") and bool(moe.scales)


def _of_rest(experiment: Experiment, breakdown: Breakdown) -> Iterator[str]:
    if (logging := breakdown.share(LOGGING)) > 0.02:
        yield f"{logging:.0%} of the time goes into logging: raise tracking.log_every={experiment.tracking.log_every}"
    if not experiment.optimizer.fused:
        yield f"the optimizer takes {breakdown.share(OPTIMIZER):.0%} of the step and is not fused: optimizer.fused=true"
    network = {part: breakdown.share(part) for part in (BACKBONE, EXPERTS)}
    part = max(network, key=lambda name: network[name])
    if network[part] > 0.5:
        how = "another model.backbone, or image_size" if part == BACKBONE else "model.moe.top_k, scales, or model.width"
        yield f"the {part} take{'s' * (part == BACKBONE)} {network[part]:.0%} of the step: what is faster is {how}"


def _columns(stage: Recorded) -> list[str]:
    of_gpu = ["GPU ms", "idle ms", "kernels", "waits", "kept MiB"] if stage.breakdown.on_gpu else []
    return ["part of a step", "share", "ms", "backward", *of_gpu, "calls"]


def _part_rows(stage: Recorded) -> Iterator[list[object]]:
    breakdown = stage.breakdown
    for part, cost in [*_ordered(breakdown), ("all", _sum(breakdown))]:
        row: list[object] = [part, f"{cost.total / breakdown.step:.1%}", _ms(cost.total), _ms(cost.backward)]
        if breakdown.on_gpu:
            kept = stage.kept.get(part, 0) if part != "all" else sum(stage.kept.values())
            row += [_ms(cost.device), _ms(cost.idle), f"{cost.kernels:.0f}", f"{cost.waits:.3g}"]
            row.append(f"{kept / _MIB:.0f}")
        yield [*row, f"{cost.calls:.3g}" if part != "all" else ""]


def _expert_rows(breakdown: Breakdown) -> tuple[list[int], list[list[object]]]:
    """Strides, and for each expert what it takes at each of them."""
    table: dict[str, dict[int, float]] = {}
    for label, cost in breakdown.labels.items():
        if label.startswith(f"{EXPERTS}: "):
            name, _, stride = label.removeprefix(f"{EXPERTS}: ").partition(", stride ")
            table.setdefault(name, {})[int(stride)] = cost.total
    strides = sorted({stride for row in table.values() for stride in row})
    return strides, [
        [name, *(_ms(row.get(stride, 0.0)) for stride in strides), _ms(sum(row.values()))]
        for name, row in table.items()
    ]


def _operator_rows(breakdown: Breakdown) -> Iterator[list[object]]:
    for name, cost in _costliest(breakdown):
        of_gpu = [_ms(cost.device)] if breakdown.on_gpu else []
        yield [name, _ms(cost.host), *of_gpu, f"{cost.calls:.3g}"]


def _costliest(breakdown: Breakdown) -> list[tuple[str, Cost]]:
    def cost(item: tuple[str, Cost]) -> float:
        return -(item[1].device if breakdown.on_gpu else item[1].host)

    return sorted(breakdown.operators.items(), key=cost)[:_OPERATORS]


def _ordered(breakdown: Breakdown) -> list[tuple[str, Cost]]:
    parts = breakdown.parts
    return [(part, parts[part]) for part in PARTS if part in parts]


def _sum(breakdown: Breakdown) -> Cost:
    whole = Cost(on_gpu=breakdown.on_gpu)
    for cost in breakdown.parts.values():
        for name in ("host", "backward", "device", "idle", "kernels", "waits"):
            setattr(whole, name, getattr(whole, name) + getattr(cost, name))
    return whole


def _plain(cost: Cost) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in {**asdict(cost), "total": cost.total}.items() if name != "on_gpu"}


def _ms(value: float) -> str:
    return f"{value:.4g}" if value >= 0.01 else ("" if value == 0 else "<0.01")
