# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Frames are chosen, sheared axes survive, headers that contradict themselves are told, and so is what cannot fit."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from scripts.errors import InputError
from scripts.image_files import write_image
from scripts.images import read_image, read_label
from scripts.memory import check_memory, memory_bytes, needed_bytes
from scripts.transforms import ReadPaird

RANDOM = np.random.default_rng(0)
SERIES = RANDOM.integers(0, 1000, (9, 10, 4, 6)).astype(np.int16)  # i, j, k, time
AFFINE = np.diag([1.0, 2, 3, 1])
AFFINE[:3, 3] = 5, -7, 11


def write_series(folder: Path, kind: str) -> Path:
    """Six frames in one file."""
    path = folder / f"series.{kind.split()[0]}"
    if kind == "nii.gz":
        nib.save(nib.Nifti1Image(SERIES, AFFINE), path)
    elif kind == "nii plane":
        nib.save(nib.Nifti1Image(SERIES[:, :, :1], AFFINE), path)
    elif kind == "tif":
        pages = [Image.fromarray(SERIES[:, :, 0, t].astype(np.uint16)) for t in range(6)]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:  # in NRRD, time is an axis of its own or, as Slicer writes it, a list at each voxel
        as_list = kind.endswith("list")
        values = np.moveaxis(SERIES, -1, 0).swapaxes(1, 3)  # t, k, j, i
        image = sitk.GetImageFromArray(np.moveaxis(values, 0, -1) if as_list else values, isVector=as_list)
        image.SetSpacing((1, 2, 3) if as_list else (1, 2, 3, 40))
        image.SetOrigin((-5, 7, 11) if as_list else (-5, 7, 11, 0))
        flip = np.diag([-1, -1] + [1] * (image.GetDimension() - 2))
        image.SetDirection(flip.flatten().tolist())
        sitk.WriteImage(image, str(path))
    return path


