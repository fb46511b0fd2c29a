"""Regions: a map cut by a grid is whole again when joined."""

import pytest
import torch

from camox.models.regions import join_regions, split_regions


@pytest.mark.parametrize("grid", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(12, 24), (11, 11), (3, 5), (1, 7)])
def test_joining_undoes_splitting_at_any_size(grid, size):
    x = torch.randn(2, 3, *size)
    regions = split_regions(x, grid)
    assert regions.shape == (2 * grid**2, 3, -(-size[0] // grid), -(-size[1] // grid))
    assert torch.equal(join_regions(regions, grid, *size), x)


def test_regions_of_an_image_stay_together_row_by_row():
    x = torch.arange(2 * 4 * 6.0).reshape(2, 1, 4, 6)
    regions = split_regions(x, 2)
    assert torch.equal(regions[1], x[0, :, :2, 3:])
    assert torch.equal(regions[2], x[0, :, 2:, :3])
    assert torch.equal(regions[4], x[1, :, :2, :3])


def test_what_is_missing_at_the_end_repeats_the_last_row():
    regions = split_regions(torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 1, 5, 2), 2)
    assert regions[2, 0, :, 0].tolist() == [3, 4, 4]
