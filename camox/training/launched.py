"""Whether what a launcher has told this process, by its environment, can be: before anything waits for the others."""

import os
import socket
from typing import NoReturn

import torch
import torch.distributed as dist

from camox.errors import ExperimentError

_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def require_launched(on_cpu: bool) -> None:
    """Looks at the variables by which torchrun and `accelerate launch` tell a process its place.

    Args:
        on_cpu: whether this process is to compute on the CPU.

    Raises:
        ExperimentError: some are missing, or name a place that cannot be.
    """
    ranks = _number("WORLD_SIZE", 1)
    if ranks == 1 or dist.is_initialized():
        return
    if missing := [name for name in _NEEDED if not os.environ.get(name)]:
        _refuse(
            f"WORLD_SIZE is {ranks} but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start several processes by accelerate launch, torchrun "
            "or camox train; for one process unset WORLD_SIZE, which another program has left in the environment"
        )
    if not 0 <= (rank := _number("RANK", 0)) < ranks:
        _refuse(f"RANK is {rank} and WORLD_SIZE is {ranks}: ranks are 0 to {ranks - 1}")
    here, devices = _number("LOCAL_WORLD_SIZE", 1), torch.accelerator.device_count()
    if not on_cpu and devices and here > devices:
        _refuse(
            f"{here} processes were launched on this machine, each for a GPU of its own, and there are {devices} GPUs: "
            f"launch {devices} here"
        )
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except OSError as error:
        _refuse(
            f"MASTER_ADDR is {os.environ['MASTER_ADDR']}, a name that this machine does not know ({error.strerror}): "
            "give the launcher the IP address of the first machine"
        )


def port_taken(error: dist.DistError) -> ExperimentError:
    """What to tell where the process group could not listen on its port."""
    return ExperimentError(
        f"port {os.environ.get('MASTER_PORT')} of {os.environ.get('MASTER_ADDR')} is taken, perhaps by another run: "
        f"give the launcher another one ({str(error).splitlines()[0]})"
    )


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.lstrip("-").isdigit():
        _refuse(f"{name} is {text!r} in the environment, not a whole number: unset it, or let a launcher set it")
    return int(text)


def _refuse(message: str) -> NoReturn:
    error = ExperimentError(message)
    # One process tells for its machine: what is wrong on this one, the main process may not know.
    error.met_alone = os.environ.get("LOCAL_RANK", "0") == "0"
    raise error
