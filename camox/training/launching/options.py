"""What `accelerate launch` was asked for, by options and file, and whether it can be done on this machine."""

import argparse
import difflib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from camox.errors import ExperimentError
from camox.tracking.console import counted
from camox.training.launching.rendezvous import join_seconds

DEFAULT_PORT = 29500
_SPLIT = {"use_deepspeed": "DeepSpeed", "use_fsdp": "FSDP", "use_megatron_lm": "Megatron-LM", "tpu": "TPU"}
_SPLIT_TYPES = {
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.FSDP: "FSDP",
    DistributedType.MEGATRON_LM: "Megatron-LM",
    DistributedType.XLA: "TPU",
}
_WHOLE_NUMBERS = ("num_processes", "num_machines", "machine_rank", "main_process_port")


def settle(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of `accelerate launch`, with all decided that it would otherwise read from its file or remark on.

    Several processes on CPUs become possible by the way: the launcher itself starts one with `--cpu --num_processes 2`.

    Args:
        arguments: options, the script, and the script's arguments.

    Raises:
        ExperimentError: what is asked for cannot be launched here.
    """
    parser = launch_command_parser()
    parser.error = _refuse_option  # it would print a page of usage first
    asked = parser.parse_args(list(arguments))
    if Path(asked.training_script).name != "train.py":
        _refuse_option(f"{asked.training_script!r} is no option")
    file = _read_file(asked.config_file) if _has_file(asked) else None
    _require_whole_network(asked, file)
    on_cpu = asked.cpu or (file is not None and (file.use_cpu or file.distributed_type == DistributedType.MULTI_CPU))

    machines = _decided(asked, file, "num_machines", 1)
    here = 1 if on_cpu else max(1, torch.accelerator.device_count())
    # The launcher counts those of all machines.
    processes = _decided(asked, file, "num_processes", max(1, machines) * here)
    _require_processes(processes, machines, file)
    if on_cpu:
        _require_cores(processes // machines)
    else:
        _require_devices(processes // machines, asked.gpu_ids or (file.gpu_ids if file else None))
    asked.num_machines, asked.num_processes = machines, processes
    asked.multi_gpu = processes > 1
    asked.cpu, asked.use_cpu = on_cpu and processes == 1, on_cpu
    if file is None:
        asked.mixed_precision, asked.dynamo_backend = asked.mixed_precision or "no", asked.dynamo_backend or "no"
    asked.main_process_ip = _decided(asked, file, "main_process_ip", None)
    # On one machine nobody else has to know the port: any free one will do.
    asked.main_process_port = _decided(asked, file, "main_process_port", 0 if machines == 1 else DEFAULT_PORT)
    if machines > 1:
        _settle_machines(asked, file)
    if processes > 1:
        _require_port(asked)
    return asked


def local_processes(settled: argparse.Namespace) -> int:
    """How many processes start on this machine."""
    return int(settled.num_processes) // int(settled.num_machines)


def cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_file(asked: argparse.Namespace) -> bool:
    """Whether the launcher reads a file: that of --config_file, else the one that `accelerate config` wrote."""
    return asked.config_file is not None or (os.path.isfile(default_config_file) and not asked.cpu)


def _decided(asked: argparse.Namespace, file: ClusterConfig | None, name: str, otherwise: Any) -> Any:
    """The option, else the file's value, else `otherwise`."""
    if (given := getattr(asked, name)) is not None:
        return given
    written = getattr(file, name, None)
    return otherwise if written is None or (name == "num_processes" and written == -1) else written


# ---- the file


def _read_file(given: str | None) -> ClusterConfig:
    path = Path(given or default_config_file)
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"--config_file {path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
        raise ExperimentError(f"--config_file {path}: is not YAML ({where})") from error
    if not isinstance(keys, dict):
        raise ExperimentError(f"--config_file {path}: holds no keys; accelerate_configs/ has files that do")
    _require_known(path, keys)
    try:
        file = load_config_from_file(str(path))
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"--config_file {path}: {error}") from error
    if not isinstance(file, ClusterConfig):
        raise ExperimentError(
            f"--config_file {path}: camox trains on machines of your own, not on {keys['compute_environment']}"
        )
    if file.machine_rank == 0 and "machine_rank" not in keys:
        file.machine_rank = None  # its default would make every machine the first
    return file


