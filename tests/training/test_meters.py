"""Sums in one packed vector come back under their names and shapes."""

import numpy as np
import pytest
import torch

from camox.training.meters import Meters


def test_sums_come_back_by_name_and_shape_and_start_anew():
    meters = Meters()
    for i in range(3):
        meters.add({"loss": torch.tensor(float(i)), "counts": torch.full((2, 3), i), "flag": torch.tensor(True)})
    values = meters.read(lambda sums: sums)
    assert values["loss"] == 3
    np.testing.assert_array_equal(values["counts"], np.full((2, 3), 3))
    assert values["flag"] == 3
    assert meters.read(lambda sums: sums) == {}


def test_the_reduction_over_ranks_sees_one_vector():
    meters = Meters()
    meters.add({"a": torch.tensor(1.0), "b": torch.ones(4)})
    seen = []
    values = meters.read(lambda sums: seen.append(sums.shape) or sums * 2)
    assert seen == [torch.Size([5])]
    assert values["a"] == 2


def test_other_names_than_at_first_are_a_bug():
    meters = Meters()
    meters.add({"a": torch.tensor(1.0)})
    with pytest.raises(AssertionError):
        meters.add({"b": torch.tensor(1.0)})
