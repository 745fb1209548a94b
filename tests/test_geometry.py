# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Grids, sampling and displacement fields against hand-made answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scripts.free_form import spline_basis
from scripts.geometry import (
    apply_along_axes,
    bounding_box,
    centroid,
    compose,
    displace_points,
    folding_percent,
    identity_matrix,
    identity_points,
    invert,
    jacobian_determinant,
    resize_by_area,
    sample,
    scaling_about_corner,
    transform_points,
    warp,
)

SHAPES = [(40, 48), (20, 24, 28)]


def smooth_field(shape: tuple[int, ...], amplitude: float, seed: int = 0) -> Tensor:
    """Random field `[D, *shape]`, one smooth bend across, at most `amplitude` voxels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(len(shape), *[4] * len(shape), generator=generator) * 2 - 1
    basis = [spline_basis(size, 4, 3) for size in shape]
    field = apply_along_axes(basis, coarse)
    return amplitude * field / field.abs().max()


def interior(field: Tensor, margin: int) -> Tensor:
    return field[(slice(None), *[slice(margin, -margin)] * (field.ndim - 1))]


def test_area_resampling_averages_what_a_voxel_covers() -> None:
    row = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.allclose(resize_by_area(row, (2,)), torch.tensor([[(1 + 0.5 * 2) / 1.5, (0.5 * 2 + 3) / 1.5]]))
    assert torch.allclose(resize_by_area(torch.tensor([[1.0, 3.0]]), (3,)), torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.allclose(resize_by_area(torch.tensor([[1.0, 3.0]]), (4,)), torch.tensor([[1.0, 1.0, 3.0, 3.0]]))


@pytest.mark.parametrize("shape", [(5, 7), (16, 11), (13, 40)])
def test_area_resampling_keeps_the_mean(shape: tuple[int, int]) -> None:
    image = torch.rand(2, 10, 13, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(resize_by_area(image, shape).mean((1, 2)), image.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_at_voxel_centres_is_the_voxel(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(sample(image, identity_points(shape)), image, atol=1e-4)
    listed = torch.tensor([[3.0, 7.0]] * len(shape))  # two points on the diagonal
    expected = torch.stack([image[(slice(None), *[n] * len(shape))] for n in (3, 7)], dim=1)
    assert torch.allclose(sample(image, listed), expected, atol=1e-4)


def test_sample_interpolates_and_is_zero_outside() -> None:
    image = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    points = torch.tensor([[0.25, -3.0], [0.5, 0.0]])
    assert torch.allclose(sample(image, points), torch.tensor([[4.0, 0.0]]))
    assert sample(image, points, padding="border")[0, 1] == 0.0 == image[0, 0, 0]
    assert sample(image, torch.tensor([[0.8], [0.9]]), mode="nearest").item() == 12.0


@pytest.mark.parametrize("shape", SHAPES)
def test_warp_by_a_constant_pulls_back(shape: tuple[int, ...]) -> None:
    moving = torch.rand(1, *shape, generator=torch.Generator().manual_seed(3))
    ddf = torch.zeros(len(shape), *shape)
    ddf[0] = 2.0
    moved = warp(moving, ddf)
    assert torch.allclose(moved[:, :-2], moving[:, 2:], atol=1e-4)
    assert (moved[:, -2:] == 0).all()


def test_warp_applies_the_header_after_the_field() -> None:
    moving = torch.arange(8.0).expand(1, 6, 8)
    doubling = torch.diag(torch.tensor([1.0, 2.0, 1.0]))
    ddf = torch.zeros(2, 3, 3)
    ddf[1] = 1.0
    assert torch.allclose(warp(moving, ddf, doubling)[0, 0], torch.tensor([2.0, 4.0, 6.0]), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_compose_with_the_inverse_is_identity(shape: tuple[int, ...]) -> None:
    ddf = smooth_field(shape, 2.0)
    inverse = invert(ddf)
    assert ddf.abs().max() > 1.9
    for both in (compose(inverse, ddf), compose(ddf, inverse)):
        assert interior(both, 4).norm(dim=0).max() < 0.05


def test_compose_applies_the_inner_field_first() -> None:
    points = identity_points((20, 20))
    doubling, shift = points.clone(), torch.ones(2, 20, 20)  # p -> 2p and p -> p + 1
    assert torch.allclose(compose(doubling, shift)[:, 4, 5], torch.tensor([6.0, 7.0]), atol=1e-4)  # 2(p + 1) - p
    assert torch.allclose(compose(shift, doubling)[:, 4, 5], torch.tensor([5.0, 6.0]), atol=1e-4)  # 2p + 1 - p


@pytest.mark.parametrize("shape", [(9, 14), (6, 9, 12)])
def test_jacobian_of_an_affine_is_its_determinant(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    linear = torch.eye(dims) + 0.2 * torch.rand(dims, dims, generator=torch.Generator().manual_seed(4))
    points = identity_points(shape)
    ddf = torch.tensordot(linear, points, dims=1) - points
    determinant = jacobian_determinant(ddf)
    assert determinant.shape == shape
    assert torch.allclose(determinant, torch.linalg.det(linear).expand(shape), atol=1e-4)
    assert folding_percent(ddf) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flipped_axis_folds_everywhere(shape: tuple[int, ...]) -> None:
    points = identity_points(shape)
    ddf = torch.zeros_like(points)
    ddf[-1] = shape[-1] - 1 - 2 * points[-1]
    assert folding_percent(ddf) == 100.0


def test_folding_counts_voxels() -> None:
    ddf = torch.zeros(2, 10, 10)
    ddf[0, 5:] = -4.0  # rows 4 and 5 see the jump by central differences: 1 - 4 / 2 < 0
    assert folding_percent(ddf) == pytest.approx(20.0)


def test_scaling_about_corner_maps_edge_to_edge() -> None:
    matrix = scaling_about_corner((10, 7), (25, 256))
    first = transform_points(matrix, torch.tensor([-0.5, -0.5]))
    last = transform_points(matrix, torch.tensor([9.5, 6.5]))
    assert torch.allclose(first, torch.tensor([-0.5, -0.5]), atol=1e-5)
    assert torch.allclose(last, torch.tensor([24.5, 255.5]), atol=1e-4)


def test_scaling_about_corner_agrees_with_area_resampling() -> None:
    ramp = torch.arange(12.0)[None]
    half = resize_by_area(ramp, (6,))[0]
    centres = transform_points(scaling_about_corner((6,), (12,)), torch.arange(6.0)[None])[0]
    assert torch.allclose(half, centres)


def test_transform_points() -> None:
    matrix = torch.tensor([[0.0, -1.0, 5.0], [1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    points = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # (1, 0) and (0, 3)
    assert torch.equal(transform_points(matrix, points), torch.tensor([[5.0, 2.0], [3.0, 2.0]]))
    grid = identity_points((2, 3, 4))
    assert torch.equal(transform_points(identity_matrix(3), grid), grid)


def test_displace_points_reads_the_field_at_the_points() -> None:
    ddf = 0.5 * identity_points((8, 8))
    assert torch.allclose(displace_points(torch.tensor([[2.0], [5.0]]), ddf), torch.tensor([[3.0], [7.5]]), atol=1e-5)


def test_box_and_centroid_of_a_mask() -> None:
    mask = torch.zeros(6, 8, 5, dtype=torch.bool)
    mask[1:4, 2:5, 3] = True
    assert torch.equal(bounding_box(mask), torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 3.0]]))
    assert bounding_box(torch.zeros(3, 3, dtype=torch.bool)) is None
    assert torch.allclose(centroid(mask.float()), torch.tensor([2.0, 3.0, 3.0]))
