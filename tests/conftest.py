"""What every test starts from: one thread, no network, no process-wide state of an earlier test."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

# Before torch, albumentations and wandb are first imported; processes that tests start inherit them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

# No time limits: a busy machine is no failure.
settings.register_profile("camox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("camox")


def pytest_configure() -> None:
    """Forget what says whether a person watches, how wide and in which colours: CI and terminals set some of it."""
    for variable in ("CI", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        os.environ.pop(variable, None)
    os.environ["TERM"] = "xterm"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sockets reach this machine alone: a test that needs the network fails, with or without one."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse_unless_local(host: Any) -> None:
        if not _is_local(host):
            raise OSError(f"tests have no network: connection to {host!r} refused")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_unless_local(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_unless_local(address[0])
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_unless_local(host)
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in classes: without a reset, one test's precision is the next one's."""
    yield
    forget_accelerate_state()


def forget_accelerate_state() -> None:
    """As in a process that has no accelerator yet."""
    if "accelerate.state" not in sys.modules:
        return
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._reset_state()


def fp16_accelerator(growth_interval: int = 200) -> Any:
    """An accelerator that trains in real fp16 on the CPU: half-precision autocast and a gradient scaler.

    Accelerate itself would silently run fp32 here; with these two set, all it does is as on a GPU.
    """
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=growth_interval)
    accelerator.native_amp = True
    return accelerator


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Writes what the test of an incident has seen, as `write_record` takes it, for tools/stability_page.py; does
    nothing unless CAMOX_INCIDENTS names a folder for it."""
    from tests.incidents.records import write_record

    folder = os.environ.get("CAMOX_INCIDENTS")
    if folder is None:
        return lambda *_, **__: None
    return lambda number, title, **seen: write_record(Path(folder), request.node.name, number, title, **seen)


@pytest.fixture(scope="session")
def open_pairs() -> Path:
    """Folder of openly licensed photographs with masks, and of published maps.

    Each file has a licence of its own, so they are not part of the repository: whoever has them names the folder.
    """
    if "CAMOX_OPEN_PAIRS" not in os.environ:
        pytest.skip("the open pairs are not part of the repository: set CAMOX_OPEN_PAIRS to the folder that holds them")
    return Path(os.environ["CAMOX_OPEN_PAIRS"])


@pytest.fixture
def tiny_experiment(tmp_path: Path) -> Callable[..., Any]:
    """Makes experiments of the full model class that train in about a second: 2 + 2 steps over two phases."""

    def make(*overrides: str, output: Path | None = None) -> Any:
        from camox.experiment import Experiment

        path = tmp_path / "tiny.toml"
        path.write_text(TINY_EXPERIMENT)
        return Experiment.load(path, overrides, output or tmp_path / "runs")

    return make


TINY_EXPERIMENT = """
[experiment]
name = "tiny"
seed = 3

[data]
train = [{ synthetic = "habitats", count = 12, size = 32, tiny = 0.0 }]
val_fraction = 0.34
image_size = 32
batch_size = 4
workers = 0

[[data.augment]]
name = "HorizontalFlip"
p = 0.5

[model]
backbone = "resnet10t"
pretrained = false
width = 8

[optimizer]
lr = 1e-3

[schedule]
warmup_epochs = 1

[[phases]]
name = "frozen"
epochs = 1
freeze = ["backbone"]

[[phases]]
name = "full"
epochs = 1

[checkpoints]
every_epochs = 1
monitor = "iou"

[validation]
measures = ["iou", "mae"]

[tracking]
log_every = 1
wandb = "disabled"
report = false
"""


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ip_address(name).is_loopback or ip_address(name).is_unspecified
    except ValueError:
        return False
