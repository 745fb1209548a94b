# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Maps of the fixed image's extent with parameters: what one is, global kinds, and one after the other.

Every kind is a map `p -> p + u(p)`. Parameters are in units of the extent's longest side, so the same numbers mean the
same at any image size, level or spacing. Section 2 of the paper (dense correspondence); free-form kinds are in
`free_form`, names in `kinds`, and `correspondence` does the fitting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .geometry import compose, invert
from .grid import Grid


class Transformation(nn.Module, ABC):
    """A map of the fixed extent with learnable parameters.

    Attributes:
        invertible: whether `inverse` is exact and can be differentiated.
    """

    invertible: bool = True

    @abstractmethod
    def forward(self, grid: Grid) -> Tensor:
        """Displacement `[D, *grid.shape]` in voxels of `grid`, differentiable."""

    def carrier(self, grid: Grid) -> Grid:
        """The grid, not finer than `grid`, that carries all of the forward map: `grid` interpolates it linearly."""
        return grid

    def inverse(self, grid: Grid) -> Tensor:
        """Displacement of the inverse map on `grid`; numerical unless a kind knows better."""
        return invert(self(grid))

    def refined(self, controls: int) -> Transformation:
        """The map with `controls` control intervals along the longest side.

        The same map on a finer grid, the nearest one (least squares) on a coarser, unchanged for global kinds.
        """
        return self


class Linear(Transformation):
    """Common part of the global kinds: `u(p) = (M - I) (p - c) + t` with the extent's centre c."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.shift = nn.Parameter(torch.zeros(dims))

    @abstractmethod
    def matrix(self) -> Tensor:
        """Linear part `[D, D]`."""

    def forward(self, grid: Grid) -> Tensor:
        x = grid.centred_units(self.shift.device)
        moved = torch.tensordot(self.matrix(), x, dims=1) + self.shift.reshape(-1, *[1] * self.dims)
        return (moved - x) * grid.voxels_per_unit(x.device)

    def inverse(self, grid: Grid) -> Tensor:
        x = grid.centred_units(self.shift.device)
        back = torch.tensordot(torch.linalg.inv(self.matrix()), x - self.shift.reshape(-1, *[1] * self.dims), dims=1)
        return (back - x) * grid.voxels_per_unit(x.device)


class Rigid(Linear):
    """Rotation (matrix exponential of a skew matrix, so never a reflection) and translation."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self.angles = nn.Parameter(torch.zeros(dims * (dims - 1) // 2))  # radians

    def skew(self) -> Tensor:
        """The matrix `[D, D]` whose exponential is the rotation."""
        upper = torch.zeros(self.dims, self.dims, device=self.angles.device)
        rows, cols = torch.triu_indices(self.dims, self.dims, offset=1, device=self.angles.device)
        upper = upper.index_put((rows, cols), self.angles)
        return upper - upper.T

    def matrix(self) -> Tensor:
        return torch.linalg.matrix_exp(self.skew())


class Affine(Linear):
    """Any orientation-keeping linear map (matrix exponential, so the determinant is positive) and translation."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self.logarithm = nn.Parameter(torch.zeros(dims, dims))

    @classmethod
    @torch.no_grad()
    def of(cls, rigid: Rigid) -> Affine:
        """The same map, free to go on as an affine one."""
        same = cls(rigid.dims).to(rigid.shift.device)
        same.logarithm.copy_(rigid.skew())
        same.shift.copy_(rigid.shift)
        return same

    def matrix(self) -> Tensor:
        return torch.linalg.matrix_exp(self.logarithm)


class Composite(Transformation):
    """`outer(inner(p))`: the usual pair is a free-form `inner` and an affine `outer`."""

    def __init__(self, outer: Transformation, inner: Transformation) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner
        self.invertible = outer.invertible and inner.invertible

    def carrier(self, grid: Grid) -> Grid:
        return self.inner.carrier(grid) if isinstance(self.outer, Linear) else grid

    def forward(self, grid: Grid) -> Tensor:
        inner = self.inner(grid)
        if not isinstance(self.outer, Linear):
            return compose(self.outer(grid), inner)
        # An affine is known everywhere, so nothing needs to be interpolated or continued beyond the border.
        per_unit = grid.voxels_per_unit(inner.device)
        x = grid.centred_units(inner.device) + inner / per_unit
        moved = torch.tensordot(self.outer.matrix(), x, dims=1) + self.outer.shift.reshape(-1, *[1] * self.outer.dims)
        return (moved - grid.centred_units(inner.device)) * per_unit

    def inverse(self, grid: Grid) -> Tensor:
        return compose(self.inner.inverse(grid), self.outer.inverse(grid))

    def refined(self, controls: int) -> Transformation:
        return Composite(self.outer.refined(controls), self.inner.refined(controls))
