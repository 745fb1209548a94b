# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A real volume and itself, moved and stored in another order: the command finds the motion, and ITK agrees."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import shift

from tests.test_bundle import CONFIG, monai_bundle

SHIFT = (2.0, -1.5, 0.5)  # voxels of 2 mm
ON_A_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Eight slices of the head that nibabel's own tests use (33 x 41 voxels of 2 mm)."""
    folder = tmp_path_factory.mktemp("volumes")
    head = nib.load(Path(nib.__file__).parent / "tests" / "data" / "anatomical.nii")
    array = np.asarray(head.dataobj, dtype=np.float32).clip(0)
    moved = shift(array, SHIFT, order=3, mode="nearest")  # moved(p + SHIFT) = array(p)
    fixed, moving = (nib.Nifti1Image(a[..., 8:16], head.affine) for a in (array, moved))
    # Another order of the axes, and an origin that lies by 80 mm.
    turn = ornt_transform(io_orientation(head.affine), axcodes2ornt(("S", "R", "P")))
    turned = moving.as_reoriented(turn)
    affine = turned.affine.copy()
    affine[:3, 3] += (80.0, 0, 0)
    nib.save(fixed, folder / "fixed.nii.gz")
    nib.save(nib.Nifti1Image(turned.get_fdata(dtype=np.float32), affine), folder / "moving.nii.gz")
    return {"fixed_image": str(folder / "fixed.nii.gz"), "moving_image": str(folder / "moving.nii.gz")}


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", ON_A_GPU])
def test_the_command_registers_volumes(volumes: dict[str, str], tmp_path: Path, device: str) -> None:
    fast = {
        "device": device,
        "sampling::count": 6,  # three regions of eight slices leave the third axis to chance
        "prior_fit::levels": [{"size": 32, "controls": 0, "steps": 40}],
        "fit::levels": [{"size": 41, "controls": 4, "steps": 30}, {"size": 41, "controls": 16, "steps": 60}],
    }
    done = monai_bundle("run", tmp_path, config_file=CONFIG, output_dir="out", **volumes, **fast)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    fixed, moving, moved = (
        sitk.ReadImage(str(path), sitk.sitkFloat32)
        for path in (volumes["fixed_image"], volumes["moving_image"], out / "moved.nii.gz")
    )
    field = sitk.ReadImage(str(out / "ddf.nii.gz"), sitk.sitkVectorFloat64)

    # In LPS millimetres: voxels of 2 mm whose first axis runs to the left, and the lie of the header.
    middle = sitk.GetArrayFromImage(field)[2:6, 12:30, 10:24].reshape(-1, 3).mean(0)
    assert np.allclose(middle, (2 * SHIFT[0] - 80, -2 * SHIFT[1], 2 * SHIFT[2]), atol=1.2), middle

    transform = sitk.DisplacementFieldTransform(field)
    theirs, ours = (
        sitk.GetArrayFromImage(image) for image in (sitk.Resample(moving, fixed, transform, sitk.sitkLinear), moved)
    )
    inside = np.s_[2:-2, 4:-4, 4:-4]
    core = np.pad(np.ones([n - 2 for n in moving.GetSize()[::-1]], dtype=np.float32), 1)  # the rim is a matter of taste
    shown = sitk.GetImageFromArray(core)
    shown.CopyInformation(moving)
    sure = sitk.GetArrayFromImage(sitk.Resample(shown, fixed, transform, sitk.sitkLinear))[inside] > 0.999
    assert sure.mean() > 0.5
    assert np.abs(theirs - ours)[inside][sure].max() < 1e-3 * theirs.max()
    alike = np.corrcoef(sitk.GetArrayFromImage(fixed)[inside].ravel(), ours[inside].ravel())[0, 1]
    assert alike > 0.85

    regions = sitk.ReadImage(str(out / "regions_fixed.nii.gz"))
    assert regions.GetSize() == fixed.GetSize() and np.allclose(regions.GetOrigin(), fixed.GetOrigin(), atol=1e-4)
    assert sitk.ReadImage(str(out / "regions_moving.nii.gz")).GetSize() == moving.GetSize()
    assert 'type="range"' in (out / "report.html").read_text(encoding="utf-8")
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["settings"]["segmenter"]["slices"]["plane"] == "axial" and run["counts"]["encodes"] == 2 * (1 + 8)
    assert run["prealignment"]["by"] in ("centre", "features") and run["prealignment"]["scores"]["world"] == 0
