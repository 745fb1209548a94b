# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A DICOM series becomes a volume only if its slices are an even stack; all else is told before pixels are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from scripts.errors import InputError
from scripts.images import read_image

ROOT = "1.2.826.0.1.3680043.2.1125"
VOLUME = np.random.default_rng(0).integers(0, 1000, (9, 10, 4)).astype(np.int16)
X, Y = (1, 0, 0), (0, 1, 0)


def write_slice(
    path: Path,
    array: np.ndarray = VOLUME[..., 0],
    *,
    position: tuple[float, ...] = (4, 5, 6),
    axes: tuple[tuple[float, ...], ...] = (X, Y),
    spacing: tuple[float, float] = (2.0, 1.0),
    series: int = 1,
    description: str = "",
) -> Path:
    """One slice `[i, j]`, axes along `axes`, as a file of a series."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array[..., None].T))
    image.SetSpacing((*spacing, 1.0))
    tags = {
        "0008|0060": "MR",
        "0008|0018": f"{ROOT}.{series}.{crc32(path.name.encode())}",
        "0008|103e": description,
        "0020|000d": f"{ROOT}.9",
        "0020|000e": f"{ROOT}.{series}",
        "0020|0032": "\\".join(f"{value:g}" for value in position),
        "0020|0037": "\\".join(f"{value:.8g}" for axis in axes for value in axis),
    }
    image.SetOrigin(position)
    image.SetDirection(np.stack([*axes, np.cross(*axes)], axis=1).flatten().tolist())
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path


def write_stack(folder: Path, heights: tuple[float, ...] = (6, 9, 12, 15), **changed: dict[int, Any]) -> Path:
    """Slices at these heights; `spacing={2: (1, 1)}` changes one thing of slice 2. Names do not follow the order."""
    for k, height in enumerate(heights):
        options = {name: values[k] for name, values in changed.items() if k in values}
        write_slice(folder / f"{9 - k}.dcm", **{"array": VOLUME[..., k], "position": (4, 5, height), **options})
    return folder


def write_frames(path: Path, *, film: bool = False) -> Path:
    """A file of four frames, 3 mm apart; of a film, they follow each other in time."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(VOLUME.astype(np.uint16).T))
    image.SetSpacing((2, 1, 3))
    image.SetOrigin((4, 5, 6))
    sitk.WriteImage(image, str(path))
    if film:  # the frame increment pointer leads to the frame time
        data = path.read_bytes()
        at = data.index(bytes([0x28, 0, 9, 0])) + 8
        path.write_bytes(data[:at] + bytes([0x18, 0, 0x63, 0x10]) + data[at + 4 :])
    return path


def two_series(folder: Path) -> Path:
    write_stack(folder)
    write_slice(folder / "x.dcm", series=2, description="localizer")
    return folder