KINDS = ["nii.gz", "nii plane", "nrrd", "nrrd list", "mha", "tif"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_chosen(kind: str, tmp_path: Path) -> None:
    path = write_series(tmp_path, kind)
    with pytest.raises(InputError, match=r"holds 6 (frames|pages); choose one with --moving_frame \(0 to 5\)"):
        read_image(path, name="moving_image")
    image, info = read_image(path, name="moving_image", frame=4)
    plane = kind in ("nii plane", "tif")
    assert torch.equal(image[0], torch.from_numpy(SERIES[:, :, 0, 4] if plane else SERIES[..., 4]).float())
    keep = [0, 1, 3] if plane else [0, 1, 2, 3]
    np.testing.assert_allclose(info.affine, np.eye(3) if kind == "tif" else AFFINE[np.ix_(keep, keep)])


@pytest.mark.parametrize("frame", [6, -1, "x", 1.5, True])
def test_frames_that_are_not_there(frame: object, tmp_path: Path) -> None:
    path = write_series(tmp_path, "nii.gz")
    with pytest.raises(InputError, match=rf"moving_frame is {frame}, but the file holds 6 frames, 0 to 5; give one of"):
        read_image(path, name="moving_image", frame=frame)  # type: ignore[arg-type]


def test_frame_of_a_file_with_one(tmp_path: Path) -> None:
    Image.fromarray(SERIES[:, :, 0, 0].astype(np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", name="fixed_image", frame=0)[0].shape == (1, 9, 10)
    with pytest.raises(InputError, match="fixed_frame is 1, but the file holds one frame, 0; give"):
        read_image(tmp_path / "a.png", name="fixed_image", frame=1)


def test_label_maps_have_one_frame(tmp_path: Path) -> None:
    path = write_series(tmp_path, "nii.gz")
    with pytest.raises(InputError, match=r"moving_label: .*holds 6 frames; save the one that is meant"):
        read_label(path, name="moving_label", shape=SERIES.shape[:3])


def test_frames_of_a_request(tmp_path: Path) -> None:
    path = str(write_series(tmp_path, "nii.gz"))
    item = {"image": path, "moving": path, "fixed_frame": 1, "moving_frame": "3"}
    request = ReadPaird()(item)["image"].meta["request"]
    assert torch.equal(request.fixed[0], torch.from_numpy(SERIES[..., 1]).float())
    assert torch.equal(request.moving[0], torch.from_numpy(SERIES[..., 3]).float())


def test_vectors_are_no_image(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(SERIES[:, :, :, None, :2], AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match="has 2 values per voxel; give a grey or a colour image"):
        read_image(tmp_path / "a.nii", name="fixed_image")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_sheared_axes_survive(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    nib.save(nib.Nifti1Image(SERIES[..., 0], sheared), tmp_path / "a.nii")
    image, info = read_image(tmp_path / "a.nii", name="fixed_image")
    assert caplog.text.count("a.nii: its axes are not at right angles") == 1
    write_image(image, info, tmp_path / f"b{suffix}")
    again, info = read_image(tmp_path / f"b{suffix}", name="fixed_image")
    assert torch.equal(again, image)
    np.testing.assert_allclose(info.affine, sheared, atol=1e-6)


def test_slice_along_another_axis_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(SERIES[:, :1, :, 0], AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match="is a single slice that is not axial; save it as a picture"):
        read_image(tmp_path / "a.nii", name="fixed_image")


def contradictory(path: Path, code: int = 0) -> Path:
    """As the files of ACDC: voxels of 1 mm by the sform and of other sizes by pixdim."""
    image = nib.Nifti1Image(SERIES[..., 0], np.diag([-1.0, -1, 1, 1]))
    image.header.set_qform(None, code=code)
    image.header["pixdim"][1:4] = (1.37, 1.37, 10)
    nib.save(nib.Nifti1Image(SERIES[..., 0], None, image.header), path)
    return path


def test_contradictory_header_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = contradictory(tmp_path / "a.nii")
    for _ in range(3):
        assert read_image(path, name="fixed_image")[1].spacing == (1, 1, 1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "voxels of 1 x 1 x 1 mm by its affine (sform), which is used" in record.message
    assert "1.37 x 1.37 x 10 mm by its pixdim" in record.message and "\n" not in record.message


def test_memory_estimate() -> None:
    assert needed_bytes((1, 100, 100, 10), (1, 50, 50, 20)) == 160 * (100_000 + 50_000) + 30 * 2 * 2**20
    assert needed_bytes((3, 10, 10), copies=4) == 4 * 4 * 300
    assert memory_bytes() > 2**28
    check_memory((1, 512, 512, 300), limit=20e9)
    with pytest.raises(
        InputError, match=r"of 512x512x300 and 512x512x30 voxels about 13\.5 GB .*are 4\.0; crop or resample"
    ):
        check_memory((1, 512, 512, 300), (1, 512, 512, 30), limit=4 * 2**30)


def test_pairs_beyond_memory_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(SERIES[..., 0], AFFINE), tmp_path / "a.nii")
    item = dict.fromkeys(("image", "moving"), str(tmp_path / "a.nii"))
    with pytest.raises(
        InputError, match=r"^fixed_image and moving_image: to register .*9x10x4 and 9x10x4 voxels about"
    ):
        ReadPaird(memory=1e6)(item)
    assert ReadPaird(memory=1e8)(item)["image"].shape == (1, 9, 10, 4)


@pytest.mark.parametrize("suffix", [".nii", ".mhd"])
def test_a_header_of_a_giant_is_refused_before_its_values_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".nii":
        header = nib.Nifti1Header()
        header.set_data_shape((30000, 30000, 30000))
        path.write_bytes(header.binaryblock + bytes(4))
    else:
        lines = ("NDims = 3", "DimSize = 30000 30000 30000", "ElementType = MET_UCHAR", "ElementDataFile = a.raw")
        path.write_text("\n".join(("ObjectType = Image", *lines)) + "\n", encoding="ascii")
    with pytest.raises(InputError, match=r"of 30000x30000x30000 voxels about .* GB of memory are needed"):
        read_image(path, name="fixed_image")


@pytest.mark.parametrize("ending", [".png", ".nii", ".nrrd", ".mha"])
def test_what_is_too_large_is_told_before_it_is_read(ending: str, tmp_path: Path) -> None:
    """The files end behind their headers: whoever reads values finds none."""
    whole, path = tmp_path / f"whole{ending}", tmp_path / f"image{ending}"
    if ending == ".png":
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(whole)
    else:
        image = sitk.GetImageFromArray(np.zeros((4, 16, 24), np.int16))
        sitk.WriteImage(image, str(whole), useCompression=False)
    content = whole.read_bytes()
    path.write_bytes(content[: 41 if ending == ".png" else len(content) - 4 * 16 * 24 * 2])
    with pytest.raises(InputError, match=r"moving_image: .*has \d+ x .* voxels, and 1000 are allowed here"):
        read_image(path, name="moving_image", most=1000)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(path, name="moving_image", most=10_000)
