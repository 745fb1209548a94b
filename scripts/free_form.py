# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Free-form maps: cubic B-splines, dense displacements, stationary velocities.

B-splines after Rueckert et al. 1999, stationary velocity after Arsigny et al. 2006 (scaling and squaring).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, log2
from typing import ClassVar

import torch
from torch import Tensor, nn

from .geometry import apply_along_axes, compose, identity_points, sample
from .grid import Grid
from .transformations import Transformation


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


def interpolated(values: Tensor, shape: Sequence[int], every: Sequence[int] | None = None) -> Tensor:
    """Values `[C, *S]` of a grid on another one over the same extent, linearly: `[C, *shape]`, or of `every`
    so-manieth voxel of it along the axes.
    """
    strides = [slice(None, None, stride) for stride in every or [1] * len(shape)]
    if values.shape[1:] == tuple(shape):
        return values[:, *strides]
    between = [spline_basis(n, m, 1)[stride] for n, m, stride in zip(shape, values.shape[1:], strides, strict=True)]
    return apply_along_axes(between, values)


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
        shape = [intervals + degree for intervals in grid.intervals(controls)]
        self.coefficients = nn.Parameter(torch.zeros(len(shape), *shape))

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
    samples: ClassVar = {2: 2, 3: 1}  # per control interval that carry the velocity, by dimensions
    least: ClassVar = {2: 128, 3: 32}  # voxels of a carrier where the grid has them, likewise
    stride: ClassVar = {2: 0.5, 3: 1.0}  # the carrier's voxels that a step of the integration may move, likewise

    def _exponential(self, velocity: Tensor) -> Tensor:
        # So many steps that none moves further than the stride; the first by the midpoint rule. Shorter ones would
        # change a volume's map by hundredths of a voxel.
        stride = self.stride[len(velocity)]
        squarings = max(0, ceil(log2(max(float(velocity.detach().abs().amax()), 1e-6) / stride)))
        step = velocity / 2**squarings
        field = sample(step, identity_points(step.shape[1:], device=step.device) + step / 2, padding="border")
        for _ in range(squarings):
            field = compose(field, field)
        return field

    def carrier(self, grid: Grid) -> Grid:
        # Few samples per control interval carry the field: compositions on all voxels would be most of a fit's time. In
        # volumes, where two of them cost eight times as much as one, one finds maps that are no worse.
        controls = max(self.coefficients.shape[1:]) - self.degree
        dims = len(grid.shape)
        enough = max(self.samples[dims] * controls + 1, self.least[dims])
        return grid.coarsened(min(max(grid.shape), enough))

    def _integrated(self, grid: Grid, sign: int) -> Tensor:
        carrier = self.carrier(grid)
        units = self._exponential(sign * self.span(carrier)) / carrier.voxels_per_unit(self.coefficients.device)
        return interpolated(units, grid.shape) * grid.voxels_per_unit(units.device)

    def forward(self, grid: Grid) -> Tensor:
        return self._integrated(grid, 1)

    def inverse(self, grid: Grid) -> Tensor:
        return self._integrated(grid, -1)
