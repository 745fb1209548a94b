# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Displacement fields on disk: the one module that knows ITK's coordinates.

In memory a field is in voxels and array order. On disk it is what SimpleITK, ITK, ANTs and 3D Slicer resample with: at
each fixed voxel the vector, LPS millimetres, from its place to the place in the moving image where the value is taken,

    d(p) = P_moving to_moving (p + ddf(p)) - P_fixed p,

where P leads from array indices to the coordinates that ITK gives them. A picture has no world: ITK places the pixel of
row i and column j at (j, i), and the header's intent name says "picture".
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .geometry import identity_points, transform_points
from .images import nifti_image, usable_spacing
from .readers import lps_flip
from .registration import ImageInfo

PICTURE = "picture"  # intent name of fields between pictures, whose axes are stored column first


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
    image.header.set_intent("vector", name=PICTURE if fixed_info.kind == "picture" else "")
    nib.save(image, path)


def between(source: ImageInfo, target: ImageInfo) -> Tensor:
    """Matrix `[D+1, D+1]` float64 from voxels of one image to those of another at the same place by their headers."""
    return torch.linalg.inv(physical_from_voxel(target)) @ physical_from_voxel(source)


def read_field(path: str | Path, *, name: str = "field", picture: bool | None = None) -> tuple[Tensor, ImageInfo]:
    """The inverse of `write_field`, also for what other tools write in this form.

    What was the map before the fit is part of the displacements on disk, so the headers' relation stands in its place:
    `geometry.warp(moving, ddf, between(fixed_info, moving_info))` is the moving image on the fixed grid.

    Args:
        path: a NIfTI file as `write_field` describes it.
        name: what the caller calls this input; every error starts with it.
        picture: whether the fixed image is a picture; None: as the header says.

    Returns:
        ddf `[D, *S]` float32, voxels of the fixed grid, and that grid.

    Raises:
        InputError: no such file, damaged, no such field, or with values that are not finite.
    """
    try:
        image = nib.load(path)
        values = np.asarray(image.dataobj, dtype=np.float64)
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{name}: {path}: cannot be read ({reason}); give a whole ddf.nii.gz") from error
    dims = values.shape[-1]
    flat = () if dims == 3 else (1,)
    if values.ndim != 5 or dims not in (2, 3) or values.shape[dims:4] != (*flat, 1):
        raise InputError(
            f"{name}: {path}: has shape {values.shape}, which is no displacement field; give a NIfTI file of shape "
            "(i, j, k, 1, 3) or (i, j, 1, 1, 2), as the ddf.nii.gz of a registration"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{name}: {path}: has NaN or infinite values; give the ddf.nii.gz of a registration")
    displacement = torch.from_numpy(values.reshape(*values.shape[:dims], dims)).movedim(-1, 0)
    keep = [*range(dims), 3]
    affine = np.asarray(image.affine, dtype=np.float64)[np.ix_(keep, keep)]
    marked = image.header.get_intent()[2] == PICTURE
    if dims == 2 and (marked if picture is None else picture):
        info = ImageInfo(str(path), "picture", ".png", torch.eye(3, dtype=torch.float64), (1.0, 1.0))
        displacement = displacement.swapaxes(1, 2)
    else:
        try:
            info = ImageInfo(str(path), "volume", ".nii.gz", torch.from_numpy(affine), usable_spacing(affine))
        except InputError as error:
            raise InputError(f"{name}: {path}: {error}") from error
    # p + ddf(p) = P_fixed^-1 (P_fixed p + d(p)), so the constant part of P_fixed falls out.
    to_voxels = torch.linalg.inv(physical_from_voxel(info)[:-1, :-1])
    return torch.tensordot(to_voxels, displacement, dims=1).float().contiguous(), info
