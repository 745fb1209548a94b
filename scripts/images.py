# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Images on disk: read one and check it once, so that nothing after has to (`readers` decode, `outputs` writes).

Whatever the format, the array is `[C, i, j(, k)]` and the affine leads from its indices to RAS millimetres. A picture's
axis 0 is the row and axis 1 the column of the STORED array: an orientation tag of a camera is not applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .frames import Frame
from .readers import PICTURES, load, warn_once
from .registration import ImageInfo

MIN_SIZE, MIN_SLICES = 8, 2  # voxels along the first two axes, and along the third
SHEAR = 1e-3  # cosine between axes below which they count as at right angles


def read_image(
    path: str | Path, *, name: str, frame: int | str | None = None, most: int | None = None
) -> tuple[Tensor, ImageInfo]:
    """An image that can be registered.

    Args:
        path: a PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MetaImage or DICOM file, or a folder with one DICOM series.
        name: what the caller calls this input, e.g. "fixed_image"; every error starts with it.
        frame: which frame of a series of images (or page of a TIFF), 0-based; needed where there are several.
        most: voxels that the file may have by its header, before they are read; None: as many as fit into memory.

    Returns:
        `[C, *S]` float32 raw intensities, C = 1 (grey) or 3 (colour), and where its voxels lie.

    Raises:
        InputError: no such file, unknown format, damaged, too small, not 2-D or 3-D, larger than the memory, constant,
            not finite, no usable grid, or several frames and none chosen.
    """
    image, info = read_values(path, name=name, frame=frame, most=most)
    with _told(name, path):
        _check_shape(image.shape)
        if image.amin() == image.amax():
            raise InputError(f"is constant, every value is {image.amin():g}; give an image that shows something")
    return image, info


def read_values(
    path: str | Path, *, name: str, frame: int | str | None = None, most: int | None = None
) -> tuple[Tensor, ImageInfo]:
    """As `read_image`, of any size and even constant: what is only carried over need not be registrable."""
    _check_path(path, name)
    with _told(name, path):
        array, affine, suffix = load(Path(path), labels=False, frame=Frame(frame, frame_option(name)), most=most)
        image = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        _check_finite(image)
        return image, _info(path, suffix, affine)


def read_labels(path: str | Path, *, name: str) -> tuple[Tensor, ImageInfo]:
    """A label map as it is stored, `[*S]` int64, and where its voxels lie; of a palette image the palette's indices.

    Raises:
        InputError: as `read_values`, or in colour, or with values that are no integers.
    """
    _check_path(path, name)
    with _told(name, path):
        array, affine, suffix = load(Path(path), labels=True, frame=Frame())
        if len(array) != 1:
            raise InputError("is in colour; a label map has one integer per voxel")
        if not np.array_equal(array, np.round(array)):  # also where NaN
            raise InputError("has values that are no integers; a label map has one integer per voxel")
        return torch.from_numpy(array[0].astype(np.int64)), _info(path, suffix, affine)


def read_label(path: str | Path, *, name: str, shape: Sequence[int]) -> Tensor:
    """A label map `[*shape]` int64 of an image whose grid is known; its own header counts for nothing.

    Raises:
        InputError: as `read_labels`, or not of `shape`.
    """
    labels, _ = read_labels(path, name=name)
    if labels.shape != tuple(shape):
        raise InputError(
            f"{name}: {path}: has shape {tuple(labels.shape)}; its image has {tuple(shape)}, "
            "a label map must have the same"
        )
    return labels


def frame_option(name: str) -> str:
    """The option that chooses a frame of an input: "fixed_frame" for "fixed_image"."""
    return f"{name.removesuffix('_image')}_frame"


def nifti_image(values: np.ndarray, affine: Tensor) -> nib.Nifti1Image:
    """NIfTI image whose header holds the RAS `affine` `[D+1, D+1]` as it is, sheared or not; a plane lies at z = 0."""
    full = np.eye(4)
    keep = [*range(len(affine) - 1), 3]
    full[np.ix_(keep, keep)] = affine.numpy()
    image = nib.Nifti1Image(values, full)
    image.header.set_xyzt_units("mm")
    return image


def _check_path(path: object, name: str) -> None:
    if not isinstance(path, str | Path):
        raise InputError(f"{name}: {path!r} is no path; give the path of an image")


@contextmanager
def _told(name: str, path: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError as wrong:
        raise InputError(f"{name}: {path}: {wrong}") from wrong.__cause__


def _info(path: str | Path, suffix: str, affine: np.ndarray) -> ImageInfo:
    spacing = usable_spacing(affine)
    axes = affine[:-1, :-1] / spacing
    if np.abs(axes.T @ axes - np.eye(len(axes))).max() > SHEAR:
        warn_once(
            f"{path}: its axes are not at right angles; results keep them so, and ITK cannot read such NIfTI files"
        )
    kind = "picture" if suffix in PICTURES else "volume"
    return ImageInfo(str(path), kind, suffix, torch.from_numpy(affine), spacing)


def _check_shape(shape: Sequence[int]) -> None:
    size = tuple(shape[1:])
    least = [MIN_SIZE, MIN_SIZE, MIN_SLICES][: len(size)]
    if any(s < m for s, m in zip(size, least, strict=True)):
        raise InputError(f"is too small or empty, shape {size}; at least {tuple(least)} voxels are needed")


def _check_finite(image: Tensor) -> None:
    wrong = int((~torch.isfinite(image)).sum())
    if wrong:
        raise InputError(f"has {wrong} NaN or infinite values; replace them by numbers, e.g. the background's")


def usable_spacing(affine: np.ndarray) -> tuple[float, ...]:
    """Spacing, mm, of an affine `[D+1, D+1]`; raises InputError when it gives voxels no place of their own."""
    if not np.isfinite(affine).all():
        raise InputError("its affine is not finite; repair the header")
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    if (spacing <= 0).any():
        raise InputError(f"its spacing {tuple(spacing.tolist())} is not positive; repair the header")
    if abs(np.linalg.det(affine[:-1, :-1] / spacing)) < 1e-6:
        raise InputError("its affine is singular, so voxels have no place of their own; repair the header")
    return tuple(spacing.tolist())
