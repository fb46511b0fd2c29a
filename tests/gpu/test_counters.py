"""What the benchmark counts on a GPU, against what can be counted by hand."""

import pytest
import torch

from benchmarking import cuda
from benchmarking.counters import count_calls

pytestmark = pytest.mark.gpu


@pytest.fixture
def x(device):
    return torch.ones(1000, device=device)


def test_launches_are_kernels_and_waits_are_calls_that_return_late(x):
    assert cuda.api_calls(lambda: x + 1) == cuda.ApiCalls(launches=1, waits=0)
    assert cuda.api_calls(lambda: (x + 1) * 2) == cuda.ApiCalls(launches=2, waits=0)
    assert cuda.api_calls(lambda: (x + 1)[0].item()).waits == 1


def test_an_event_that_is_waited_for_is_seen_by_the_profiler_alone(x):
    def step():
        event = torch.cuda.Event()
        _ = x + 1
        event.record()
        event.synchronize()

    assert cuda.api_calls(step).waits == 1
    assert cuda.waits(step) == 0


@pytest.mark.parametrize(
    ("read", "waits"), [(lambda x: x * 2, 0), (lambda x: x[0].item(), 1), (lambda x: x.nonzero(), 1)]
)
def test_waits_by_sync_debug_mode(x, read, waits):
    assert (cuda.waits(lambda: read(x)) > 0) == (waits > 0)
    with count_calls(x.device) as calls:
        read(x)
    assert calls.host_copies == waits


def test_the_peak_of_a_step_is_that_of_what_is_alive_at_once(device):
    held = torch.zeros(2**20, device=device)
    before = torch.cuda.memory_allocated()

    def step():
        one = held + 1
        return one + 1

    assert cuda.peak_bytes(step) - before == 2 * 2**22


def test_what_does_not_fit_is_said_and_given_back(device):
    before = torch.cuda.memory_allocated()

    def too_large():
        kept = [torch.zeros(2**30, device=device)]
        while True:
            kept.append(torch.zeros(2**34, dtype=torch.uint8, device=device))

    assert cuda.attempt(too_large) == "out of memory"
    assert torch.cuda.memory_allocated() == before


def test_the_card_is_described(device):
    found = cuda.card(device) | cuda.versions()
    assert found["gpu"] == torch.cuda.get_device_name(device)
    assert found["gpu_memory_bytes"] > 2**30
    assert int(found["cudnn"]) > 8000
