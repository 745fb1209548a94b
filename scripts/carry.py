# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Carry images, label maps and points over between two images that a displacement field relates.

The field pulls back: phi(p) = to_moving (p + ddf(p)) is the place in the moving image of fixed voxel p. So "forward",
by the field itself, brings images from the moving to the fixed grid and points from the fixed to the moving image;
"inverse" does the opposite of both and solves phi(p) = q for p at each place that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .geometry import displace_points, identity_points, preimage, sample, transform_points

FORWARD, INVERSE = "forward", "inverse"
SAMPLES = 16  # along each axis, from which the affine part of a field is estimated


@dataclass(frozen=True)
class PairMap:
    """The map between two images.

    Attributes:
        ddf: `[D, *S]` voxels of the fixed grid, pull-back.
        to_moving: `[D+1, D+1]` from fixed to moving voxels.
    """

    ddf: Tensor
    to_moving: Tensor

    def to_moving_points(self, points: Tensor) -> Tensor:
        """phi: fixed voxels `[D, ...]` to moving voxels; the field is continued constantly outside its grid."""
        return transform_points(self.to_moving, displace_points(points, self.ddf))

    def to_fixed_points(self, points: Tensor) -> Tensor:
        """Inverse of phi: moving voxels `[D, ...]` to fixed voxels."""
        affine, residual = self._split
        return preimage(transform_points(torch.linalg.inv(affine), points), residual)

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        """phi = affine (p + residual(p)), matrix `[D+1, D+1]` float64 and `[D, *S]` with little displacement left.

        Without it, what lies outside of the fixed grid by the headers alone could not be found: there the field is not
        known, while images far apart are related by a large part of it.
        """
        dims = len(self.ddf)
        grid = identity_points(self.ddf.shape[1:]).double()
        reached = transform_points(self.to_moving.double(), grid + self.ddf)
        some = (slice(None), *(slice(None, None, max(1, n // SAMPLES)) for n in self.ddf.shape[1:]))
        sources = torch.cat([grid[some].flatten(1), torch.ones(1, grid[some][0].numel(), dtype=grid.dtype)])
        fitted = torch.linalg.lstsq(sources.T, reached[some].flatten(1).T).solution.T
        affine = torch.eye(dims + 1, dtype=torch.float64)
        affine[:dims] = fitted
        if not torch.linalg.det(affine) / torch.linalg.det(self.to_moving.double()) > 0.01:
            affine = self.to_moving.double()  # a field that is far from any affine
        return affine, (transform_points(torch.linalg.inv(affine), reached) - grid).float()


def carry_image(values: Tensor, points: Tensor, *, labels: bool) -> Tensor:
    """Values `[C, *I]` at `points` `[D, *T]` (voxels of them), `[C, *T]`: linear, or exact integers of the nearest.

    Outside is 0.
    """
    if not labels:
        return sample(values, points)
    return sample(values.double(), points.double(), mode="nearest").round().to(values.dtype)


def inside(points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which of the points `[D, ...]` lie in an image of this shape, up to the rims of its outermost voxels."""
    sizes = torch.tensor(shape).reshape(-1, *[1] * (points.ndim - 1))
    return ((points >= -0.5) & (points <= sizes - 0.5)).all(0)
