# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Every format is read to the same convention, and every wrong input is told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from scripts.errors import InputError
from scripts.image_files import output_suffix, write_image
from scripts.images import read_image, read_label

RANDOM = np.random.default_rng(0)
# Rotated in plane, anisotropic, shifted; RAS.
AFFINE = np.array([[0.8, -1.2, 0, 5], [0.6, 1.6, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1.0]])
VOLUME = RANDOM.integers(0, 1000, (9, 10, 4)).astype(np.int16)
PICTURE = RANDOM.integers(0, 256, (9, 12), dtype=np.uint8)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def save_picture(path: Path, array: np.ndarray = PICTURE, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def truncate(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def without_third_row(path: Path) -> Path:
    """Zero the header's srow_z, which no library would write."""
    data = path.read_bytes()
    return save_bytes(path, data[:312] + bytes(16) + data[328:])


def save_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def save_dicom(folder: Path, array: np.ndarray) -> Path:
    """A series with slices 3 mm apart and in-plane spacing (2, 1); `array` is [i, j, k]."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(array.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[..., k : k + 1].T))
        image.SetSpacing((2.0, 1.0, 3.0))
        image.SetOrigin((4.0, 5.0, 6.0 + 3 * k))
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{k + 1}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0032": f"4\\5\\{6 + 3 * k}",
            "0020|0013": str(k),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)
    return folder


def with_value(value: float) -> np.ndarray:
    array = VOLUME.astype(np.float32)
    array[2, 3, 1] = value
    return array


TALL = np.arange(20, dtype=np.uint8)[:, None].repeat(3, axis=1)
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "a.png", "no such file"),
    "ending": (lambda d: save_bytes(d / "a.txt", b"hello"), "not a supported image; give one of .png"),
    "text": (lambda d: save_bytes(d / "a.png", b"hello"), "cannot be read"),
    "no bytes": (lambda d: save_bytes(d / "a.nii.gz", b""), "cannot be read"),
    "truncated png": (lambda d: truncate(save_picture(d / "a.png")), "cannot be read"),
    "truncated jpeg": (
        lambda d: truncate(save_picture(d / "a.jpg", PICTURE.repeat(9, 1).repeat(9, 0))),
        "cannot be read",
    ),
    "truncated nii.gz": (lambda d: truncate(save_nifti(d / "a.nii.gz", VOLUME)), "cannot be read"),
    "truncated nii": (lambda d: truncate(save_nifti(d / "a.nii", VOLUME)), "cannot be read"),
    "small picture": (lambda d: save_picture(d / "a.png", TALL), r"too small or empty, shape \(20, 3\)"),
    "small volume": (lambda d: save_nifti(d / "a.nii", VOLUME[:4]), r"at least \(8, 8, 2\)"),
    "empty volume": (lambda d: save_nifti(d / "a.nii", VOLUME[:0]), "too small or empty"),
    "series": (
        lambda d: save_nifti(d / "a.nii", np.stack([VOLUME] * 2, -1)),
        r"holds 2 frames; choose one with --fixed_frame \(0 to 1\)",
    ),
    "constant": (lambda d: save_picture(d / "a.png", np.full((9, 9), 7, np.uint8)), "constant, every value is 7"),
    "nan": (lambda d: save_nifti(d / "a.nii", with_value(np.nan)), "1 NaN or infinite"),
    "infinite": (lambda d: save_nifti(d / "a.nii", with_value(np.inf)), "1 NaN or infinite"),
    "singular": (lambda d: save_nifti(d / "a.nii", VOLUME, AFFINE[:, [0, 0, 2, 3]]), "affine is singular"),
    "bad affine": (lambda d: save_nifti(d / "a.nii", VOLUME, AFFINE * [1, 1, 1, np.nan]), "affine is not finite"),
    "spacing": (lambda d: without_third_row(save_nifti(d / "a.nii", VOLUME)), "is not positive"),
    "sagittal slice": (lambda d: save_nifti(d / "a.nii", VOLUME[..., :1], AFFINE[[2, 0, 1, 3]]), "not axial"),
    "pages": (
        lambda d: save_picture(d / "a.tif", save_all=True, append_images=[Image.fromarray(PICTURE)]),
        r"holds 2 pages; choose one with --fixed_frame \(0 to 1\)",
    ),
    "folder": (lambda d: d, "holds no DICOM images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_image(path, name="fixed_image")
    assert str(error.value).startswith(f"fixed_image: {path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", ".mhd"])
def test_volume_and_its_affine_survive_a_round_trip(suffix: str, tmp_path: Path) -> None:
    image, info = read_image(save_nifti(tmp_path / "a.nii.gz", VOLUME), name="fixed_image")
    write_image(image, info, tmp_path / f"b{suffix}") if suffix.startswith(".nii") else sitk.WriteImage(
        sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / f"b{suffix}")
    )
    again, info = read_image(tmp_path / f"b{suffix}", name="fixed_image")
    write_image(again, info, tmp_path / f"c{info.suffix}")
    again, written = read_image(tmp_path / f"c{info.suffix}", name="fixed_image")
    assert torch.equal(again[0], torch.from_numpy(VOLUME).float())
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
    assert torch.equal(written.affine, info.affine)
    assert written.spacing == pytest.approx((1, 2, 3), abs=1e-5)
    assert written.kind == "volume"


def test_dicom_series(tmp_path: Path) -> None:
    image, info = read_image(save_dicom(tmp_path / "series", VOLUME), name="fixed_image")
    assert torch.equal(image[0], torch.from_numpy(VOLUME).float())
    np.testing.assert_allclose(info.affine, [[-2, 0, 0, -4], [0, -1, 0, -5], [0, 0, 3, 6], [0, 0, 0, 1]])
    assert info.suffix == ".nii.gz"


@pytest.mark.parametrize("array", [VOLUME[..., 0], VOLUME[..., :1]], ids=["2 axes", "1 slice"])
def test_plane_in_nifti(array: np.ndarray, tmp_path: Path) -> None:
    image, info = read_image(save_nifti(tmp_path / "a.nii", array), name="fixed_image")
    assert image.shape == (1, 9, 10)
    np.testing.assert_allclose(info.affine, AFFINE[[0, 1, 3]][:, [0, 1, 3]], atol=1e-6)
    assert info.spacing == pytest.approx((1, 2))
    write_image(image, info, tmp_path / "b.nii")
    assert torch.equal(read_image(tmp_path / "b.nii", name="fixed_image")[1].affine, info.affine)


def test_header_without_a_place_is_read_as_itk_reads_it(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, tmp_path / "a.nii")
    _, info = read_image(tmp_path / "a.nii", name="fixed_image")
    itk = sitk.ReadImage(str(tmp_path / "a.nii"))
    assert (itk.GetOrigin(), itk.GetSpacing(), itk.GetDirection()[::4]) == ((0, 0, 0), (1, 2, 3), (1, 1, 1))
    assert torch.equal(info.affine, torch.diag(torch.tensor([-1.0, -2, 3, 1]).double()))


def test_colour_volume_round_trip(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 8, 9, 3)).float()
    _, info = read_image(save_nifti(tmp_path / "a.nii", VOLUME), name="fixed_image")
    for suffix in (".nii.gz", ".mha"):
        write_image(image, info, tmp_path / f"b{suffix}")
        assert torch.equal(read_image(tmp_path / f"b{suffix}", name="fixed_image")[0], image)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_picture_rows_come_first(suffix: str, tmp_path: Path) -> None:
    image, info = read_image(save_picture(tmp_path / f"a{suffix}"), name="fixed_image")
    assert torch.equal(image[0], torch.from_numpy(PICTURE).float())
    assert (info.kind, info.suffix, info.spacing) == ("picture", suffix, (1, 1))
    assert torch.equal(info.affine, torch.eye(3, dtype=torch.float64))


def test_picture_modes(tmp_path: Path) -> None:
    deep = PICTURE.astype(np.uint16) * 200
    assert read_image(save_picture(tmp_path / "deep.png", deep), name="x")[0].max() == deep.max()
    colour = RANDOM.integers(0, 256, (9, 12, 4), dtype=np.uint8)
    image, _ = read_image(save_picture(tmp_path / "alpha.png", colour), name="x")
    assert torch.equal(image, torch.from_numpy(colour[..., :3]).movedim(-1, 0).float())
    palette = Image.fromarray(PICTURE % 4).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", name="x")[0].shape == (3, 9, 12)
    assert torch.equal(
        read_label(tmp_path / "palette.png", name="x", shape=(9, 12)), torch.from_numpy(PICTURE % 4).long()
    )
    Image.fromarray(PICTURE > 100).save(tmp_path / "bits.png")
    assert set(read_image(tmp_path / "bits.png", name="x")[0].unique().tolist()) == {0, 255}
    assert torch.equal(
        read_label(tmp_path / "bits.png", name="x", shape=(9, 12)), torch.from_numpy(PICTURE > 100).long()
    )


def test_labels(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", VOLUME)
    assert torch.equal(read_label(path, name="fixed_label", shape=VOLUME.shape), torch.from_numpy(VOLUME).long())
    with pytest.raises(InputError, match=r"fixed_label: .*shape \(9, 10, 4\); its image has \(9, 10, 5\)"):
        read_label(path, name="fixed_label", shape=(9, 10, 5))
    with pytest.raises(InputError, match="no integers"):
        read_label(save_nifti(tmp_path / "b.nii", VOLUME + 0.5), name="fixed_label", shape=VOLUME.shape)
    with pytest.raises(InputError, match="in colour"):
        read_label(save_picture(tmp_path / "c.png", np.zeros((9, 9, 3), np.uint8)), name="fixed_label", shape=(9, 9))


@pytest.mark.parametrize(
    ("suffix", "scale", "expected"),
    [(".png", 1, ".png"), (".jpg", 1, ".jpg"), (".jpg", 100, ".png"), (".bmp", 1 / 255, ".tif"), (".tiff", 1, ".tiff")],
)
def test_written_pictures_keep_the_depth_of_their_source(
    suffix: str, scale: float, expected: str, tmp_path: Path
) -> None:
    _, info = read_image(save_picture(tmp_path / f"a{suffix}"), name="fixed_image")
    source = torch.from_numpy(PICTURE)[None].float() * scale
    ending = output_suffix(info, labels=False, source=source)
    assert ending == expected
    write_image(source, info, tmp_path / f"b{ending}", source=source)
    again, _ = read_image(tmp_path / f"b{ending}", name="x")
    assert (again - source).abs().max() <= (100 if ending == ".jpg" else 1e-6)


def test_label_maps_are_never_jpeg(tmp_path: Path) -> None:
    _, info = read_image(save_picture(tmp_path / "a.jpg"), name="fixed_image")
    labels = torch.from_numpy(PICTURE).long() * 3
    assert output_suffix(info, labels=True) == ".png"
    write_image(labels, info, tmp_path / "b.png")
    assert torch.equal(read_label(tmp_path / "b.png", name="x", shape=labels.shape), labels)
