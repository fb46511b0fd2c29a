"""Which precision runs, and how processes agree."""

import pytest
import torch
from accelerate import Accelerator
from torch.distributed import DistBackendError

from camox.errors import CheckpointError, ExperimentError, PeersMissing
from camox.training import processes
from camox.training.processes import choose_precision, once, precision_notices


@pytest.mark.parametrize(
    ("asked", "launched", "expected"),
    [
        ("auto", "no", "fp32"),
        ("auto", "bf16", "bf16"),
        ("auto", "fp16", "fp32"),
        ("fp32", "bf16", "fp32"),
        ("bf16", "no", "bf16"),
        ("fp16", "no", "fp32"),
    ],
)
def test_on_a_cpu(monkeypatch, asked, launched, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert choose_precision(asked) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_what_the_gpu_computes_natively(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert choose_precision("auto") == expected


@pytest.mark.parametrize("asked", ["auto", "fp16", "fp32"])
def test_a_run_sent_to_the_cpu_of_a_machine_with_a_gpu_computes_in_fp32(monkeypatch, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert choose_precision(asked) == "fp32"


def test_fp16_without_a_gpu_is_said(monkeypatch, tiny_experiment):
    accelerator = Accelerator(cpu=True)
    assert any(
        "fp16 needs a GPU" in text for text in precision_notices(tiny_experiment('precision.dtype="fp16"'), accelerator)
    )
    assert precision_notices(tiny_experiment(), accelerator) == []


def test_a_disagreement_with_the_launcher_is_said(monkeypatch, tiny_experiment):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    notices = precision_notices(tiny_experiment('precision.dtype="fp32"'), accelerator)
    assert any("the experiment file wins" in text for text in notices)
    assert any("optimizer.accumulate decides" in text for text in notices)


def test_what_fails_elsewhere_is_raised_here_with_its_kind(monkeypatch):
    """As process 0 of two, of which the other met an error."""
    monkeypatch.setattr(processes, "gather_object", lambda ours: [*ours, (CheckpointError, "damaged")])
    with pytest.raises(CheckpointError, match="damaged"):
        processes.fail_together(None)
    monkeypatch.setattr(processes, "gather_object", lambda ours: [*ours, (None, "a bug")])
    with pytest.raises(processes.ElsewhereError, match="process 1: a bug"):
        processes.fail_together(None)
    with pytest.raises(ValueError, match="mine"):
        processes.fail_together(ValueError("mine"))


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "CAMOX_EXPECTED_PROCESSES"])
def test_fewer_processes_than_asked_for_are_an_error(monkeypatch, tiny_experiment, variable):
    """On a CPU `camox train … -- --num_processes 2` would quietly be one process, or two runs of the same name."""
    monkeypatch.setattr(processes, "Accelerator", lambda **_: Accelerator(cpu=True))
    assert processes.build_accelerator(tiny_experiment()).num_processes == 1
    place = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {variable: "2", **place}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = r"^this machine has no GPU: 2 processes were launched but this one sees 1.*cpu_2_processes\.yaml"
    with pytest.raises(ExperimentError, match=said):
        processes.build_accelerator(tiny_experiment())


def test_a_group_that_connects_with_its_first_collective_does_so_while_it_is_impatient(monkeypatch, tiny_experiment):
    """As NCCL's, where no connection is a matter of the network, told in one message."""
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(processes, "Accelerator", lambda **_: accelerator)
    monkeypatch.setattr(accelerator, "wait_for_everyone", no_connection)
    place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PeersMissing, match=r"no connection to the others \(store->get\('0'\) .*NCCL_SOCKET_IFNAME"):
        processes.build_accelerator(tiny_experiment())


def no_connection() -> None:
    raise DistBackendError("store->get('0') got error: wait timeout after 3000ms\nException raised from …")


def test_once_gives_the_result_or_the_error_itself():
    accelerator = Accelerator(cpu=True)
    assert once(accelerator, lambda: 42) == 42

    def fail() -> None:
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        once(accelerator, fail)
