"""Two hosts on this machine: network namespaces with names and addresses of their own, joined by a cable."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PORT = 29777
# Of both hosts; a folder that is to be empty on this one; then the command.
_ENTER = """
hostname "$1" && mount --bind "$2" /etc/hosts || exit 99
if [ -n "$3" ]; then mount -t tmpfs none "$3" || exit 99; fi
shift 3; exec "$@"
"""


class Job:
    """A command that runs on a host. What it writes is kept in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        self.process = process
        self._log = log

    @property
    def text(self) -> str:
        """What it has written so far, stdout and stderr together."""
        return self._log.read_text(errors="replace")

    def end(self, timeout: float) -> int:
        """Waits for its end and gives its exit code."""
        return self.process.wait(timeout)

    def trainers(self) -> list[psutil.Process]:
        """Its descendants that train: those that a launcher has started."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in below if "LOCAL_RANK" in child.environ() and child.ppid() != os.getpid()]


class Host:
    """One of the two, with a name that both resolve."""

    def __init__(self, number: int, folder: Path):
        self.number = number
        self.name = f"camox-{'ab'[number]}"
        self.address = f"10.77.0.{number + 1}"
        self.namespace = f"{self.name}-{os.getpid()}"
        self.interface = f"cx{number}-{os.getpid()}"  # 15 characters at most
        self._folder = folder
        self._jobs: list[Job] = []

    def start(self, *command: str, own: Path | None = None, **environment: str) -> Job:
        """Starts a command there.

        Args:
            own: a folder that is empty there at first, and whose content no other host sees.
            environment: variables, besides those of this process.
        """
        cores = sorted(os.sched_getaffinity(0))
        # Its half of them, as each of two processes on one machine has: the number of threads decides on bits.
        ours = cores[self.number * (len(cores) // 2) :][: max(1, len(cores) // 2)]
        line = [
            "taskset",
            "--cpu-list",
            ",".join(map(str, ours)),
            "ip",
            "netns",
            "exec",
            self.namespace,
            "unshare",
            "--uts",
            "--mount",
        ]
        line += ["sh", "-c", _ENTER, "sh", self.name, str(self._folder / "hosts"), str(own or ""), *command]
        settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log = self._folder / f"{self.name}-{len(self._jobs)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                line, env={**os.environ, **settings, **environment}, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
            )
        self._jobs.append(Job(process, log))
        return self._jobs[-1]

    def launch(self, *options: str, own: Path | None = None, **environment: str) -> Job:
        """Starts `accelerate launch` of one process here and one on the other host; `options` are its last ones, the
        script, and the script's arguments."""
        machines = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(self.number)]
        meeting = ["--main_process_ip", "camox-a", "--main_process_port", str(PORT)]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *machines, *meeting]
        return self.start(*launcher, *options, own=own, **environment)

    def leave(self) -> None:
        """Ends all that runs there."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        for job in self._jobs:
            job.process.wait()
        subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True, check=False)


class Hosts:
    """Both, and the cable between them."""

    def __init__(self, folder: Path):
        self.both = (Host(0, folder), Host(1, folder))

    def cut(self) -> None:
        """From now on nothing arrives, and nobody is told: frames go to an address that no interface has."""
        for host, peer in (self.both, self.both[::-1]):
            _ip(*_neighbour("replace", host, peer), "lladdr", "02:00:00:00:00:99", "nud", "permanent")

    def mend(self) -> None:
        for host, peer in (self.both, self.both[::-1]):
            _ip(*_neighbour("del", host, peer))


def unavailable() -> str | None:
    """Why there can be no such hosts here, None where there can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with two_hosts(Path(folder)) as hosts:
                jobs = [host.start("true", own=Path(folder)) for host in hosts.both]
                if any(job.end(timeout=30) for job in jobs):
                    return f"no hosts of their own on this machine: {jobs[0].text.strip()}"
                hosts.cut()
        except subprocess.CalledProcessError as error:
            return f"no network namespaces on this machine: {error.stderr.strip()}"
        except OSError as error:
            return f"no network namespaces on this machine: {error}"
    return None


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Makes them, and takes them away again with all that runs there."""
    hosts = Hosts(folder)
    names = "".join(f"{host.address} {host.name}\n" for host in hosts.both)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    one, other = hosts.both
    try:
        for host in hosts.both:
            _ip("netns", "add", host.namespace)
        cable = ["link", "add", one.interface, "netns", one.namespace, "type", "veth"]
        _ip(*cable, "peer", "name", other.interface, "netns", other.namespace)
        for host in hosts.both:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", interface, "up")
        yield hosts
    finally:
        for host in hosts.both:
            host.leave()


def _neighbour(action: str, host: Host, peer: Host) -> list[str]:
    return ["-n", host.namespace, "neighbour", action, peer.address, "dev", host.interface]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True, timeout=30)
