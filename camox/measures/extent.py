"""Where an image's object is: its size, its centre and the box around it."""

from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

Patch = TypeVar("Patch", bound=Any)
"""An array or a tensor [h, w]."""

Box = tuple[slice, slice]
"""Rows and columns."""


class Extent(NamedTuple):
    """Of the object of a truth [H, W]; without a pixel, `centre` is (H, W) and the box is empty.

    pixels: how many are object. centre: rows and columns of the quadrant above and left of the object's centre, which
    the row and column of the centre belong to. The box's last row and column, `bottom` and `right`, are outside it.
    """

    shape: tuple[int, int]
    pixels: int
    centre: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int

    @property
    def box(self) -> Box:
        """The smallest box that holds the object."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def quadrants(self) -> tuple[Box, Box, Box, Box]:
        """Upper left, upper right, lower left, lower right."""
        rows, columns = self.centre
        up, down, left, right = slice(0, rows), slice(rows, None), slice(0, columns), slice(columns, None)
        return (up, left), (up, right), (down, left), (down, right)

    def around(self, margin: int) -> Box:
        """The box with so many more pixels on each side, as far as the image has them."""
        return (
            slice(max(self.top - margin, 0), min(self.bottom + margin, self.shape[0])),
            slice(max(self.left - margin, 0), min(self.right + margin, self.shape[1])),
        )

    def within_image(self, patch: Patch, margin: int) -> Patch:
        """The patch, of the box and `margin` pixels on each side of it, set to zero where there is no image."""
        rows, columns = self.around(margin)
        top, left = self.top - margin, self.left - margin
        patch[: rows.start - top] = 0
        patch[rows.stop - top :] = 0
        patch[:, : columns.start - left] = 0
        patch[:, columns.stop - left :] = 0
        return patch


def find_extent(truth: np.ndarray) -> Extent:
    """The extent of the object of a truth, uint8 [H, W] in {0, 1}."""
    shape = (truth.shape[0], truth.shape[1])
    in_row = cv2.reduce(truth, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().astype(np.int64)
    in_column = cv2.reduce(truth, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().astype(np.int64)
    pixels = int(in_row.sum())
    if pixels == 0:
        return Extent(shape, 0, shape, 0, 0, 0, 0)
    rows, columns = np.flatnonzero(in_row), np.flatnonzero(in_column)
    centre = tuple(round(int(count @ np.arange(count.size)) / pixels) + 1 for count in (in_row, in_column))
    return Extent(
        shape, pixels, (centre[0], centre[1]), int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    )
