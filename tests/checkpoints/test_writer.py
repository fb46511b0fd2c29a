"""The copy that a background save makes: its own memory, the same memory each time, whatever is asked for next."""

import threading

import torch
from torch import nn

from camox.checkpoints.writer import BackgroundWriter


def test_what_is_written_is_what_was_there_when_save_returned():
    writer, weight, go_on = BackgroundWriter(), nn.Parameter(torch.ones(3)), threading.Event()

    def write(host):
        go_on.wait(60)
        return host["model"]["weight"].clone()

    writer.save({"model": {"weight": weight}}, write)
    with torch.no_grad():
        weight.fill_(5)
    assert writer.finished() is None
    go_on.set()
    written = writer.wait()
    assert written.tolist() == [1, 1, 1]
    assert not written.requires_grad


def test_host_memory_is_used_again_and_groups_are_apart():
    writer = BackgroundWriter()
    state = {"model": {"a": torch.zeros(4), "b": torch.zeros(2)}, "ema": {"a": torch.ones(4)}}
    first = writer.copy(state)
    places = [tensor.data_ptr() for group in first.values() for tensor in group.values()]
    state["model"]["a"].fill_(7)
    second = writer.copy(state)
    assert [tensor.data_ptr() for group in second.values() for tensor in group.values()] == places
    assert second["model"]["a"].tolist() == [7] * 4
    assert second["ema"]["a"].tolist() == [1] * 4


def test_tensors_may_come_go_and_change_shape_or_dtype():
    writer = BackgroundWriter()
    writer.copy({"model": {"shape": torch.zeros(4), "dtype": torch.zeros(2), "gone": torch.zeros(1)}})
    now = {"shape": torch.ones(1), "dtype": torch.ones(2, dtype=torch.int64), "new": torch.ones(3)}
    found = writer.copy({"model": now})["model"]
    assert found.keys() == now.keys()
    for name, tensor in now.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
