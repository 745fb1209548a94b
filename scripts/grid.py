# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Sampling grids over the fixed image's extent, and its longest side as unit."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, prod

import torch
from torch import Tensor

from .geometry import identity_points


@dataclass(frozen=True)
class Grid:
    """A sampling grid of the fixed image's extent.

    Attributes:
        shape: voxels along each axis.
        spacing: voxel size along each axis, mm (pixels where the image has no spacing).
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    @property
    def extent(self) -> tuple[float, ...]:
        """Distance from the first to the last voxel centre along each axis, mm."""
        return tuple((n - 1) * s for n, s in zip(self.shape, self.spacing, strict=True))

    @property
    def unit(self) -> float:
        """Length of the longest side, mm: the unit of all parameters."""
        return max(self.extent)

    def voxels_per_unit(self, device: torch.device | str = "cpu") -> Tensor:
        """`[D, 1, ...]`: factor from units to voxels of this grid."""
        spacing = torch.tensor(self.spacing, device=device)
        return (self.unit / spacing).reshape(-1, *[1] * len(self.shape))

    def coarsened(self, longest: int, most: float = inf) -> Grid:
        """The grid over the same extent whose voxels are as near to cubes as its longest side of `longest` voxels
        allows; coarser where it would have more than `most` voxels.
        """
        size = self.unit / (longest - 1)
        while True:
            shape = tuple(min(n, max(3, round(e / size) + 1)) for n, e in zip(self.shape, self.extent, strict=True))
            if prod(shape) <= most:
                break
            size *= max(1.01, (prod(shape) / most) ** (1 / len(shape)))
        spacing = tuple(e / (n - 1) for n, e in zip(shape, self.extent, strict=True))
        return Grid(shape, spacing)

    def intervals(self, longest: int) -> tuple[int, ...]:
        """How many control intervals each axis gets, `longest` along the longest: cubes as nearly as may be, but no
        more than steps between voxels (a slab of few slices needs none finer across).
        """
        return tuple(
            max(1, min(ceil(longest * extent / self.unit - 1e-6), n - 1))
            for extent, n in zip(self.extent, self.shape, strict=True)
        )

    def centred_units(self, device: torch.device | str = "cpu") -> Tensor:
        """`[D, *shape]`: position of each voxel relative to the centre, in units."""
        half = torch.tensor([(n - 1) / 2 for n in self.shape], device=device).reshape(-1, *[1] * len(self.shape))
        return (identity_points(self.shape, device=device) - half) / self.voxels_per_unit(device)