def _require_known(path: Path, keys: dict[Any, Any]) -> None:
    known = [*ClusterConfig.__dataclass_fields__, "fp16", "dynamo_backend"]
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ExperimentError(f"--config_file {path}: unknown key {key}{hint}")
    for name in _WHOLE_NUMBERS:
        if keys.get(name) is not None and type(keys[name]) is not int:
            raise ExperimentError(f"--config_file {path}: {name} is {keys[name]!r}, not a whole number")


# ---- what can be done


def _refuse_option(message: str) -> NoReturn:
    raise ExperimentError(
        f"{message}; what follows -- goes to accelerate launch, see camox train EXPERIMENT.toml -- --help"
    )


def _require_whole_network(asked: argparse.Namespace, file: ClusterConfig | None) -> None:
    names = [name for option, name in _SPLIT.items() if getattr(asked, option)]
    if file is not None and file.distributed_type in _SPLIT_TYPES:
        names.append(_SPLIT_TYPES[file.distributed_type])
    if names:
        raise ExperimentError(
            f"{names[0]} is asked for, but camox keeps the whole network on every GPU, where it is small: "
            "take distributed_type MULTI_GPU, as in accelerate_configs/two_gpu_fp16.yaml"
        )


def _require_processes(processes: int, machines: int, file: ClusterConfig | None) -> None:
    if processes < 1:
        raise ExperimentError(f"num_processes is {processes}: there must be at least one process")
    if machines < 1:
        raise ExperimentError(f"num_machines is {machines}: there must be at least one machine")
    if processes % machines:
        raise ExperimentError(
            f"num_processes is {processes} and num_machines is {machines}: num_processes counts those of all machines, "
            "and each has the same share"
        )


def _require_devices(processes: int, gpu_ids: str | None) -> None:
    """Each of several processes needs a GPU of its own: NCCL refuses two on one."""
    devices = torch.accelerator.device_count()
    if gpu_ids not in (None, "all"):
        assert gpu_ids is not None
        devices = min(devices, len(gpu_ids.split(",")))
    if processes <= max(1, devices):
        return
    remedy = f"give --num_processes {devices}" if devices else "add --cpu to train on the CPU"
    raise ExperimentError(
        f"{processes} processes are asked for on this machine, each with its own GPU, and it has {devices}: {remedy}"
    )


def _require_cores(processes: int) -> None:
    """More processes than cores only wait for each other; two are let be, for whoever tries how it goes."""
    most = max(2, cores())
    if processes > most:
        raise ExperimentError(
            f"{processes} processes are asked for on this machine's CPU, which has {counted(cores(), 'core')}: "
            f"give --num_processes {most} or fewer"
        )


def _settle_machines(asked: argparse.Namespace, file: ClusterConfig | None) -> None:
    asked.machine_rank = _decided(asked, file, "machine_rank", None)
    if asked.machine_rank is None or not 0 <= asked.machine_rank < asked.num_machines:
        given = "is not given" if asked.machine_rank is None else f"is {asked.machine_rank}"
        raise ExperimentError(
            f"--machine_rank {given}: of {asked.num_machines} machines each is started with its own, "
            f"0 to {asked.num_machines - 1}"
        )
    if asked.main_process_ip is None:
        raise ExperimentError("--main_process_ip is not given: the name or address of machine 0, the same on all")
    try:
        socket.getaddrinfo(asked.main_process_ip, None)
    except OSError as error:
        raise ExperimentError(
            f"--main_process_ip {asked.main_process_ip}: this machine knows no such name ({error.strerror}); give "
            "the IP address of machine 0"
        ) from error
    if asked.main_process_port == 0:
        raise ExperimentError("--main_process_port 0: several machines need one that all of them know, such as 29500")
    # The launcher's own limits are ten minutes, and one for connecting. They have other names for each way to meet.
    limit = max(1, round(join_seconds()))
    asked.rdzv_conf = asked.rdzv_conf or f"timeout={limit},join_timeout={limit},read_timeout={limit}"


def _require_port(asked: argparse.Namespace) -> None:
    port = asked.main_process_port
    if not 0 <= port < 2**16:
        raise ExperimentError(f"--main_process_port {port}: ports are 1 to 65535")
    if port == 0 or (asked.num_machines > 1 and asked.machine_rank != 0):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the launcher's own: a port whose last user has just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            other = "0, for a free one" if asked.num_machines == 1 else "another, the same on all machines"
            raise ExperimentError(f"--main_process_port {port} is taken ({error.strerror}): give {other}") from error
