"""Feature maps cut into a grid of regions that are routed by themselves, and put together again."""

import torch.nn.functional as F
from torch import Tensor


def split_regions(x: Tensor, grid: int) -> Tensor:
    """`[B, C, H, W]` → `[B·grid², C, ⌈H/grid⌉, ⌈W/grid⌉]`: regions of an image stay together, row by row.

    Where the grid does not divide the map, the last rows and columns are repeated; `join_regions` drops them. An expert
    sees no further than its region, so the joined map has seams at the borders of regions.
    """
    if grid == 1:
        return x
    x = F.pad(x, (0, -x.shape[-1] % grid, 0, -x.shape[-2] % grid), mode="replicate")
    rows = x.unflatten(2, (grid, -1)).unflatten(4, (grid, -1))  # [B, C, grid, h, grid, w]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def join_regions(regions: Tensor, grid: int, height: int, width: int) -> Tensor:
    """The inverse of `split_regions` for a map of that height and width."""
    if grid == 1:
        return regions
    rows = regions.unflatten(0, (-1, grid, grid)).permute(0, 3, 1, 4, 2, 5)  # [B, C, grid, h, grid, w]
    return rows.flatten(4, 5).flatten(2, 3)[..., :height, :width]
