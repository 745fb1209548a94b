# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Volumes as stacks of pictures: across which axis, and which way up.

Slices are shown as radiologists read them, whatever the order of the array: anterior or superior up, the patient's
right or front on the left. The volume is only looked at in another order, never resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.orientations import io_orientation
from torch import Tensor

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the world axis across each


@dataclass(frozen=True)
class SliceView:
    """A volume as `[rows, columns, slices]`.

    Attributes:
        order: image axes that become rows, columns and slices.
        flips: which of these three run against the image's axis.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: Tensor, normal: int) -> SliceView:
        """The view across a world axis (0 right, 1 anterior, 2 superior) of a volume with an affine `[4, 4]`."""
        orientation = io_orientation(affine.detach().cpu().double().numpy())
        across, down = [axis for axis in range(3) if axis != normal]
        order = [int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in (down, across, normal)]
        rising = [bool(orientation[axis, 1] > 0) for axis in order]
        return cls((order[0], order[1], order[2]), (rising[0], rising[1], not rising[2]))

    def apply(self, image: Tensor) -> Tensor:
        """`[C, *S]` as `[C, rows, columns, slices]`."""
        turned = image.permute(0, *[axis + 1 for axis in self.order])
        return turned.flip([axis + 1 for axis, flip in enumerate(self.flips) if flip])

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """`[4, 4]` from voxels of an image of `shape` to those of the view."""
        matrix = torch.zeros(4, 4)
        matrix[3, 3] = 1
        for row, (axis, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[row, axis] = -1.0 if flip else 1.0
            matrix[row, 3] = shape[axis] - 1 if flip else 0
        return matrix


def normal_axis(plane: str, affines: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> int:
    """The world axis that slices are stacked along.

    Args:
        plane: "axial", "coronal", "sagittal", or "auto": across the axis with the coarsest voxels, relative to the
            finest of their volume, summed over the volumes; where that is level (within a tenth) the one with the
            fewest slices.
        affines: `[4, 4]` of each volume; shapes: their sizes.
    """
    if plane != "auto":
        return PLANES[plane]
    coarseness, slices = np.zeros(3), np.zeros(3)
    for affine, shape in zip(affines, shapes, strict=True):
        spacing = affine[:-1, :-1].norm(dim=0).cpu().numpy()
        world = io_orientation(affine.detach().cpu().double().numpy())[:, 0].astype(int)
        coarseness[world] += spacing / spacing.min()
        slices[world] += np.asarray(shape)
    level = coarseness > 0.9 * coarseness.max()
    return int(np.where(level, slices, np.inf).argmin())
