"""What `camox train` starts: `accelerate launch`, once it is sure that what was asked for can be launched.

A program of its own: Accelerate's parser brings torch along, which whoever waits for the run's end need not hold.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, its folder comes first on the path and would shadow packages with the names of its files.
if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from accelerate.commands.launch import launch_command
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from camox.errors import ExperimentError
from camox.training.launching.launcher import has_told_failure
from camox.training.launching.options import cores, local_processes, settle
from camox.training.launching.rendezvous import REMEDY, first_line, join_seconds


def main(arguments: Sequence[str]) -> int:
    """Launches and waits; returns the exit code, that of a run that failed in its own way being in a file."""
    try:
        settled = settle(arguments)
        _set_environment(settled.num_processes, local_processes(settled), settled.use_cpu)
    except ExperimentError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    # Processes that ended by themselves have said why; of one that was killed only the launcher knows.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(lambda _: not has_told_failure())
    try:
        launch_command(settled)
    except ChildFailedError as failure:
        if not has_told_failure():
            sys.stderr.write(f"{failure}\n")
        return 1
    except (DistError, RendezvousError, ConnectionError) as error:
        sys.stderr.write(f"error: {_meeting(settled, error)}\n")
        return 2
    return 0


def _set_environment(processes: int, local: int, on_cpu: bool) -> None:
    """For the processes to come. The launcher allows each one thread, and several do not hear of `--cpu`.

    Waiting threads sleep: while they spin, a neighbour that needs the core slows every step down.
    """
    if processes == 1 and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ExperimentError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in this environment, but one process is to be launched: another "
            "program has left it, or started camox train several times; unset WORLD_SIZE, or start camox/train.py by it"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // local)))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["CAMOX_EXPECTED_PROCESSES"] = str(processes)
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def _meeting(settled: argparse.Namespace, error: Exception) -> str:
    machine, port = settled.machine_rank or 0, settled.main_process_port
    where = f"{settled.main_process_ip or 'this machine'}, port {port}, within {join_seconds():g} s"
    return f"machine {machine} could not meet the others at {where} ({first_line(error)}){REMEDY}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
