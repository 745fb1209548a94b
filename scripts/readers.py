# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""One reader per family of formats: stored values, and the affine to RAS millimetres (`images` checks them).

A file that holds several frames (time points, pages) needs one to be chosen; sizes are looked at before values are
read. Sheared axes are kept as they are: all of this project works on any affine.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from .dicom import find_series, is_dicom, ordered, read_header
from .errors import InputError
from .frames import Frame
from .memory import READING, check_memory

logger = logging.getLogger(__name__)

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
    ".dcm": ".nii.gz",
}
FRAMES_FROM = 5  # values per voxel: fewer are colours or vectors, more are frames (Slicer's sequences in NRRD)


def load(path: Path, *, labels: bool, frame: Frame, most: int | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    """Stored values `[C, *S]`, RAS affine `[D+1, D+1]` float64 and the ending of outputs.

    Args:
        path: file or folder; labels: whether values are ids; frame: which one of a series.
        most: voxels that a file may have by its header; None: as many as fit into memory.

    Raises:
        InputError: no such file, no image, damaged, or too large, which is known before values are read.
    """
    if not path.exists():
        raise InputError("no such file; give the path of an image that exists")
    ending = next((e for e in (*VOLUMES, *PICTURES) if path.name.lower().endswith(e)), "")
    if not ending and path.is_file() and is_dicom(path):  # scanners write names without an ending
        ending = ".dcm"
    if not ending and not path.is_dir():
        supported = ", ".join((*PICTURES, *VOLUMES))
        raise InputError(f"not a supported image; give one of {supported} or a folder with one DICOM series")
    try:
        if ending in PICTURES and not path.is_dir():
            return _read_picture(path, most, labels=labels, frame=frame), np.eye(3), ending
        if path.is_dir():
            values, affine = _read_series(path, frame, most)
        elif ending.startswith(".nii"):
            values, affine = _read_nifti(path, frame, most)
        else:
            values, affine = _read_itk(str(path), frame, most)
        return *_without_flat_axes(values, affine), VOLUMES.get(ending, ".nii.gz")
    except InputError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split("ITK ERROR: ")[-1].split())[:160] or type(error).__name__
        raise InputError(f"cannot be read ({reason}); give a whole, undamaged image file") from error


def lps_flip(dims: int) -> np.ndarray:
    """Matrix `[dims+1, dims+1]` between ITK's LPS and our RAS millimetres; its own inverse."""
    return np.diag([-1.0, -1.0] + [1.0] * (dims - 1))


@cache
def warn_once(text: str) -> None:
    """One line in the log, however often a file is read."""
    logger.warning(text)


