# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Every kind of transformation: identity, nesting, inverse, scale, and what sets it apart."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import InputError
from scripts.free_form import StationaryVelocity, interpolated, spline_basis
from scripts.geometry import compose, folding_percent, identity_points, jacobian_determinant
from scripts.grid import Grid
from scripts.kinds import build
from scripts.transformations import Affine, Composite, Transformation

KINDS = ["rigid", "affine", "bspline", "dense", "svf", "composite"]
FREE = ["bspline", "dense", "svf"]
GRIDS = [Grid((49, 33), (1.0, 1.5)), Grid((25, 21, 13), (1.0, 1.2, 2.0))]


def made(kind: str, grid: Grid, controls: int = 4) -> Transformation:
    if kind == "composite":
        return Composite(Affine(len(grid.shape)), build("bspline", grid, controls))
    return build(kind, grid, controls)


def shaken(transformation: Transformation, amount: float, seed: int = 0) -> Transformation:
    """The transformation with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in transformation.parameters():
            parameter.copy_(amount * torch.randn(parameter.shape, generator=generator))
    return transformation.requires_grad_(False)


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_identity(kind: str, grid: Grid) -> None:
    with torch.no_grad():
        ddf = made(kind, grid)(grid)
    assert ddf.shape == (len(grid.shape), *grid.shape)
    assert ddf.abs().max() < 1e-4


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_it(kind: str, grid: Grid) -> None:
    transformation = shaken(made(kind, grid), 0.015)
    forward, inverse = transformation(grid), transformation.inverse(grid)
    inner = (slice(None), *[slice(4, -4)] * len(grid.shape))
    assert forward.norm(dim=0).max() > 0.3
    assert compose(forward, inverse)[inner].norm(dim=0).max() < 0.02
    if kind != "dense":  # between voxels a field with kinks is not its interpolant
        assert compose(inverse, forward)[inner].norm(dim=0).max() < 0.03


@pytest.mark.parametrize("kind", FREE)
def test_refinement_keeps_the_map(kind: str) -> None:
    grid = Grid((65, 33), (1.0, 1.0))
    coarse = shaken(made(kind, grid, 4), 0.03)
    fine = coarse.refined(8)
    assert fine.coefficients.numel() > coarse.coefficients.numel()
    assert torch.allclose(fine(grid), coarse(grid), atol=1e-2)


def test_refinement_reaches_inside_a_composite() -> None:
    grid = Grid((65, 33), (1.0, 1.0))
    coarse = shaken(made("composite", grid, 4), 0.03)
    fine = coarse.refined(8)
    assert fine.inner.coefficients.shape[1:] == (11, 7)
    assert torch.allclose(fine(grid), coarse(grid), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_parameters_mean_the_same_millimetres_at_any_size(kind: str) -> None:
    coarse, fine = Grid((33, 25), (1.0, 1.2)), Grid((65, 49), (0.5, 0.6))
    transformation = shaken(made(kind, fine), 0.015)
    on_coarse = transformation(coarse) * torch.tensor(coarse.spacing)[:, None, None]
    on_fine = transformation(fine)[:, ::2, ::2] * torch.tensor(fine.spacing)[:, None, None]
    inner = (slice(None), slice(3, -3), slice(3, -3))  # at the border only the velocity's continuation differs
    assert on_fine.norm(dim=0).max() > 0.3
    assert (on_coarse - on_fine)[inner].abs().max() < (0.02 if kind == "svf" else 1e-3)


def test_large_velocities_do_not_fold_where_displacements_do() -> None:
    grid = Grid((64, 64), (1.0, 1.0))
    assert folding_percent(shaken(made("bspline", grid, 6), 0.12)(grid)) > 1.0
    assert folding_percent(shaken(made("svf", grid, 6), 0.12)(grid)) == 0.0


def test_a_carrier_holds_all_of_a_map() -> None:
    """Finer grids interpolate it, so nothing is lost by judging how the map bends there."""
    grid = Grid((49, 41, 33), (1.0, 1.0, 1.5))
    composite = shaken(Composite(Affine(3), made("svf", grid, 6)), 0.03)
    carrier = composite.carrier(grid)
    assert max(carrier.shape) == 32
    steps = grid.voxels_per_unit() / carrier.voxels_per_unit()
    assert torch.allclose(interpolated(composite(carrier) * steps, grid.shape), composite(grid), atol=1e-4)
    assert made("composite", grid, 6).carrier(grid) == grid  # of a B-spline: every voxel knows more


def test_longer_steps_of_the_integration_give_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((48, 48, 48), (1.0, 1.0, 1.0))
    velocity = shaken(made("svf", grid, 24), 0.08)
    found = velocity(grid)
    monkeypatch.setattr(StationaryVelocity, "stride", {3: 0.1})
    exact = velocity(grid)
    assert exact.abs().max() > 3
    assert (found - exact).norm(dim=0).mean() < 0.02


def test_pictures_are_integrated_no_finer_than_their_intervals_need(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((256, 256), (1.0, 1.0))
    velocity = shaken(made("svf", grid, 32), 0.01)
    assert max(velocity.carrier(grid).shape) == 128
    found = velocity(grid)
    monkeypatch.setattr(StationaryVelocity, "least", {2: 256})
    exact = velocity(grid)
    assert exact.norm(dim=0).mean() > 1
    assert (found - exact).norm(dim=0).mean() < 0.1


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
def test_rigid_keeps_distances_and_orientation(grid: Grid) -> None:
    rigid = shaken(made("rigid", grid), 0.7)
    matrix = rigid.matrix()
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(matrix @ matrix.T, torch.eye(len(grid.shape)), atol=1e-5)
    spacing = torch.tensor(grid.spacing)[:, None]
    before = identity_points(grid.shape)
    moved = before + rigid(grid)
    a, b = (x.flatten(1)[:, [0, 40, 200]] * spacing for x in (before, moved))
    assert torch.allclose(torch.cdist(a.T, a.T), torch.cdist(b.T, b.T), atol=1e-3)  # mm, with anisotropic voxels


def test_affine_never_reflects() -> None:
    affine = shaken(made("affine", GRIDS[1]), 2.0)
    assert (jacobian_determinant(affine(GRIDS[1])) > 0).all()


def test_splines_sum_to_one_and_reproduce_lines() -> None:
    for degree in (1, 3):
        basis = spline_basis(17, 6, degree)
        controls = torch.arange(6.0) - (degree - 1) / 2
        assert torch.allclose(basis.sum(1), torch.ones(17), atol=1e-6)
        assert torch.allclose(basis @ controls, torch.linspace(0, 6 - degree, 17), atol=1e-5)


def test_coarsened_keeps_the_extent_with_cubic_voxels() -> None:
    grid = Grid((101, 101, 11), (1.0, 1.0, 5.0))
    coarse = grid.coarsened(26)
    assert coarse.shape == (26, 26, 11)
    assert coarse.extent == pytest.approx(grid.extent)


def test_unknown_kind() -> None:
    with pytest.raises(InputError, match="unknown kind 'spline'"):
        build("spline", GRIDS[0], 4)
