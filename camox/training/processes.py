"""What the run needs of Accelerate: the accelerator, its precision, and things done once for all processes."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    broadcast,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)

import camox
from camox.errors import CamoxError, ExperimentError
from camox.experiment import Experiment
from camox.experiment.experiment import differences
from camox.training.environment import git_commit
from camox.training.launching.launched import require_launched
from camox.training.launching.rendezvous import INIT_METHOD, be_patient, connecting, join_seconds, this_process

Result = TypeVar("Result")
# What each machine may have its own of.
_MAY_DIFFER = {"data.cache", "data.workers"}
_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# A rank may score or save for a while before it meets the others again.
_PATIENCE = timedelta(minutes=30)


def build_accelerator(experiment: Experiment) -> Accelerator:
    """The accelerator with the experiment's precision and loss scaling.

    Accumulation stays at 1 here: the training step owns its windows, since Accelerate under-weights the last
    one of an epoch.

    Raises:
        ExperimentError: the launcher's number of processes is not what came to be, they do not get a connection to each
            other, or were started with different experiments or versions of the code.
    """
    require_launched(on_cpu=not _on_gpu())
    precision = experiment.precision
    with connecting():
        accelerator = Accelerator(
            mixed_precision=_MIXED_PRECISION[choose_precision(precision.dtype)],
            gradient_accumulation_steps=1,
            kwargs_handlers=[
                # Buffers are alike on all ranks, or each rank's own until `share_buffers`: sent with every step, they
                # would make ranks wait once more. Gradients that are views of what is sent need no copy.
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                GradScalerKwargs(init_scale=precision.init_scale, growth_interval=precision.growth_interval),
                InitProcessGroupKwargs(init_method=INIT_METHOD, timeout=timedelta(seconds=join_seconds())),
            ],
        )
        accelerator.wait_for_everyone()  # NCCL connects with its first collective
    # The launcher's environment variable would override the argument and scale every loss down.
    accelerator.gradient_accumulation_steps = 1
    if accelerator.num_processes > 1:
        be_patient(patience(experiment))
    together(lambda: _require_all(accelerator))
    _require_same_experiment(accelerator, experiment)
    return accelerator


def _require_all(accelerator: Accelerator) -> None:
    """Raises where fewer processes came to be than were asked for."""
    # What torchrun launched, and what `camox train` asked the launcher for.
    for announced in (os.environ.get("WORLD_SIZE", "1"), os.environ.get("CAMOX_EXPECTED_PROCESSES", "1")):
        if accelerator.num_processes < int(announced):
            without = "" if torch.cuda.is_available() else "this machine has no GPU: "
            raise ExperimentError(
                f"{without}{announced} processes were launched but this one sees {accelerator.num_processes}: on a CPU "
                "start with ACCELERATE_USE_CPU=true and --config_file accelerate_configs/cpu_2_processes.yaml"
            )


def _require_same_experiment(accelerator: Accelerator, experiment: Experiment) -> None:
    """Processes with other settings or code would wait for each other in different places, or average what does not
    belong together. Collective."""
    if accelerator.num_processes == 1:
        return
    code = {"camox": camox.__version__, "torch": torch.__version__, "git commit": git_commit()}
    everyone = gather_object([(this_process(), experiment.plain(), code)])
    first, settings, versions = everyone[0]
    for other, theirs, their_versions in everyone[1:]:
        changed = [key for key in differences(settings, theirs) if key not in _MAY_DIFFER]
        # Code that was installed knows of no commit.
        known = [name for name, version in versions.items() if None not in (version, their_versions[name])]
        changed += [name for name in known if their_versions[name] != versions[name]]
        if changed:
            raise ExperimentError(
                f"{other} differs from {first} in {', '.join(changed)}: start all processes with the same code, "
                "experiment file and overrides"
            )


def patience(experiment: Experiment) -> timedelta:
    """How long a process waits for the others: longer than the watchdog does, which can say what they do."""
    return _PATIENCE + timedelta(seconds=experiment.stability.stall_seconds)


def choose_precision(asked: str) -> str:
    """ "fp32", "bf16" or "fp16": what runs when the experiment asks for `asked` on this machine.

    The launcher always announces a precision, "no" when nobody chose one; only its other values are a choice.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked == "auto":
        asked = launched if launched in ("fp16", "bf16") else _best_of_hardware()
    # There is no gradient scaler on the CPU: Accelerate would drop to fp32 without a word. See the notices.
    return "fp32" if asked == "fp16" and not _on_gpu() else asked


def precision_notices(experiment: Experiment, accelerator: Accelerator) -> list[str]:
    """What a person should know about precision and accumulation before the run starts."""
    notices = []
    asked = experiment.precision.dtype
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if "fp16" in (asked, launched if asked == "auto" else "") and accelerator.device.type == "cpu":
        notices.append("fp16 needs a GPU: this run computes in fp32")
    if asked != "auto" and launched in ("fp16", "bf16") and launched != asked:
        notices.append(f"the launcher asks for {launched} but precision.dtype is {asked}: the experiment file wins")
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        notices.append("the launcher's gradient accumulation is ignored: optimizer.accumulate decides")
    return notices


def precision_name(accelerator: Accelerator) -> str:
    """ "fp32", "bf16" or "fp16"."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def share_buffers(accelerator: Accelerator, *models: torch.nn.Module) -> None:
    """Gives every rank the main one's buffers: each has its own running statistics after an epoch, and would otherwise
    validate its share of the images with a model that nobody saves. Collective."""
    if accelerator.num_processes == 1:
        return
    for model in models:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.clone()))


def once(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Does `action` on the main process and gives its result, or raises its error, on all of them."""
    answer: list[Any] = [None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            answer = [action()]
        except Exception as error:  # noqa: BLE001  raised again by `fail_together`
            failure = error
    fail_together(failure)
    broadcast_object_list(answer)
    return answer[0]


def together(action: Callable[[], Result]) -> Result:
    """Does `action` on every process and gives each its result, or raises on all what failed on any. Collective."""
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001  raised again by `fail_together`
        failure = error
    fail_together(failure)
    return result


def fail_together(failure: Exception | None) -> None:
    """Raises on every process what failed on any; returns where nothing did. Collective.

    A process that failed alone would leave the others waiting for it, half an hour long.
    """
    # Rebuilt from its message elsewhere: not every error can be pickled with all it holds.
    ours = None if failure is None else (_camox_kind(failure), str(failure))
    everything = gather_object([ours])
    if failure is not None:
        if isinstance(failure, CamoxError):
            failure.met_alone = False  # the main process tells it
        raise failure
    for rank, theirs in enumerate(everything):
        if theirs is not None:
            kind, message = theirs
            # Of a process's own files and data; what is the main one's holds for all.
            message = f"process {rank}: {message}" if rank or kind is None else message
            raise (ElsewhereError if kind is None else kind)(message)


class ElsewhereError(RuntimeError):
    """Another process met an error that no user caused."""


def _camox_kind(error: Exception) -> type[CamoxError] | None:
    return next((kind for kind in type(error).__mro__ if kind.__module__ == CamoxError.__module__), None)


def _on_gpu() -> bool:
    # The launcher's --cpu and `use_cpu` come as a variable; the machine may have a GPU all the same.
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def _best_of_hardware() -> str:
    if not _on_gpu():
        return "fp32"
    # Before Ampere bf16 is emulated, slower than fp32.
    return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
