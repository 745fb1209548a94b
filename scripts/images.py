# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Images on disk: read one and check it once, so that nothing after has to (`outputs` writes).

Whatever the format, the array is `[C, i, j(, k)]` and the affine leads from its indices to RAS millimetres. A
picture's axis
0 is the row and axis 1 the column of the STORED array: an orientation tag of a camera is not applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from torch import Tensor

from .errors import InputError
from .registration import ImageInfo

JPEG = (".jpg", ".jpeg")
TIFF = (".tif", ".tiff")
PICTURES = (".png", *JPEG, *TIFF, ".bmp")
VOLUMES = {  # ending -> ending of the outputs: those whose header is a file of its own become one file
    ".nii.gz": ".nii.gz",
    ".nii": ".nii",
    ".nrrd": ".nrrd",
    ".nhdr": ".nrrd",
    ".mha": ".mha",
    ".mhd": ".mha",
}
MIN_SIZE, MIN_SLICES = 8, 2  # voxels along the first two axes, and along the third


def read_image(path: str | Path, *, name: str) -> tuple[Tensor, ImageInfo]:
    """An image that can be registered.

    Args:
        path: a PNG, JPEG, TIFF, BMP, NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.
        name: what the caller calls this input, e.g. "fixed_image"; every error starts with it.

    Returns:
        `[C, *S]` float32 raw intensities, C = 1 (grey) or 3 (colour), and where its voxels lie.

    Raises:
        InputError: no such file, unknown format, damaged, too small, not 2-D or 3-D, constant, not finite, or no
            usable grid.
    """
    _check_path(path, name)
    with _told(name, path):
        array, affine, suffix = _load(Path(path), labels=False)
        image = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        _check_shape(image.shape)
        _check_values(image)
        spacing = _check_affine(affine)
    kind = "picture" if suffix in PICTURES else "volume"
    return image, ImageInfo(str(path), kind, suffix, torch.from_numpy(affine), spacing)


def read_label(path: str | Path, *, name: str, shape: Sequence[int]) -> Tensor:
    """A label map as it is stored, `[*shape]` int64; of a palette image the palette's indices.

    Raises:
        InputError: as `read_image`, or not of `shape`, in colour, or with values that are no integers.
    """
    _check_path(path, name)
    with _told(name, path):
        array, _, _ = _load(Path(path), labels=True)
        if len(array) != 1:
            raise InputError("is in colour; a label map has one integer per voxel")
        if array.shape[1:] != tuple(shape):
            raise InputError(
                f"has shape {array.shape[1:]}; its image has {tuple(shape)}, a label map must have the same"
            )
        if not np.array_equal(array, np.round(array)):  # also where NaN
            raise InputError("has values that are no integers; a label map has one integer per voxel")
        return torch.from_numpy(array[0].astype(np.int64))


def lps_flip(dims: int) -> np.ndarray:
    """Matrix `[dims+1, dims+1]` between ITK's LPS and our RAS millimetres; its own inverse."""
    return np.diag([-1.0, -1.0] + [1.0] * (dims - 1))


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


def _load(path: Path, *, labels: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """Stored values `[C, *S]`, RAS affine `[D+1, D+1]` float64 and the ending of outputs."""
    if not path.exists():
        raise InputError("no such file; give the path of an image that exists")
    ending = next((e for e in (*VOLUMES, *PICTURES) if path.name.lower().endswith(e)), "")
    if not ending and not path.is_dir():
        supported = ", ".join((*PICTURES, *VOLUMES))
        raise InputError(f"not a supported image; give one of {supported} or a folder with one DICOM series")
    try:
        if path.is_dir():
            return *_without_flat_axes(*_read_itk(_dicom_files(path))), ".nii.gz"
        if ending in PICTURES:
            return _read_picture(path, labels=labels), np.eye(3), ending
        read = _read_nifti if ending.startswith(".nii") else _read_itk
        return *_without_flat_axes(*read(str(path))), VOLUMES[ending]
    except InputError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split("ITK ERROR: ")[-1].split())[:160] or type(error).__name__
        raise InputError(f"cannot be read ({reason}); give a whole, undamaged image file") from error


