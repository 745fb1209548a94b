# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Transformations that can be fitted: rigid, affine, B-spline free-form, dense displacement, stationary velocity.

Every kind is a map `p -> p + u(p)` of the fixed image's extent. Parameters are in units of the extent's longest side,
so the same numbers mean the same at any image size, level or spacing. Free-form kinds act first and the affine after
them: `T(p) = A(F(p))`. Section 2 of the paper (dense correspondence); B-splines after Rueckert et al. 1999, stationary
velocity after Arsigny et al. 2006 (scaling and squaring).

This module does not know images or objectives; `correspondence` does the fitting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, log2, prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from .errors import InputError
from .geometry import apply_along_axes, compose, identity_points, invert, sample


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

    def centred_units(self, device: torch.device | str = "cpu") -> Tensor:
        """`[D, *shape]`: position of each voxel relative to the centre, in units."""
        half = torch.tensor([(n - 1) / 2 for n in self.shape], device=device).reshape(-1, *[1] * len(self.shape))
        return (identity_points(self.shape, device=device) - half) / self.voxels_per_unit(device)


@lru_cache(maxsize=256)  # asked for again at every step of a fit
def spline_basis(samples: int, controls: int, degree: int) -> Tensor:
    """Weights `[samples, controls]` of uniform B-splines at equidistant samples over the whole extent; rows sum to 1.

    For degree 3 the outermost control points lie one interval outside the extent, for degree 1 on its ends.
    """
    intervals = controls - degree
    t = torch.linspace(0, intervals, samples, dtype=torch.float64)[:, None]
    distance = (t - (torch.arange(controls) - (degree - 1) / 2)).abs()
    if degree == 1:
        basis = (1 - distance).clamp(min=0)
    else:
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = (2 - distance).clamp(min=0) ** 3 / 6
        basis = torch.where(distance < 1, near, far)
    return basis.float()


class Transformation(nn.Module, ABC):
    """A map of the fixed extent with learnable parameters.

    Attributes:
        invertible: whether `inverse` is exact and can be differentiated.
    """

    invertible: bool = True

    @abstractmethod
    def forward(self, grid: Grid) -> Tensor:
        """Displacement `[D, *grid.shape]` in voxels of `grid`, differentiable."""

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

    def matrix(self) -> Tensor:
        upper = torch.zeros(self.dims, self.dims, device=self.angles.device)
        rows, cols = torch.triu_indices(self.dims, self.dims, offset=1, device=self.angles.device)
        upper = upper.index_put((rows, cols), self.angles)
        return torch.linalg.matrix_exp(upper - upper.T)


