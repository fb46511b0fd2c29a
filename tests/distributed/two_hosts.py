"""Two hosts on this machine: network namespaces with names and addresses of their own, joined by a cable."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PORT = "29777"


class Host:
    """One of the two, with a name that both resolve."""

    def __init__(self, number: int, names: Path):
        self.number = number
        self.name = f"camox-{'ab'[number]}"
        self.address = f"10.77.0.{number + 1}"
        self.namespace = f"{self.name}-{os.getpid()}"
        self.interface = f"cx{number}-{os.getpid()}"  # 15 characters at most
        self._names = names

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command there, in a process group of its own; stdout and stderr come together."""
        inside = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        line = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount"]
        line += ["sh", "-c", inside, "sh", self.name, str(self._names), *command]
        settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            line,
            env={**os.environ, **settings, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )


class Hosts:
    """Both, and the cable between them."""

    def __init__(self, names: Path):
        self.both = (Host(0, names), Host(1, names))

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
                for host in hosts.both:
                    with host.start("true") as process:
                        said = process.communicate(timeout=30)[0]
                    if process.returncode != 0:
                        return f"no hosts of their own here: {said.strip()}"
                hosts.cut()
        except (OSError, subprocess.SubprocessError) as error:
            return f"no network namespaces here: {getattr(error, 'stderr', None) or error}".strip()
    return None


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Makes them, and takes them away again with all that runs there."""
    names = folder / "hosts"
    hosts = Hosts(names)
    names.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts.both))
    one, other = hosts.both
    try:
        for host in hosts.both:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", one.interface, "netns", one.namespace, "type", "veth",
            "peer", "name", other.interface, "netns", other.namespace)  # fmt: skip
        for host in hosts.both:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", interface, "up")
        yield hosts
    finally:
        for host in hosts.both:
            pids = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def launch_line(host: Host, *options: str) -> list[str]:
    """`accelerate launch` of one process on each of the two, as machine `host.number`."""
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        "--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(host.number),
        "--main_process_ip", "camox-a", "--main_process_port", PORT, *options,
    ]  # fmt: skip


def workers(launcher: subprocess.Popen[str]) -> Sequence[psutil.Process]:
    """The processes that the launcher has started to train."""
    return [
        child
        for child in psutil.Process(launcher.pid).children()
        if "accelerate.commands.launch" not in child.cmdline()
    ]


def _neighbour(action: str, host: Host, peer: Host) -> list[str]:
    return ["-n", host.namespace, "neighbour", action, peer.address, "dev", host.interface]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True, timeout=30)
