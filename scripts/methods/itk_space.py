# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The space that third-party tools work in, and the room they get: images in, dense maps out, silence in between.

Tools get grey float images with clean headers in ITK's physical space: LPS millimetres for volumes; for pictures the
pixel of row i and column j lies at (j, i). `geometry` has our convention, `fields.physical_from_voxel` the bridge. A
SimpleITK image is the common form, as its arrays `[z, y, x]` are ours for pictures and ours transposed for volumes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..errors import InputError
from ..fields import physical_from_voxel
from ..geometry import identity_points, transform_points
from ..registration import ImageInfo
from ..request import PairRequest


def grey(image: Tensor) -> Tensor:
    """Raw intensities `[C, *S]` as one channel `[*S]` float32 on the CPU: the mean of the channels."""
    return image.detach().float().mean(0).cpu()


def itk_image(image: Tensor, info: ImageInfo) -> sitk.Image:
    """The grey image with the geometry that ITK gives it, float32.

    Args:
        image: `[C, *S]` raw intensities.
        info: its geometry.

    Raises:
        InputError: the header is sheared, which ITK's spacing and direction cannot say.
    """
    matrix = physical_from_voxel(info).numpy()
    if info.kind == "picture":  # ITK counts columns first, and so does the array it reads
        matrix = matrix[:, [1, 0, 2]]
    dims = len(info.spacing)
    spacing = np.linalg.norm(matrix[:dims, :dims], axis=0)
    direction = matrix[:dims, :dims] / spacing
    if np.abs(direction.T @ direction - np.eye(dims)).max() > 1e-3:
        raise InputError(f"{info.path or 'image'}: its axes are sheared; resample it onto a grid with right angles")
    # To the nearest true rotation: what a header rounds off, ITK's file writers refuse.
    left, _, right = np.linalg.svd(direction)
    result = sitk.GetImageFromArray(_swapped(grey(image).numpy(), info))
    result.SetSpacing(spacing.tolist())
    result.SetOrigin(matrix[:dims, dims].tolist())
    result.SetDirection((left @ right).flatten().tolist())
    return result


def itk_pair(request: PairRequest) -> tuple[sitk.Image, sitk.Image]:
    """Fixed and moving image as `itk_image`."""
    return itk_image(request.fixed, request.fixed_info), itk_image(request.moving, request.moving_info)


def geometry_of(image: sitk.Image) -> tuple[list[float], list[float], np.ndarray]:
    """Spacing, origin and direction `[D, D]` of an image for tools that take arrays."""
    dims = image.GetDimension()
    return list(image.GetSpacing()), list(image.GetOrigin()), np.reshape(image.GetDirection(), (dims, dims))


def warped_on_fixed(array: np.ndarray, request: PairRequest) -> Tensor:
    """A tool's resampled image, an array in ITK's order `[z, y, x]`, as `Mapped.warped` `[*S]`."""
    values = _swapped(np.asarray(array, dtype=np.float32), request.fixed_info)
    return torch.from_numpy(np.ascontiguousarray(values)).to(request.fixed.device)


def points_from_displacement(field: np.ndarray, request: PairRequest) -> Tensor:
    """Where a displacement field leads.

    Args:
        field: `[z, y, x, D]` on the fixed grid: physical vectors from a fixed voxel to its place in the moving image,
            components x first, LPS mm (columns, rows for pictures), as ITK's tools write it.
        request: the pair.

    Returns:
        `Mapped.points`, `[D, *S]`.
    """
    dims = field.shape[-1]
    vectors = torch.from_numpy(np.stack([_swapped(field[..., d], request.fixed_info) for d in range(dims)])).double()
    start = transform_points(physical_from_voxel(request.fixed_info), identity_points(request.fixed.shape[1:]).double())
    return points_from_physical(start + vectors, request)


def points_from_physical(places: Tensor, request: PairRequest) -> Tensor:
    """Physical places in the moving image `[D, *S]` (see `points_from_displacement`) as `Mapped.points`."""
    to_voxel = torch.linalg.inv(physical_from_voxel(request.moving_info))
    return transform_points(to_voxel, places.double()).float().to(request.fixed.device)


def missing_package(package: str, pinned: str, *modules: str) -> str | None:
    """How to install a package one of whose modules is not there; None when all are."""
    if all(find_spec(module) for module in modules):
        return None
    return f"{package} is not installed: pip install {pinned}"


def version_of(package: str) -> str | None:
    """Version of an installed package, which decides its results as much as its settings do."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def workroom(tool: str) -> Iterator[Path]:
    """A folder that is gone afterwards, also when cancelled; what the tool prints stays in it.

    Raises:
        RuntimeError: for anything that goes wrong inside but `InputError`; with the tool's last line.
    """
    with TemporaryDirectory(prefix="promptreg-") as name:
        log = Path(name, "printed.txt")
        try:
            with _printing_to(log):
                yield Path(name)
        except InputError:
            raise
        except Exception as error:  # bindings raise anything
            words = dict.fromkeys(
                (_last_line(str(error)), _last_line(log.read_text(encoding="utf-8", errors="replace")))
            )
            raise RuntimeError(f"{tool} failed: {'; '.join(filter(None, words)) or type(error).__name__}") from error


def _last_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return next((line for line in reversed(lines) if line.strip("*-=. ")), "")


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Send to a file what is printed, by compiled code too: that knows the descriptors only."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield
        finally:
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def _swapped(array: np.ndarray, info: ImageInfo) -> np.ndarray:
    """Between ITK's order of array axes and ours; its own inverse."""
    return array if info.kind == "picture" else array.T