class Affine(Linear):
    """Any orientation-keeping linear map (matrix exponential, so the determinant is positive) and translation."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self.logarithm = nn.Parameter(torch.zeros(dims, dims))

    def matrix(self) -> Tensor:
        return torch.linalg.matrix_exp(self.logarithm)


class FreeForm(Transformation):
    """Displacement spanned by B-splines on a regular grid of control points.

    Args:
        grid: the fixed image's grid.
        controls: control intervals along the longest side; the others in proportion, at least one.
        degree: 3 for smooth free-form deformation, 1 for a dense displacement with linear interpolation.
    """

    invertible = False

    def __init__(self, grid: Grid, controls: int = 4, *, degree: int = 3) -> None:
        super().__init__()
        self.grid, self.degree = grid, degree
        self.coefficients = nn.Parameter(torch.zeros(len(grid.shape), *self._control_shape(controls)))

    def _control_shape(self, controls: int) -> list[int]:
        # A slab of few slices needs no more intervals across than it has steps between slices.
        return [
            max(1, min(ceil(controls * extent / self.grid.unit - 1e-6), n - 1)) + self.degree
            for extent, n in zip(self.grid.extent, self.grid.shape, strict=True)
        ]

    def span(self, grid: Grid) -> Tensor:
        """The spline itself on `grid`, voxels of `grid`."""
        shape = self.coefficients.shape[1:]
        device = self.coefficients.device
        bases = [spline_basis(s, c, self.degree).to(device) for s, c in zip(grid.shape, shape, strict=True)]
        return apply_along_axes(bases, self.coefficients) * grid.voxels_per_unit(device)

    def forward(self, grid: Grid) -> Tensor:
        return self.span(grid)

    @torch.no_grad()
    def refined(self, controls: int) -> FreeForm:
        """Least-squares refit on a finer control grid (exact where the knots are nested)."""
        finer = type(self)(self.grid, controls, degree=self.degree).to(self.coefficients.device)
        matrices = []
        for old, new in zip(self.coefficients.shape[1:], finer.coefficients.shape[1:], strict=True):
            samples = 4 * max(old, new)
            old_basis, new_basis = (spline_basis(samples, n, self.degree).double() for n in (old, new))
            matrices.append((torch.linalg.pinv(new_basis) @ old_basis).float().to(self.coefficients.device))
        finer.coefficients.copy_(apply_along_axes(matrices, self.coefficients))
        return finer

    @torch.no_grad()
    def approximate(self, ddf: Tensor, grid: Grid) -> None:
        """Take the coefficients whose spline is nearest to a displacement `[D, *grid.shape]` in voxels of `grid`."""
        shape = self.coefficients.shape[1:]
        bases = [spline_basis(s, c, self.degree) for s, c in zip(grid.shape, shape, strict=True)]
        inverses = [torch.linalg.pinv(basis).to(ddf) for basis in bases]
        self.coefficients.copy_(apply_along_axes(inverses, ddf / grid.voxels_per_unit(ddf.device)))


class BSpline(FreeForm):
    """Cubic B-spline free-form deformation."""


class Dense(FreeForm):
    """One displacement vector per control point with linear interpolation between them."""

    def __init__(self, grid: Grid, controls: int = 4, *, degree: int = 1) -> None:
        super().__init__(grid, controls, degree=degree)


class StationaryVelocity(FreeForm):
    """Exponential of a stationary velocity field: a diffeomorphism whose inverse is the exponential of its negative."""

    invertible = True
    samples: ClassVar = {2: 16, 3: 2}  # per control interval, by dimensions

    def _exponential(self, velocity: Tensor) -> Tensor:
        # So many steps that each moves by half a voxel at most; the first by the midpoint rule.
        squarings = max(0, ceil(log2(max(float(velocity.detach().abs().amax()), 1e-6) / 0.5)))
        step = velocity / 2**squarings
        field = sample(step, identity_points(step.shape[1:], device=step.device) + step / 2, padding="border")
        for _ in range(squarings):
            field = compose(field, field)
        return field

    def _integrated(self, grid: Grid, sign: int) -> Tensor:
        # A few samples per control interval carry the field; finer grids interpolate between them. In volumes every one
        # more costs eight times as much.
        controls = max(self.coefficients.shape[1:]) - self.degree
        coarse = grid.coarsened(min(max(grid.shape), self.samples[len(grid.shape)] * controls + 1))
        field = self._exponential(sign * self.span(coarse)) / coarse.voxels_per_unit(self.coefficients.device)
        if coarse.shape != grid.shape:
            between = [spline_basis(n, m, 1) for n, m in zip(grid.shape, coarse.shape, strict=True)]
            field = apply_along_axes(between, field)
        return field * grid.voxels_per_unit(field.device)

    def forward(self, grid: Grid) -> Tensor:
        return self._integrated(grid, 1)

    def inverse(self, grid: Grid) -> Tensor:
        return self._integrated(grid, -1)


class Composite(Transformation):
    """`outer(inner(p))`: the usual pair is a free-form `inner` and an affine `outer`."""

    def __init__(self, outer: Transformation, inner: Transformation) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner
        self.invertible = outer.invertible and inner.invertible

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


KINDS = {"bspline": BSpline, "dense": Dense, "svf": StationaryVelocity}
GLOBAL_KINDS = {"rigid": Rigid, "affine": Affine}


def build(kind: str, grid: Grid, controls: int) -> Transformation:
    """Identity transformation of a kind by name.

    Raises:
        InputError: for an unknown kind.
    """
    if kind in GLOBAL_KINDS:
        return GLOBAL_KINDS[kind](len(grid.shape))
    if kind in KINDS:
        return KINDS[kind](grid, controls)
    raise InputError(f"transformation: unknown kind '{kind}', expected one of {sorted({**GLOBAL_KINDS, **KINDS})}")
