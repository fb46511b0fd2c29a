"""What a run says of itself before its first step."""

from accelerate import Accelerator

from camox.data.samples import Source
from camox.data.sources import Subset
from camox.data.streams import Reading
from camox.experiment import Experiment
from camox.experiment.network import MixtureOfExperts
from camox.inference.loading.selection import selected_on, selection_warnings, what_held_out
from camox.models.camoxpert import CamoXpert
from camox.tracking.console import Console, counted
from camox.training.processes import precision_name, precision_notices
from camox.training.run_state import Position


def announce(
    console: Console,
    experiment: Experiment,
    accelerator: Accelerator,
    network: CamoXpert,
    train: Source | Subset | Reading,
    held_out: Source | Subset,
    at: Position,
) -> None:
    """Prints warnings first, then data, model, phases, effective batch, device and place of the run."""
    # A held-out part has the notices of the data it was taken from.
    notices = dict.fromkeys([*train.notices, *held_out.notices])
    selection = selection_warnings(experiment)
    for text in [*notices, *experiment.warnings, *selection, *precision_notices(experiment, accelerator)]:
        console.warning(text)
    for text in dict.fromkeys([*train.remarks, *held_out.remarks]):
        console.notice(text)
    ranks = accelerator.num_processes
    phases = experiment.phases_resolved()
    batches = [
        f"{p.name} {p.batch_size} × {p.accumulate} × {ranks} = {p.batch_size * p.accumulate * ranks}" for p in phases
    ]
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    rows: list[tuple[str, object]] = [
        ("data", f"{len(train)} training ({train.label}), {len(held_out)} {what_held_out(experiment)}"),
        ("selected on", selected_on(experiment)),
        ("model", f"{experiment.model.backbone}, {parameters:.1f} M parameters"),
        ("experts", describe_experts(experiment.model.moe)),
        ("phases", ", ".join(f"{p.name} {counted(p.epochs, 'epoch')}" for p in phases)),
        ("batch", f"{', '.join(batches)} (per device × accumulated × processes)"),
        ("device", f"{ranks} × {accelerator.device.type}, {precision_name(accelerator)}"),
        ("run folder", experiment.run_folder),
    ]
    if at.step:
        rows.append(("resumed", f"at {at} of {experiment.epochs}"))
    console.header(f"camox: {experiment.experiment.name}", rows)


def describe_experts(moe: MixtureOfExperts) -> str:
    """One line: which experts an image passes through, where, and how they are chosen and kept in use."""
    if not moe.scales:
        return "none"
    parts = [f"{_chosen(moe)} at strides {', '.join(map(str, moe.scales))}"]
    if moe.shared:
        parts.append("a shared one for every image")
    parts.append(
        "whole images" if moe.granularity == "image" else f"regions of a {moe.granularity}×{moe.granularity} grid"
    )
    if moe.mode in ("sparse", "dense"):
        parts += [f"{moe.router.gate} gate", f"balance {moe.balance.kind}"]
    return "; ".join(parts)


def _chosen(moe: MixtureOfExperts) -> str:
    names = ", ".join(moe.experts)
    match moe.mode:
        case "dense":
            return f"all of {names}"
        case "static":
            return f"always {' and '.join(moe.experts[: moe.top_k])}"
        case "random":
            return f"{moe.top_k} by chance of {names}"
    return f"top {moe.top_k} of {names}"
