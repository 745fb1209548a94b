# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""How an image of any dimension lies on a page: as planes (one or three), with voxel coordinates on their axes.

All marks are placed in voxels of the image they belong to; a `Plane` alone knows which array axis runs across the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from nibabel.orientations import io_orientation
from torch import Tensor

from . import geometry
from .registration import ImageInfo, Registration

PIXELS = 600  # longest side of a displayed plane


@dataclass(frozen=True)
class Plane:
    """A 2-D cut through a grid.

    Attributes:
        shape, spacing: of the whole grid, along its array axes.
        rows, columns: array axes that run down and across the page.
        index: `[D]` a voxel the plane passes through.
        flipped: whether rows run upwards, and columns to the left.
        name: "axial", "coronal", "sagittal", or "" for a 2-D image.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    rows: int
    columns: int
    index: tuple[int, ...]
    flipped: tuple[bool, bool]
    name: str

    @property
    def in_plane(self) -> list[int]:
        """Array axes across and down the page."""
        return [self.columns, self.rows]

    @property
    def across(self) -> int:
        """Array axis that a plane of a volume is cut across."""
        return ({0, 1, 2} - set(self.in_plane)).pop()

    @property
    def sides(self) -> list[float]:
        """Width and height in millimetres."""
        return [self.shape[a] * self.spacing[a] for a in self.in_plane]

    def slab(self, array: Tensor, margin: int = 0) -> Tensor:
        """The plane and `margin` voxels to each side, `[C, *S']` of `[C, *S]`."""
        ranges = [slice(max(at - margin, 0), at + margin + 1) for at in self.index]
        ranges[self.rows] = ranges[self.columns] = slice(None)
        return array[(slice(None), *ranges)]

    def flat(self, slab: Tensor) -> np.ndarray:
        """A slab one voxel thick as shown, `[C, rows, columns]`, at most `PIXELS` on a side."""
        picture = slab.detach().cpu().float().movedim((self.rows + 1, self.columns + 1), (1, 2))
        picture = picture.reshape(picture.shape[:3])
        if (scale := PIXELS / max(picture.shape[1:])) < 1:
            picture = geometry.resize_by_area(picture, [max(1, round(scale * size)) for size in picture.shape[1:]])
        return picture.numpy()

    def take(self, array: Tensor) -> np.ndarray:
        """The plane of `[C, *S]` as shown, `[C, rows, columns]`."""
        return self.flat(self.slab(array))

    def pulled_back(self, moving: Tensor, ddf: Tensor, to_moving: Tensor) -> Tensor:
        """`moving` `[C, *M]` carried to this plane by a field `[D, *S]`: the slab `[C, *S']`, one voxel thick."""
        return self._warped(moving, self.slab(ddf), to_moving)

    def take_unregistered(self, moving: Tensor, to_moving: Tensor) -> np.ndarray:
        """The moving image on this plane of the fixed grid with no displacement, `[C, rows, columns]`."""
        sizes = [size if axis in self.in_plane else 1 for axis, size in enumerate(self.shape)]
        return self.flat(self._warped(moving, torch.zeros(len(sizes), *sizes, device=moving.device), to_moving))

    def _warped(self, moving: Tensor, slab: Tensor, to_moving: Tensor) -> Tensor:
        """`moving` `[C, *M]` pulled back through the field's slab `[D, *S']` alone, `[C, *S']`."""
        shift = geometry.identity_matrix(len(self.shape), device=slab.device)
        for axis in set(range(len(self.shape))) - set(self.in_plane):
            shift[axis, -1] = self.index[axis]
        return geometry.warp(moving, slab, to_moving.to(shift) @ shift)

    def take_jacobian(self, ddf: Tensor) -> np.ndarray:
        """Jacobian determinant and where it is not positive (share of a pixel), `[2, rows, columns]`."""
        slab = self.slab(ddf, margin=1)
        determinant = geometry.jacobian_determinant(slab)[None]
        thin = replace(self, shape=tuple(slab.shape[1:]), index=tuple(min(at, 1) for at in self.index))
        return thin.take(torch.cat([determinant, (determinant <= 0).float()]))

    def centres(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxel coordinates across and down of the pixels of a picture `[..., rows, columns]`."""
        (down, across), (height, width) = picture.shape[-2:], (self.shape[self.rows], self.shape[self.columns])
        return (np.arange(across) + 0.5) * width / across - 0.5, (np.arange(down) + 0.5) * height / down - 0.5

    def show(self, axes: Axes, picture: np.ndarray, **options: Any) -> AxesImage:
        """Draw `[rows, columns(, 3)]` with voxel coordinates on the axes, oriented for reading."""
        extent = (-0.5, self.shape[self.columns] - 0.5, self.shape[self.rows] - 0.5, -0.5)
        aspect = self.spacing[self.rows] / self.spacing[self.columns]
        artist = axes.imshow(picture, extent=extent, aspect=aspect, **options)
        axes.set_xlim(*(extent[1::-1] if self.flipped[1] else extent[:2]))
        axes.set_ylim(*(extent[:1:-1] if self.flipped[0] else extent[2:]))
        return artist


def planes_of(info: ImageInfo, shape: Sequence[int], through: Tensor) -> list[Plane]:
    """Planes of a grid through a voxel `[D]`: axial, coronal, sagittal in 3-D, the image itself in 2-D.

    Volumes are shown as radiologists read them: superior or anterior up, the patient's right (or front) on the left.
    """
    dims = len(shape)
    if info.kind == "picture":
        order, flipped = [1, 0, 2][:dims], [False] * dims
    else:
        orientation = io_orientation(np.asarray(info.affine, dtype=float))
        order = np.argsort(orientation[:, 0]).tolist()  # array axis nearest to each world axis
        flipped = (orientation[:, 1] > 0).tolist()
    index = tuple(int(min(max(round(float(at)), 0), size - 1)) for at, size in zip(through, shape, strict=True))
    names = ("axial", "coronal", "sagittal") if dims == 3 else ("",)
    return [
        Plane(tuple(shape), info.spacing, down, across, index, (flipped[down], flipped[across]), name)
        for (across, down), name in zip(combinations(order, 2), names, strict=True)
    ]


def planes_of_pair(registration: Registration) -> tuple[list[Plane], list[Plane]]:
    """Planes of the moving and of the fixed image, through the regions found and the place that corresponds to it."""
    weights = registration.pairs.fixed_regions[registration.pairs.found].sum(0)
    shape = registration.fixed.shape[1:]
    middle = (torch.tensor(shape) - 1) / 2
    fixed = geometry.centroid(weights).cpu() if len(registration.pairs) and weights.sum() > 0 else middle
    start = geometry.displace_points(fixed[:, None].to(registration.ddf), registration.ddf)
    moving = geometry.transform_points(registration.to_moving, start)[:, 0]
    moving_planes = planes_of(registration.moving_info, registration.moving.shape[1:], moving)
    return moving_planes, planes_of(registration.fixed_info, shape, fixed)