def _read_picture(path: Path, *, labels: bool) -> np.ndarray:
    with Image.open(path) as file:
        pages = getattr(file, "n_frames", 1)
        if file.format == "TIFF" and pages > 1:
            raise InputError(f"has {pages} pages; save one page, or the stack as a 3-D volume")
        file.load()
        picture: Image.Image = file
        if picture.mode in ("LA", "La") or (picture.mode == "1" and not labels):
            picture = picture.convert("L")
        elif picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
            picture = picture if labels and picture.mode == "P" else picture.convert("RGB")
        array = np.asarray(picture)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _read_nifti(path: str) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    array = np.asanyarray(image.dataobj)
    array = array[None] if array.dtype.names is None else np.stack([array[c] for c in array.dtype.names[:3]])
    if image.header["sform_code"] or image.header["qform_code"]:
        return array, np.asarray(image.affine, dtype=np.float64)
    # The header gives no place: take the one ITK takes, so that fields on disk mean the same to both.
    return array, lps_flip(3) @ np.diag([*image.header["pixdim"][1:4], 1.0]).astype(np.float64)


def _read_itk(path: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(path)
    dims, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if components not in (1, 3, 4):
        raise InputError(f"has {components} values per voxel; give a grey or a colour image")
    array = sitk.GetArrayFromImage(image).T
    array = array[None] if components == 1 else array[:3]
    matrix = np.eye(dims + 1)
    matrix[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) * image.GetSpacing()
    matrix[:dims, dims] = image.GetOrigin()
    return array, lps_flip(dims) @ matrix


def _dicom_files(folder: Path) -> Sequence[str]:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise InputError(f"the folder holds {len(series)} DICOM series; give a folder with exactly one")
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])


def _without_flat_axes(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop trailing axes of size 1 (2-D images and single frames are often stored so) with their part of the affine."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    dims = array.ndim - 1
    if dims not in (2, 3):
        raise InputError(f"has {dims} axes, shape {array.shape[1:]}; choose a frame and save it as a 3-D volume")
    if np.abs(affine[dims:-1, :dims]).max(initial=0) > 1e-3 * np.abs(affine[:dims, :dims]).max():
        raise InputError("is a single slice that is not axial; save it as a picture, e.g. PNG, or with more slices")
    keep = [*range(dims), -1]
    return array, affine[np.ix_(keep, keep)]


def _check_shape(shape: Sequence[int]) -> None:
    size = tuple(shape[1:])
    least = [MIN_SIZE, MIN_SIZE, MIN_SLICES][: len(size)]
    if any(s < m for s, m in zip(size, least, strict=True)):
        raise InputError(f"is too small or empty, shape {size}; at least {tuple(least)} voxels are needed")


def _check_values(image: Tensor) -> None:
    wrong = int((~torch.isfinite(image)).sum())
    if wrong:
        raise InputError(f"has {wrong} NaN or infinite values; replace them by numbers, e.g. the background's")
    if image.amin() == image.amax():
        raise InputError(f"is constant, every value is {image.amin():g}; give an image that shows something")


def _check_affine(affine: np.ndarray) -> tuple[float, ...]:
    """Spacing, mm, of a usable affine."""
    if not np.isfinite(affine).all():
        raise InputError("its affine is not finite; repair the header")
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    if (spacing <= 0).any():
        raise InputError(f"its spacing {tuple(spacing.tolist())} is not positive; repair the header")
    if abs(np.linalg.det(affine[:-1, :-1] / spacing)) < 1e-6:
        raise InputError("its affine is singular, so voxels have no place of their own; repair the header")
    return tuple(spacing.tolist())
