# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A folder with one DICOM series becomes one volume, if its slices are an even stack of equals.

Headers are compared before any pixel is read. The affine is made from the slices' own positions, so a tilted gantry
gives a sheared volume instead of a straightened one. Nothing is resampled and subfolders are not searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import InputError

POSITION, DESCRIPTION, FRAME_POINTER = "0020|0032", "0008|103e", "0028|0009"
TIME_POINTERS = ("0018,1063", "0018,1065")  # frame time, frame time vector: frames of a film
TOLERANCE = 0.01  # of the distance between slices (and of the pixel size) that two may differ by
TURN = 1e-3  # by which direction cosines may differ
LISTED = 6  # series named in a message


@dataclass(frozen=True)
class Slice:
    """Header of one file.

    Attributes:
        path: the file.
        size: of the stored array, frames last.
        spacing: `[2]` of a pixel, mm.
        axes: `[3, 2]` directions of the two axes of the stored array, LPS.
        position: `[3]` LPS mm of the first pixel; None where the header has none.
        components: values per pixel.
        description: of the series.
        film: whether its frames follow each other in time.
    """

    path: str
    size: tuple[int, ...]
    spacing: np.ndarray
    axes: np.ndarray
    position: np.ndarray | None
    components: int
    description: str
    film: bool

    @property
    def frames(self) -> int:
        """Number of frames, 1 for an ordinary slice."""
        return self.size[2] if len(self.size) > 2 else 1


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM, whatever its name."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_header(path: str) -> Slice:
    """What one file says about itself, without its pixels.

    Raises:
        RuntimeError: ITK's, for a file that holds no image.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    pointer = _tag(reader, FRAME_POINTER)
    return Slice(
        path=path,
        size=tuple(reader.GetSize()),
        spacing=np.array(reader.GetSpacing()[:2]),
        axes=np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:3, :2],
        position=np.array(reader.GetOrigin()) if _tag(reader, POSITION) else None,
        components=reader.GetNumberOfComponents(),
        description=_tag(reader, DESCRIPTION),
        film=any(time in pointer for time in TIME_POINTERS),
    )


def find_series(folder: Path) -> list[Slice]:
    """Headers of the only series in a folder.

    Raises:
        InputError: no images, more than one series (which are listed), or a file that cannot be read.
    """
    with _quiet():
        uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        found = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in uids}
    known = {Path(name).name for names in found.values() for name in names} | {"DICOMDIR"}
    strange = [p.name for p in sorted(folder.iterdir()) if p.name not in known and p.is_file() and is_dicom(p)]
    if strange:  # left out of its series in silence, it would be missed only if it lay in the middle
        raise InputError(f"{strange[0]} in the folder is DICOM but cannot be read (damaged?); replace or remove it")
    first = {uid: header for uid, names in found.items() if (header := _image_header(names[0]))}
    if not first:
        raise InputError(
            "the folder holds no DICOM images (subfolders are not searched); give a folder with one series"
        )
    if len(first) > 1:
        listed = [
            f"'{header.description or 'no description'}' ({len(found[uid])} files, UID {uid})"
            for uid, header in first.items()
        ]
        more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        raise InputError(
            f"the folder holds {len(first)} DICOM series: {'; '.join(listed[:LISTED])}{more}; "
            "give a folder with exactly one"
        )
    (uid,) = first
    headers = [_image_header(name) for name in found[uid]]
    damaged = [Path(name).name for name, header in zip(found[uid], headers, strict=True) if header is None]
    if damaged:
        raise InputError(f"{damaged[0]} of the series cannot be read as an image; give a whole series")
    return [header for header in headers if header]


def ordered(slices: Sequence[Slice]) -> tuple[list[str], np.ndarray]:
    """The stack that single-frame slices make.

    Returns:
        Files from the first to the last slice along the normal, and the matrix `[4, 4]` from indices to LPS mm.

    Raises:
        InputError: they differ in size, orientation or pixels, or do not lie evenly on one line.
    """
    _check_equal(slices)
    if any(s.position is None for s in slices):
        raise InputError("the files of the series do not say where they lie; save the series as NIfTI with its spacing")
    axes = slices[0].axes
    normal = np.cross(axes[:, 0], axes[:, 1])
    stack = sorted(slices, key=lambda s: float(normal @ s.position))
    positions = np.stack([np.asarray(s.position) for s in stack])
    _check_even(stack, positions @ normal)
    step = (positions[-1] - positions[0]) / (len(stack) - 1)
    off_line = np.linalg.norm(positions - positions[0] - np.arange(len(stack))[:, None] * step, axis=1)
    if off_line.max() > TOLERANCE * np.linalg.norm(step) + 0.01:
        name = Path(stack[int(off_line.argmax())].path).name
        raise InputError(
            f"slice {name} lies {off_line.max():.2f} mm beside the line of the others; give one straight stack"
        )
    matrix = np.eye(4)
    matrix[:3, :2], matrix[:3, 2], matrix[:3, 3] = axes * slices[0].spacing, step, positions[0]
    return [s.path for s in stack], matrix


def _check_equal(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        names = f"{Path(first.path).name} and {Path(other.path).name}"
        if first.frames > 1 or other.frames > 1:
            raise InputError(f"{names} hold several frames each; give one of these files instead of the folder")
        if (first.size, first.components) != (other.size, other.components):
            raise InputError(
                f"{names} differ in size, {_size(first)} and {_size(other)}; give one stack of equal slices"
            )
        if np.abs(first.axes - other.axes).max() > TURN:
            raise InputError(f"{names} differ in orientation; give one stack of parallel slices")
        if np.abs(first.spacing / other.spacing - 1).max() > TOLERANCE:
            raise InputError(f"{names} differ in pixel size; give one stack of equal slices")


def _check_even(stack: Sequence[Slice], heights: np.ndarray) -> None:
    """Raise unless `heights` `[N]`, mm along the normal, rising, are even."""
    gaps = np.diff(heights)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: of two gaps the wider one lacks a slice
    for k, gap in enumerate(gaps):
        where = f"{Path(stack[k].path).name} and {Path(stack[k + 1].path).name}"
        if gap <= TOLERANCE * max(usual, 1e-3):
            raise InputError(
                f"slices {where} lie at the same place, {heights[k]:g} mm along the stack (a second time point or "
                "echo?); give one stack"
            )
        if abs(gap - usual) > TOLERANCE * usual:
            raise InputError(
                f"slices {where}, at {heights[k]:g} and {heights[k + 1]:g} mm along the stack, are {gap:g} mm apart "
                f"and the others {usual:g} mm (is a slice missing?); give an even stack"
            )


def _size(header: Slice) -> str:
    colour = f" with {header.components} values a pixel" if header.components > 1 else ""
    return "x".join(map(str, header.size[:2])) + colour


def _image_header(path: str) -> Slice | None:
    try:
        return read_header(path)
    except RuntimeError:  # reports, structures, contours and damaged files have no pixels to read
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ITK's warning that a folder holds no series, which is told as an error."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return " ".join(reader.GetMetaData(key).split()) if reader.HasMetaDataKey(key) else ""
