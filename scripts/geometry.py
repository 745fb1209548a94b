# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Coordinates, grids and displacement fields: the one module that knows how they relate.

Convention
----------
* Arrays are `[channel, i, j(, k)]`. A point is an array index `(i, j(, k))` in voxels, 0-based, integers at voxel
  centres.
* Sets of points have the coordinate in the FIRST dimension: `[D, ...]`, order as the array axes. D is 2 or 3.
* A displacement field (`ddf`) is `[D, *fixed_shape]`, voxels of the fixed grid, and pulls back:
  `moved(p) = moving(to_moving(p + ddf(p)))`, where `to_moving` is the homogeneous matrix from fixed to moving voxels.
* Matrices are homogeneous, `[D+1, D+1]`, and act on column vectors.
* Sampling follows `align_corners=True`: index 0 and S-1 are the outermost voxel centres. Outside is 0 unless said
  otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from monai.networks.utils import meshgrid_ij
from torch import Tensor
from torch.nn import functional as F


def identity_points(shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Voxel indices of a grid, `[D, *shape]` float32."""
    axes = [torch.arange(size, dtype=torch.float32, device=device) for size in shape]
    return torch.stack(meshgrid_ij(*axes))


def grid_steps(points: Tensor) -> Tensor:
    """From a voxel of a grid that an affine map placed to the next: `[D, *grid]` -> `[D, D]`, a column an axis."""
    first = points.flatten(1)[:, 0]
    ends = [points.select(axis, -1).flatten(1)[:, 0] for axis in range(1, points.ndim)]
    return torch.stack([(end - first) / (n - 1) for end, n in zip(ends, points.shape[1:], strict=True)], dim=1)


def identity_matrix(dims: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Homogeneous identity `[dims+1, dims+1]`."""
    return torch.eye(dims + 1, device=device)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply a homogeneous matrix `[D+1, D+1]` to points `[D, ...]`."""
    dims = points.shape[0]
    matrix = matrix.to(points)
    moved = torch.tensordot(matrix[:dims, :dims], points, dims=1)
    return moved + matrix[:dims, dims].reshape(-1, *[1] * (points.ndim - 1))


def scaling_about_corner(source: Sequence[int], target: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Matrix from voxels of a grid of `source` shape to voxels of a `target` grid that covers the same extent.

    Extents agree from voxel EDGE to voxel edge (as in area resampling), so centres map by `(p + 1/2) r - 1/2`.
    """
    ratio = torch.tensor([t / s for s, t in zip(source, target, strict=True)], device=device)
    matrix = torch.diag(torch.cat([ratio, ratio.new_ones(1)]))
    matrix[:-1, -1] = 0.5 * ratio - 0.5
    return matrix


def sample(image: Tensor, points: Tensor, *, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Values of `image` at points.

    Args:
        image: `[C, *S]`.
        points: `[D, *T]`, voxels of `image`; T is a grid or any list of points.
        mode: "bilinear" (trilinear in 3-D) or "nearest".
        padding: "zeros" or "border".

    Returns:
        `[C, *T]`, dtype float unless `image` already is.
    """
    dims, target = points.shape[0], points.shape[1:]
    if len(target) != dims:  # a list of points rather than a grid
        return sample(image, points.reshape(dims, -1, *[1] * (dims - 1)), mode=mode, padding=padding).reshape(
            -1, *target
        )
    sizes = torch.tensor(image.shape[1:], dtype=points.dtype, device=points.device)
    scale = (2.0 / (sizes - 1).clamp(min=1)).reshape(-1, *[1] * dims)
    return sample_normalised(image, (points * scale - 1.0).unbind(0)[::-1], mode=mode, padding=padding)


def sample_normalised(
    image: Tensor, places: Sequence[Tensor], *, mode: str = "bilinear", padding: str = "zeros"
) -> Tensor:
    """As `sample`, at places in [-1, 1] between the outermost voxel centres: D coordinates `[*T]`, the last axis's
    first, which is what `grid_sample` reads.
    """
    values = image if image.is_floating_point() else image.float()
    grid = torch.stack(list(places), dim=-1)[None].to(values.dtype)  # quicker where a point's coordinates lie together
    return F.grid_sample(values[None], grid, mode=mode, padding_mode=padding, align_corners=True)[0]


def resampled(image: Tensor, matrix: Tensor, shape: Sequence[int], *, padding: str = "zeros") -> Tensor:
    """`image` `[C, *S]` at `matrix p` for every voxel p of a grid of `shape`: `[C, *shape]`, as `sample` gives it.

    In a volume, where the matrix leads axes to axes (scaled, flipped, exchanged), one product per axis does in a
    quarter of the time what eight neighbours for every voxel do.
    """
    linear, dims = matrix[:-1, :-1], len(shape)
    leads = linear != 0
    if dims < 3 or not (leads.sum(0) == 1).all() or not (leads.sum(1) == 1).all():
        return sample(image, transform_points(matrix, identity_points(shape, device=image.device)), padding=padding)
    weights: list[Tensor | None] = []
    order = leads.float().argmax(0).tolist()  # of each axis of the grid the image's axis
    for axis, (along, size) in enumerate(zip(order, shape, strict=True)):
        places = linear[along, axis] * torch.arange(size, device=matrix.device) + matrix[along, -1]
        voxels = torch.arange(image.shape[1 + along], device=matrix.device)
        places = places.clamp(0, len(voxels) - 1) if padding == "border" else places
        same = places.equal(voxels.to(places))
        weights.append(None if same else (1 - (places[:, None] - voxels).abs()).clamp(min=0))
    values = image if image.is_floating_point() else image.float()
    return apply_along_axes(weights, values.permute(0, *[1 + along for along in order]))


def warp(
    moving: Tensor, ddf: Tensor, to_moving: Tensor | None = None, *, mode: str = "bilinear", padding: str = "zeros"
) -> Tensor:
    """Pull `moving` `[C, *M]` back through `ddf` `[D, *S]`: returns `[C, *S]` on the fixed grid."""
    points = identity_points(ddf.shape[1:], device=ddf.device) + ddf
    points = points if to_moving is None else transform_points(to_moving, points)
    return sample(moving, points, mode=mode, padding=padding)


def displace_points(points: Tensor, ddf: Tensor) -> Tensor:
    """Carry fixed points `[D, N]` (voxels) to `p + ddf(p)`; the field is continued constantly outside."""
    return points + sample(ddf, points, padding="border")


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Field of `p -> outer(inner(p))`: both `[D, *S]`, voxels of one grid; `inner` acts first."""
    points = identity_points(inner.shape[1:], device=inner.device) + inner
    return inner + sample(outer, points, padding="border")


def invert(ddf: Tensor, *, iterations: int = 50, tolerance: float = 1e-3) -> Tensor:
    """Field `v` with `v(p) = -ddf(p + v(p))` by fixed-point iteration (Chen et al. 2008), `[D, *S]`.

    Converges where the field does not fold; stops early when no voxel moves by more than `tolerance` voxels.
    """
    inverse = -ddf
    identity = identity_points(ddf.shape[1:], device=ddf.device)
    for _ in range(iterations):
        update = -sample(ddf, identity + inverse, padding="border")
        change = (update - inverse).abs().max()
        # Averaging keeps the iteration contractive where the field is steep.
        inverse = 0.5 * (update + inverse)
        if change < tolerance:
            break
    return inverse


def preimage(points: Tensor, ddf: Tensor, *, iterations: int = 100, tolerance: float = 1e-3) -> Tensor:
    """Places `q` with `q + ddf(q) = points`, as `invert` but at any `[D, ...]` points (voxels) and without a grid.

    The field is continued constantly outside; where it folds, the answer is one of several or none.
    """
    found = points - sample(ddf, points, padding="border")
    for _ in range(iterations):
        change = points - sample(ddf, found, padding="border") - found
        found = found + 0.5 * change
        if change.numel() == 0 or change.abs().max() < tolerance:
            break
    return found


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of d(p + ddf)/dp by central differences in the interior, `[*S]`; > 0 where the map keeps
    orientation.
    """
    columns = torch.gradient(ddf, dim=tuple(range(1, ddf.ndim)))  # d u / d axis, each [D, *S]
    for axis, column in enumerate(columns):
        column[axis] += 1
    first, *others = columns  # by hand: `linalg.det` takes three times as long and more memory
    across = torch.linalg.cross(*others, dim=0) if len(others) == 2 else torch.stack([others[0][1], -others[0][0]])
    return (first * across).sum(0)


def folding_percent(ddf: Tensor) -> float:
    """Share of voxels whose Jacobian determinant is not positive, in percent."""
    return 100.0 * (jacobian_determinant(ddf) <= 0).float().mean().item()


def bounding_box(mask: Tensor) -> Tensor | None:
    """Smallest box around a boolean mask `[*S]`: `[2, D]` first and last voxel, or None when the mask is empty."""
    points = mask.nonzero().float()
    return torch.stack([points.amin(0), points.amax(0)]) if len(points) else None


def box_corners(boxes: Tensor) -> Tensor:
    """All corners `[N, 2^D, D]` of boxes `[N, 2, D]`: a rotated box needs more than two of them."""
    dims = boxes.shape[-1]
    choices = torch.cartesian_prod(*[torch.arange(2, device=boxes.device)] * dims)  # [2^D, D]
    return torch.stack([boxes[:, choices[:, axis], axis] for axis in range(dims)], dim=-1)


def centroid(weights: Tensor) -> Tensor:
    """Centre of mass `[D]` in voxels of non-negative weights `[*S]`."""
    moments = []
    for axis, size in enumerate(weights.shape):
        others = [other for other in range(weights.ndim) if other != axis]
        profile = weights.sum(others) if others else weights
        moments.append((profile * torch.arange(size, device=weights.device)).sum())
    return torch.stack(moments) / weights.sum().clamp(min=1e-9)


def apply_along_axes(matrices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    """Multiply axis d of `values` `[C, *n]` by `matrices[d]` `[m_d, n_d]` (None: by one): `[C, *m]`."""
    for axis, matrix in enumerate(matrices, start=1):
        if matrix is None:
            continue
        # In batches: `matrix @ values` would move whole volumes about in memory when derivatives are asked for.
        matrix, before, behind = matrix.to(values), values.shape[:axis], values.shape[axis + 1 :]
        lines = values.reshape(prod(before), values.shape[axis], prod(behind))
        values = torch.bmm(matrix.expand(len(lines), -1, -1), lines) if behind else values @ matrix.T
        values = values.reshape(*before, len(matrix), *behind)
    return values


def resize_by_area(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample `[C, *S]` to `[C, *shape]` over the same extent, each new voxel the mean of what it covers.

    Exact for any ratio, up or down (the rule of OpenCV's INTER_AREA), unlike PyTorch's "area" mode, which rounds cells.
    """
    matrices = [
        torch.from_numpy(_covered(old, new)).to(image.device) for old, new in zip(image.shape[1:], shape, strict=True)
    ]
    return apply_along_axes(matrices, image.float())


@lru_cache(maxsize=64)
def _covered(old: int, new: int) -> np.ndarray:
    """`[new, old]`: what share of each of `new` cells each of `old` cells over the same extent covers."""
    edges, cells = np.arange(new + 1) * old / new, np.arange(old)
    covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (covered.clip(min=0) * new / old).astype(np.float32)


def quantiles(image: Tensor, at: Sequence[float]) -> Tensor:
    """Quantiles of each channel of an image `[C, *S]`: `[len(at), C]`, from about a million of its voxels."""
    few = image.flatten(1)[:, :: max(1, image[0].numel() // 1_000_000)].double()
    return torch.stack([torch.quantile(few, q, dim=1) for q in at]).to(image)
