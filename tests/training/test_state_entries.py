"""A module's state by entries is its `state_dict`, whatever became of its tensors since."""

import pytest
import torch
from torch import nn

from camox.models.camoxpert import CamoXpert
from camox.training.state_entries import StateEntries


class Parts(nn.Module):
    """Parameters, buffers of both kinds, none of either, and a part that is there twice."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 3, bias=False)
        self.again = self.linear
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("left_out", torch.zeros(2), persistent=False)
        self.register_buffer("none", None)


@pytest.mark.parametrize("make", [Parts, lambda: CamoXpert("resnet10t", pretrained=False, width=8)])
def test_entries_are_those_of_the_state_dict_in_order(make):
    module = make()
    found, expected = StateEntries(module).tensors(), module.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].data_ptr() == tensor.data_ptr() for name, tensor in expected.items())
    assert not any(tensor.requires_grad for tensor in found.values())


def test_a_tensor_that_was_replaced_is_found():
    module = Parts()
    entries = StateEntries(module)
    module.kept = torch.ones(2)
    module.scale = nn.Parameter(torch.full((3,), 2.0))
    module.linear.weight.data = torch.full((3, 3), 3.0)
    found = entries.tensors()
    assert found["kept"].tolist() == [1, 1]
    assert found["scale"].tolist() == [2, 2, 2]
    assert found["again.weight"][0].tolist() == [3, 3, 3]


def test_a_state_of_another_kind_is_refused():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return 1

        def set_extra_state(self, state): ...

    with pytest.raises(AssertionError, match="another kind"):
        StateEntries(Odd(1, 1))
