# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Displacement fields on disk: the one module that knows ITK's coordinates.

In memory a field is in voxels and array order. On disk it is what SimpleITK, ITK, ANTs and 3D Slicer resample with: at
each fixed voxel the vector, LPS millimetres, from its place to the place in the moving image where the value is taken,

    d(p) = P_moving to_moving (p + ddf(p)) - P_fixed p,

where P leads from array indices to the coordinates that ITK gives them. A picture has no world: ITK places the pixel of
row i and column j at (j, i).
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from .geometry import identity_points, transform_points
from .images import nifti_image
from .readers import lps_flip
from .registration import ImageInfo


def physical_from_voxel(info: ImageInfo) -> Tensor:
    """Matrix `[D+1, D+1]` float64 from array indices to ITK's physical coordinates (LPS mm; column, row for
    pictures).
    """
    if info.kind == "picture":
        return torch.eye(3, dtype=torch.float64)[[1, 0, 2]]
    return torch.from_numpy(lps_flip(len(info.spacing))) @ info.affine


def displacement_mm(ddf: Tensor, to_moving: Tensor, fixed_info: ImageInfo, moving_info: ImageInfo) -> Tensor:
    """Displacements between ITK's coordinates.

    Args:
        ddf: `[D, *S]` voxels of the fixed grid, pull-back.
        to_moving: `[D+1, D+1]` from fixed to moving voxels.
        fixed_info, moving_info: geometry of the two images.

    Returns:
        `[D, *S]` float64 on the CPU, mm (pixels between pictures), components in ITK's order.
    """
    points = identity_points(ddf.shape[1:]).double()
    to_physical = physical_from_voxel(moving_info) @ to_moving.detach().cpu().double()
    target = transform_points(to_physical, points + ddf.detach().cpu().double())
    return target - transform_points(physical_from_voxel(fixed_info), points)


def write_field(
    path: str | Path, ddf: Tensor, to_moving: Tensor, fixed_info: ImageInfo, moving_info: ImageInfo
) -> None:
    """Write `displacement_mm` on the fixed grid as NIfTI with vector intent, float32 (1e-4 mm at a metre)."""
    field = displacement_mm(ddf, to_moving, fixed_info, moving_info).float().numpy()
    matrix = physical_from_voxel(fixed_info)
    if fixed_info.kind == "picture":  # ITK counts columns first
        field, matrix = field.swapaxes(1, 2), matrix[:, [1, 0, 2]]
    # NIfTI keeps components in the fifth axis: [i, j, k or 1, 1, component].
    field = np.moveaxis(field, 0, -1)
    field = field.reshape(*(*field.shape[:-1], 1)[:3], 1, len(ddf))
    image = nifti_image(field, torch.from_numpy(lps_flip(len(ddf))) @ matrix)
    image.header.set_intent("vector")
    nib.save(image, path)
