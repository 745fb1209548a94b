# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Images and label maps as files, in the format and on the grid of an image that was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image
from torch import Tensor

from .images import nifti_image
from .readers import JPEG, TIFF, lps_flip
from .registration import ImageInfo

Depth = type[np.uint8] | type[np.uint16] | type[np.float32]
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])  # how NIfTI stores colour


def output_suffix(info: ImageInfo, *, labels: bool, source: Tensor | None = None) -> str:
    """File ending for a map on this image's grid that keeps its values.

    Args:
        info: the image whose grid it is.
        labels: whether it holds integer ids, which JPEG would destroy and BMP may be too small for.
        source: for an image, the one its intensities come from, where that is another.
    """
    if info.kind == "volume" or info.suffix in TIFF:
        return info.suffix
    depth: Depth = np.uint16 if labels else np.uint8 if source is None else _depth(source)
    return ".png" if depth is np.uint16 else ".tif" if depth is np.float32 else info.suffix


def write_image(array: Tensor, info: ImageInfo, path: str | Path, *, source: Tensor | None = None) -> None:
    """Write `[C, *S]` or `[*S]` on the grid of `info`; integers stay integers.

    Pictures are rounded and clipped to 8 bit, or 16 bit grey where a value exceeds 255. With the `source` of the
    intensities given, its depth decides, and values that are no integers are kept as they are in a TIFF.
    """
    values = array.detach().cpu().numpy()
    values = values[0] if values.ndim == len(info.spacing) + 1 and len(values) == 1 else values
    colour = values.ndim == len(info.spacing) + 1
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(_integer(values))
    if info.kind == "picture":
        depth: Depth = np.uint8 if colour else _depth(source) if source is not None else _range_depth(values)
        if depth is not np.float32:
            values = np.clip(np.round(values), 0, 255 if depth is np.uint8 else 65535)
        picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(values, 0, -1) if colour else values, dtype=depth))
        options: dict[str, Any] = {"quality": 95} if Path(path).suffix in JPEG else {}
        picture.save(path, **options)
    elif str(path).endswith((".nii", ".nii.gz")):
        if colour:
            bytes_last = np.clip(np.round(np.moveaxis(values, 0, -1)), 0, 255).astype(np.uint8)
            values = np.ascontiguousarray(bytes_last).view(RGB)[..., 0]
        nib.save(nifti_image(values, info.affine), path)
    else:
        lps = lps_flip(len(info.spacing)) @ info.affine.numpy()
        sitk.WriteImage(_to_itk(values if colour else values[None], lps), str(path), useCompression=True)


def _to_itk(array: np.ndarray, matrix: np.ndarray) -> sitk.Image:
    """ITK image of `[C, *S]`, S in ITK's index order.

    Args:
        array: values, C components per voxel.
        matrix: `[D+1, D+1]` from indices to LPS mm.
    """
    dims = array.ndim - 1
    values = array[0].T if len(array) == 1 else array.T  # as numpy sees ITK's memory: first index and component last
    image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=len(array) > 1)
    spacing = np.linalg.norm(matrix[:dims, :dims], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:dims, :dims] / spacing).flatten().tolist())
    image.SetOrigin(matrix[:dims, dims].tolist())
    return image


def _depth(source: Tensor) -> Depth:
    """Smallest of uint8, uint16 and float32 that holds the values of a stored image."""
    whole = source.amin() >= 0 and source.amax() <= 65535 and bool((source == source.round()).all())
    return _range_depth(source.cpu().numpy()) if whole else np.float32


def _integer(values: np.ndarray) -> type[np.integer]:
    """Smallest of the integer types that all our formats have that holds the values."""
    low, high = values.min(initial=0), values.max(initial=0)
    types: list[type[np.integer]] = [np.uint8, np.uint16, np.int16, np.int32]
    return next((t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max), np.int64)


def _range_depth(values: np.ndarray) -> Depth:
    return np.uint16 if values.max(initial=0) > 255 else np.uint8