def two_files_of_frames(folder: Path) -> Path:
    write_frames(folder / "a.dcm")
    data = (folder / "a.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(data)
    return folder


def with_half_a_file(folder: Path) -> Path:
    path = write_stack(folder) / "8.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    return folder


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two series": (
        two_series,
        rf"holds 2 DICOM series: '.*' \(4 files, UID {ROOT}\.1\); 'localizer' \(1 files, UID {ROOT}\.2\); .*exactly",
    ),
    "missing slice": (
        lambda d: write_stack(d, (6, 9, 15, 18)),
        r"slices 8\.dcm and 7\.dcm, at 9 and 15 mm along the stack, are 6 mm apart and the others 3 mm \(is a slice",
    ),
    "missing slice of three": (
        lambda d: write_stack(d, (6, 12, 15)),
        r"9\.dcm and 8\.dcm, at 6 and 12 mm.*others 3 mm",
    ),
    "uneven": (lambda d: write_stack(d, (6, 9, 12.1, 15)), r"at 9 and 12\.1 mm.*3\.1 mm apart.*give an even stack"),
    "twice the same place": (lambda d: write_stack(d, (6, 9, 9, 12)), r"lie at the same place, 9 mm along .*echo"),
    "sizes": (
        lambda d: write_stack(d, array={2: VOLUME[:8, :, 2]}),
        r"differ in size, (9x10 and 8|8x10 and 9)x10; give",
    ),
    "orientations": (lambda d: write_stack(d, axes={2: (Y, (0, 0, 1))}), r"differ in orientation; give one stack"),
    "pixel sizes": (lambda d: write_stack(d, spacing={2: (2.0, 1.1)}), r"differ in pixel size; give one stack"),
    "beside the line": (
        lambda d: write_stack(d, position={1: (9, 5, 9)}),
        r"slice 8\.dcm lies 5\.00 mm beside the line",
    ),
    "no image": (lambda d: (d.mkdir(), (d / "a.txt").write_text("hello", encoding="utf-8"), d)[-1], "no DICOM images"),
    "films": (two_files_of_frames, r"hold several frames each; give one of these files"),
    "half a file": (with_half_a_file, r"8\.dcm in the folder is DICOM but cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_series_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message) as error:
        read_image(make(tmp_path / "series"), name="moving_image")
    assert str(error.value).startswith(f"moving_image: {tmp_path / 'series'}: ") and "\n" not in str(error.value)


def test_slices_lie_where_their_headers_say(tmp_path: Path) -> None:
    image, info = read_image(write_stack(tmp_path / "series", (6, 9, 12.01, 15)), name="fixed_image")
    assert torch.equal(image[0], torch.from_numpy(VOLUME).float())
    np.testing.assert_allclose(info.affine, [[-2, 0, 0, -4], [0, -1, 0, -5], [0, 0, 3, 6], [0, 0, 0, 1]])


def test_coronal_stack_along_minus_y(tmp_path: Path) -> None:
    axes = (X, (0, 0, 1))  # the normal leads along -y
    changed = {k: (4, 5 - 3 * k, 6) for k in range(4)}
    write_stack(tmp_path / "series", position=changed, axes=dict.fromkeys(range(4), axes))
    image, info = read_image(tmp_path / "series", name="fixed_image")
    assert torch.equal(image[0], torch.from_numpy(VOLUME).float())
    np.testing.assert_allclose(info.affine, [[-2, 0, 0, -4], [0, 0, 3, -5], [0, 1, 0, 6], [0, 0, 0, 1]])


def test_tilted_gantry_stays_tilted(tmp_path: Path) -> None:
    changed = {k: (4, 5 + k, 6 + 3 * k) for k in range(4)}
    _, info = read_image(write_stack(tmp_path / "series", position=changed), name="fixed_image")
    np.testing.assert_allclose(info.affine, [[-2, 0, 0, -4], [0, -1, -1, -5], [0, 0, 3, 6], [0, 0, 0, 1]], atol=1e-6)
    assert info.spacing == pytest.approx((2, 1, 10**0.5))


@pytest.mark.parametrize("name", ["frames.dcm", "IM0001"])
def test_frames_of_one_file_are_slices(name: str, tmp_path: Path) -> None:
    path = write_frames(tmp_path / "series" / "frames.dcm")
    path = path.rename(path.with_name(name))
    for given in (path, path.parent):
        image, info = read_image(given, name="fixed_image")
        assert torch.equal(image[0], torch.from_numpy(VOLUME).float())
        np.testing.assert_allclose(info.affine, [[-2, 0, 0, -4], [0, -1, 0, -5], [0, 0, 3, 6], [0, 0, 0, 1]])
        assert info.suffix == ".nii.gz"


def test_frames_of_a_film_are_chosen(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "film.dcm", film=True)
    with pytest.raises(InputError, match=r"fixed_image: .*holds 4 frames; choose one with --fixed_frame \(0 to 3\)"):
        read_image(path, name="fixed_image")
    image, info = read_image(path, name="fixed_image", frame=2)
    assert torch.equal(image[0], torch.from_numpy(VOLUME[..., 2]).float())
    assert info.spacing == (2, 1)
