# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SimpleITK, given the written field, resamples to the image that `geometry.warp` gives."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from torch import Tensor

from scripts.fields import displacement_mm, physical_from_voxel, write_field
from scripts.geometry import identity_points, transform_points, warp
from scripts.image_files import write_image
from scripts.images import read_image
from scripts.readers import lps_flip
from scripts.registration import ImageInfo


def waves(shape: tuple[int, ...], amplitude: float) -> Tensor:
    """Smooth field `[D, *shape]`, another on each axis."""
    points = identity_points(shape)
    phase = sum(points[d] / (4.0 + d) for d in range(len(shape)))
    return amplitude * torch.stack([torch.sin(phase + d) for d in range(len(shape))])


def rotated(angle: float, spacing: tuple[float, ...], origin: tuple[float, ...]) -> Tensor:
    """RAS affine of a grid turned about two axes."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, origin
    return torch.from_numpy(affine)


def resampled(folder: Path, fixed: str, moving: str) -> Tensor:
    """What a reader without this project does with the files; `[*S]` in our order of axes for volumes."""
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "ddf.nii.gz"), sitk.sitkVectorFloat64))
    images = [sitk.ReadImage(str(folder / file), sitk.sitkFloat32) for file in (moving, fixed)]
    return torch.from_numpy(sitk.GetArrayFromImage(sitk.Resample(*images, transform, sitk.sitkLinear)))


def assert_agree(moving: Tensor, ddf: Tensor, to_moving: Tensor, theirs: Tensor) -> None:
    """Equal wherever the map leads inside the moving image; outside each has its own rule for the rim."""
    points = transform_points(to_moving, identity_points(ddf.shape[1:]) + ddf)
    sizes = torch.tensor(moving.shape[1:]).reshape(-1, *[1] * (ddf.ndim - 1))
    inside = ((points > 1e-3) & (points < sizes - 1 - 1e-3)).all(0)
    assert inside.float().mean() > 0.4
    differences = (warp(moving, ddf, to_moving)[0] - theirs)[inside].abs()
    assert differences.max() < 1e-3 * (moving.max() - moving.min())


def test_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in {"fixed.png": (40, 52), "moving.png": (60, 44)}.items():
        Image.fromarray(rng.integers(50, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    fixed, fixed_info = read_image(tmp_path / "fixed.png", name="fixed_image")
    moving, moving_info = read_image(tmp_path / "moving.png", name="moving_image")
    to_moving = torch.tensor([[1.3, 0.1, 2.0], [-0.1, 0.7, 5.0], [0, 0, 1]])
    ddf = waves(fixed.shape[1:], 2.0)
    write_field(tmp_path / "ddf.nii.gz", ddf, to_moving, fixed_info, moving_info)
    field = sitk.ReadImage(str(tmp_path / "ddf.nii.gz"))
    assert (field.GetDimension(), field.GetNumberOfComponentsPerPixel(), field.GetSize()) == (2, 2, (52, 40))
    assert field.GetMetaData("intent_code") == "1007"  # vector
    assert_agree(moving, ddf, to_moving, resampled(tmp_path, "fixed.png", "moving.png"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    ("shape", "fixed_spacing", "moving_shape", "moving_spacing"),
    [
        ((24, 30, 20), (1.5, 1.0, 2.0), (32, 26, 36), (1.2, 1.3, 1.1)),
        ((40, 36, 4), (1.0, 1.0, 8.0), (44, 40, 5), (0.9, 0.9, 7.0)),
        ((30, 36), (1.5, 1.0), (44, 40), (1.1, 0.9)),
    ],
    ids=["rotated", "thin", "plane"],
)
def test_volumes(
    shape: tuple[int, ...],
    fixed_spacing: tuple[float, ...],
    moving_shape: tuple[int, ...],
    moving_spacing: tuple[float, ...],
    suffix: str,
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    dims = len(shape)
    images, infos = {}, {}
    for name, size, spacing, angle, origin in (
        ("fixed", shape, fixed_spacing, 0.3, (10.0, -20.0, 30.0)),
        ("moving", moving_shape, moving_spacing, 0.25, (9.0, -21.0, 29.0)),
    ):
        affine = rotated(angle, (*spacing, 1.0)[:3], origin)
        if dims == 2:
            c, s = np.cos(angle), np.sin(angle)
            affine = torch.eye(3, dtype=torch.float64)
            affine[:2] = torch.tensor(
                [[c * spacing[0], -s * spacing[1], origin[0]], [s * spacing[0], c * spacing[1], origin[1]]]
            )
        image = 50 + 200 * torch.rand((1, *size), generator=generator)
        write_image(image, ImageInfo("", "volume", suffix, affine, spacing), tmp_path / f"{name}{suffix}")
        images[name], infos[name] = read_image(tmp_path / f"{name}{suffix}", name=name)
    to_moving = torch.linalg.inv(infos["moving"].affine) @ infos["fixed"].affine
    ddf = waves(shape, 1.0 if min(shape) > 8 else 0.4)
    write_field(tmp_path / "ddf.nii.gz", ddf, to_moving, infos["fixed"], infos["moving"])
    theirs = resampled(tmp_path, f"fixed{suffix}", f"moving{suffix}").permute(*reversed(range(dims)))
    assert_agree(images["moving"], ddf, to_moving, theirs)


def test_displacement_of_the_identity_is_the_difference_of_the_grids() -> None:
    fixed = ImageInfo("", "volume", ".nii.gz", torch.diag(torch.tensor([2.0, 3, 4, 1]).double()), (2, 3, 4))
    moving = ImageInfo("", "volume", ".nii.gz", torch.eye(4).double(), (1, 1, 1))
    field = displacement_mm(torch.zeros(3, 8, 8, 8), torch.eye(4), fixed, moving)
    assert field.dtype == torch.float64
    # Voxel (1, 1, 1) lies at LPS (-2, -3, 4) in the fixed and at (-1, -1, 1) in the moving image.
    assert field[:, 1, 1, 1].tolist() == [1, 2, -3]


def test_places() -> None:
    picture = ImageInfo("", "picture", ".png", torch.eye(3).double(), (1, 1))
    assert (physical_from_voxel(picture) @ torch.tensor([3.0, 5, 1]).double()).tolist() == [5, 3, 1]
    assert np.array_equal(lps_flip(2), np.diag([-1, -1, 1]))
    assert np.array_equal(lps_flip(3), np.diag([-1, -1, 1, 1]))


def test_a_sheared_grid_is_not_straightened(tmp_path: Path) -> None:
    affine = torch.eye(4).double()
    affine[0, 1] = 0.25
    info = ImageInfo("", "volume", ".nii.gz", affine, (1, 1, 1))
    write_field(tmp_path / "ddf.nii.gz", torch.zeros(3, 8, 9, 4), torch.eye(4), info, info)
    assert np.array_equal(nib.load(tmp_path / "ddf.nii.gz").affine, affine)
