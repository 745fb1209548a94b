# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Where the voxels of a sampling grid lie on an image while a map is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .free_form import interpolated
from .geometry import sample_normalised, transform_points


class Places:
    """Places on an image, one for every voxel of a sampling grid.

    A map is known on a few samples that carry it, and the sampling grid interpolates them linearly. Changes of
    coordinates (the pose, an image's pyramid, what `grid_sample` wants) are affine, so they are made on the few: on all
    of a volume's voxels they would take as long as looking the grey values up.

    Args:
        carried: `[D, *carrier]` voxels of the image, on a grid over the same extent.
        shape: of the sampling grid; None: the carrier is the grid.
    """

    def __init__(self, carried: Tensor, shape: Sequence[int] | None = None) -> None:
        self.carried, self.shape = carried, tuple(carried.shape[1:] if shape is None else shape)

    def through(self, matrix: Tensor | None = None, every: Sequence[int] | None = None) -> Tensor:
        """The places `[D, *grid]` in the coordinates that a homogeneous matrix leads to (None: voxels of the image), of
        every so-manieth voxel along the axes.
        """
        carried = self.carried if matrix is None else transform_points(matrix, self.carried)
        return interpolated(carried, self.shape, every)

    def sample(self, maps: Tensor, matrix: Tensor) -> Tensor:
        """Values `[C, *grid]` of maps `[C, *S]`, to whose voxels the matrix leads; beyond the border the border's."""
        places = self.through(normalising(tuple(maps.shape[1:]), matrix.device) @ matrix)
        return sample_normalised(maps, places.unbind(0), padding="border")


@lru_cache(maxsize=64)  # asked for again at every step of a fit
def normalising(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Matrix from voxels to [-1, 1] between the outermost centres, the last axis first: see `sample_normalised`."""
    dims = len(shape)
    matrix = torch.zeros(dims + 1, dims + 1)
    for axis, size in enumerate(shape):
        matrix[dims - 1 - axis, axis] = 2 / max(size - 1, 1)
    matrix[:-1, -1], matrix[-1, -1] = -1, 1
    return matrix.to(device)