def _read_picture(path: Path, most: int | None, *, labels: bool, frame: Frame) -> np.ndarray:
    with Image.open(path) as file:
        pages = getattr(file, "n_frames", 1) if file.format == "TIFF" else 1
        file.seek(frame.of(pages, "pages"))
        _check_size((len(file.getbands()), file.height, file.width), most)
        file.load()
        picture: Image.Image = file
        if picture.mode in ("LA", "La") or (picture.mode == "1" and not labels):
            picture = picture.convert("L")
        elif picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
            picture = picture if labels and picture.mode == "P" else picture.convert("RGB")
        array = np.asarray(picture)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _read_nifti(path: Path, frame: Frame, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    header, shape = image.header, image.shape
    _check_components(int(np.prod(shape[4:], dtype=int)))
    chosen = frame.of(shape[3] if len(shape) > 3 else 1)
    _check_size((1, *shape[:3]), most)
    values = image.dataobj[..., chosen] if len(shape) == 4 else np.asanyarray(image.dataobj)
    if len(shape) > 4:
        values = values.reshape(shape[:4])[..., chosen]
    values = values[None] if values.dtype.names is None else np.stack([values[c] for c in values.dtype.names[:3]])
    if not header["sform_code"] and not header["qform_code"]:
        # The header gives no place: take the one ITK takes, so that fields on disk mean the same to both.
        return values, lps_flip(3) @ np.diag([*header["pixdim"][1:4], 1.0]).astype(np.float64)
    affine = np.asarray(image.affine, dtype=np.float64)
    sizes, stored = np.linalg.norm(affine[:3, :3], axis=0), np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not header["qform_code"] and np.allclose(sizes, 1, rtol=0.01) and not np.allclose(stored, 1, rtol=0.01):
        warn_once(
            f"{path}: the header contradicts itself: voxels of {_by(sizes)} mm by its affine (sform), which is used, "
            f"and of {_by(stored)} mm by its pixdim, which ITK would use"
        )
    return values, affine


def _read_series(folder: Path, frame: Frame, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    slices = find_series(folder)
    if len(slices) == 1:
        return _read_itk(slices[0].path, frame, most)
    frame.of(1)
    files, matrix = ordered(slices)
    _check_size((slices[0].components, *slices[0].size[:2], len(files)), most)
    return _channels_first(sitk.ReadImage(files)), lps_flip(3) @ matrix


def _read_itk(path: str, frame: Frame, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    components, size = reader.GetNumberOfComponents(), reader.GetSize()
    sequence = components >= FRAMES_FROM
    if not sequence:
        _check_components(components)
    if len(size) > 4:
        raise InputError(f"has {len(size)} axes, shape {size}; save one frame as a 3-D volume")
    # A film's frames are counted along the third axis, a volume's along the fourth.
    film = len(size) == 3 and is_dicom(Path(path)) and read_header(path).film
    time = 2 if film else 3
    count = components if sequence else size[time] if len(size) > time else 1
    chosen = frame.of(count)
    _check_size((components, *size), most)
    image = reader.Execute()
    values = _channels_first(image)
    if sequence:
        values = values[chosen : chosen + 1]
    elif len(size) > time:
        values = values[..., chosen]
    dims = len(size)
    matrix = np.eye(dims + 1)
    matrix[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) * image.GetSpacing()
    matrix[:dims, dims] = image.GetOrigin()
    spatial = [*range(min(dims, 3)), dims]
    return (values[..., None] if film else values), lps_flip(len(spatial) - 1) @ matrix[np.ix_(spatial, spatial)]


def _channels_first(image: sitk.Image) -> np.ndarray:
    """Values `[C, *S]` in ITK's index order, of four colours the first three."""
    array = sitk.GetArrayViewFromImage(image).T
    components = image.GetNumberOfComponentsPerPixel()
    return np.array(array[None] if components == 1 else array[:3] if components == 4 else array)


def _check_size(shape: tuple[int, ...], most: int | None) -> None:
    """What the header says, `(C, *S)`, before values are read."""
    voxels = math.prod(shape[1:])
    if most is not None and voxels > most:
        sizes = " x ".join(map(str, shape[1:]))
        raise InputError(f"has {sizes} voxels, and {most} are allowed here; crop or resample to fewer")
    check_memory(shape, copies=READING)


def _check_components(components: int) -> None:
    if components not in (1, 3, 4):
        raise InputError(f"has {components} values per voxel; give a grey or a colour image")


def _without_flat_axes(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop trailing axes of size 1 (2-D images are often stored so) with their part of the affine."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    dims = array.ndim - 1
    if dims not in (2, 3):
        raise InputError(f"has {dims} axes, shape {array.shape[1:]}; give a 2-D or a 3-D image")
    askew = np.abs(affine[dims:-1, :dims]).max(initial=0) > 1e-3 * np.abs(affine[:dims, :dims]).max()
    if askew or (dims == 3 and min(array.shape[1:3]) == 1):
        raise InputError("is a single slice that is not axial; save it as a picture, e.g. PNG, or with more slices")
    keep = [*range(dims), -1]
    return array, affine[np.ix_(keep, keep)]


def _by(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
