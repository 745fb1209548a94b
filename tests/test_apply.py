# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a field on disk carries over: known shifts, there and back, and the same as SimpleITK with the same file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from test_fields import rotated, waves
from torch import Tensor

from scripts.apply import apply
from scripts.carry import PairMap
from scripts.errors import InputError
from scripts.fields import between, read_field, write_field
from scripts.geometry import identity_points, transform_points, warp
from scripts.image_files import write_image
from scripts.images import read_image, read_labels
from scripts.registration import ImageInfo

ROOT = Path(__file__).resolve().parents[1]
PICTURE = np.random.default_rng(0).integers(50, 256, (30, 40), dtype=np.uint8)
FIXED, MOVING = (20, 24, 12), (26, 22, 16)


def volume_info(angle: float, spacing: tuple[float, ...], origin: tuple[float, ...]) -> ImageInfo:
    return ImageInfo("", "volume", ".nii.gz", rotated(angle, spacing, origin), spacing)


FIXED_INFO = volume_info(0.3, (1.5, 1.0, 2.5), (10.0, -20.0, 30.0))
MOVING_INFO = volume_info(0.25, (1.2, 1.3, 2.0), (9.0, -21.0, 29.0))


def smooth(shape: tuple[int, ...]) -> Tensor:
    """An image `[1, *shape]` without sharp detail."""
    points = identity_points(shape)
    return 100 + 40 * sum(torch.sin(points[d] / (3.0 + d)) for d in range(len(shape)))[None]


def blocks(shape: tuple[int, ...]) -> Tensor:
    """A label map of cubes with large and sparse ids."""
    points = identity_points(shape).long() // 5
    return 1000 * points[0] + 70000 * points[1] + points[2]


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A pair of oblique, anisotropic volumes, their label maps and the field of a known map."""
    write_image(smooth(FIXED), FIXED_INFO, tmp_path / "fixed.nii.gz")
    write_image(smooth(MOVING), MOVING_INFO, tmp_path / "moving.nii.gz")
    write_image(blocks(MOVING), MOVING_INFO, tmp_path / "labels.nii.gz")
    write_field(tmp_path / "ddf.nii.gz", waves(FIXED, 0.8), between(FIXED_INFO, MOVING_INFO), FIXED_INFO, MOVING_INFO)
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A pair of pictures of one size; the field takes row i + 2 and column j - 3."""
    for name, array in {"fixed": PICTURE, "moving": PICTURE[::-1].copy(), "labels": PICTURE // 20}.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    info = read_image(tmp_path / "fixed.png", name="x")[1]
    ddf = torch.tensor([2.0, -3.0])[:, None, None].expand(2, *PICTURE.shape)
    write_field(tmp_path / "ddf.nii.gz", ddf, torch.eye(3), info, info)
    return tmp_path


def run(folder: Path, output: str, **options: Any) -> Path:
    """Files are named by their name in the folder."""
    files = ("fixed_image", "moving_image", "image", "label", "points")
    options = {k: str(folder / v) if k in files else v for k, v in options.items()}
    apply(str(folder / options.pop("field", "ddf.nii.gz")), str(folder / output), **options)
    return folder / output


def csv(path: Path, header: str, points: Any) -> str:
    np.savetxt(path, points, delimiter=",", header=header, comments="", fmt="%.5f")
    return path.name


# ---- fields from disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 40.0], ids=["headers", "far from the headers"])
def test_a_volume_field_is_read_back(shift: float, tmp_path: Path) -> None:
    relation = between(FIXED_INFO, MOVING_INFO)
    to_moving = relation.clone()
    to_moving[:3, 3] += shift
    ddf = waves(FIXED, 1.0)
    write_field(tmp_path / "ddf.nii.gz", ddf, to_moving, FIXED_INFO, MOVING_INFO)
    again, info = read_field(tmp_path / "ddf.nii.gz")
    np.testing.assert_allclose(info.affine, FIXED_INFO.affine, atol=1e-5)
    grid = identity_points(FIXED)
    expected = transform_points(to_moving, grid + ddf)
    found = transform_points(between(info, MOVING_INFO), grid + again)
    assert (found - expected).abs().max() < 1e-3
    if not shift:
        assert (again - ddf).abs().max() < 1e-3
        assert torch.allclose(warp(smooth(MOVING), again, relation), warp(smooth(MOVING), ddf, relation), atol=0.1)


def test_a_field_of_pictures_knows_that_it_is_one(tmp_path: Path) -> None:
    picture = ImageInfo("", "picture", ".png", torch.eye(3).double(), (1, 1))
    plane = ImageInfo("", "volume", ".nii.gz", torch.diag(torch.tensor([-1.0, -1, 1])).double(), (1, 1))
    ddf = waves((20, 30), 1.0)
    for info in (picture, plane):
        write_field(tmp_path / "ddf.nii.gz", ddf, torch.eye(3), info, info)
        again, read = read_field(tmp_path / "ddf.nii.gz")
        assert read.kind == info.kind and torch.equal(read.affine, info.affine)
        assert torch.allclose(again, ddf, atol=1e-5)


def test_a_field_that_simpleitk_wrote(volumes: Path) -> None:
    field = sitk.ReadImage(str(volumes / "ddf.nii.gz"), sitk.sitkVectorFloat64)
    sitk.WriteImage(field, str(volumes / "again.nii.gz"))
    ours, theirs = read_field(volumes / "ddf.nii.gz"), read_field(volumes / "again.nii.gz")
    assert torch.allclose(ours[0], theirs[0], atol=1e-3) and torch.allclose(ours[1].affine, theirs[1].affine, atol=1e-4)


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_points_there_and_back(angle: float) -> None:
    """Also where the field is a large rigid motion that leaves the fixed grid by the headers."""
    c, s = np.cos(angle), np.sin(angle)
    motion = torch.tensor([[c, -s, 60.0], [s, c, -90.0], [0, 0, 1]]).float()
    grid = identity_points((50, 60))
    ddf = transform_points(motion, grid) - grid + waves((50, 60), 1.0)
    pair = PairMap(ddf, torch.eye(3).double())
    points = grid[:, 5:-5:7, 5:-5:7].flatten(1)
    assert (pair.to_fixed_points(pair.to_moving_points(points)) - points).abs().max() < 0.02


# ---- images and labels -----------------------------------------------------------------------------------------------


def test_forward_is_what_simpleitk_resamples(volumes: Path) -> None:
    for options in ({"image": "moving.nii.gz"}, {"label": "labels.nii.gz", "moving_image": "moving.nii.gz"}):
        (name, source), *_ = options.items()
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(run(volumes, f"{name}.nii.gz", **options))))
        field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(volumes / "ddf.nii.gz"), sitk.sitkVectorFloat64))
        moving, fixed = (sitk.ReadImage(str(volumes / f)) for f in (source, "fixed.nii.gz"))
        how = sitk.sitkNearestNeighbor if name == "label" else sitk.sitkLinear
        theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, field, how))
        there = PairMap(waves(FIXED, 0.8), between(FIXED_INFO, MOVING_INFO)).to_moving_points(identity_points(FIXED))
        sizes = torch.tensor(MOVING).reshape(3, 1, 1, 1)
        core = ((there > 0.01) & (there < sizes - 1.01)).all(0).numpy().T
        assert core.mean() > 0.4
        if name == "label":
            assert ours.dtype == np.int32 and (ours == theirs)[core].mean() > 0.999  # but on the borders of voxels
            assert set(np.unique(ours)) <= {0, *blocks(MOVING).unique().tolist()}
        else:
            assert np.abs(ours - theirs)[core].max() < 0.1


def test_there_and_back(volumes: Path) -> None:
    run(volumes, "moved.nii.gz", image="moving.nii.gz", moving_image="moving.nii.gz", fixed_image="fixed.nii.gz")
    back = run(volumes, "back.nii.gz", image="moved.nii.gz", moving_image="moving.nii.gz", direction="inverse")
    image, info = read_image(back, name="x")
    np.testing.assert_allclose(info.affine, MOVING_INFO.affine, atol=1e-5)
    pair = PairMap(waves(FIXED, 0.8), between(FIXED_INFO, MOVING_INFO))
    at = pair.to_fixed_points(identity_points(MOVING))
    core = ((at > 1) & (at < torch.tensor(FIXED).reshape(3, 1, 1, 1) - 2)).all(0) & (image[0] > 1)
    assert core.float().mean() > 0.1
    assert (image - smooth(MOVING))[0, core].abs().median() < 2  # twice interpolated; the range is 240


def test_a_volume_lies_where_its_header_says(volumes: Path) -> None:
    """The same content with every other voxel in the first axis is carried to the same places."""
    info = ImageInfo(
        "", "volume", ".nii.gz", MOVING_INFO.affine @ torch.diag(torch.tensor([2.0, 1, 1, 1])).double(), ()
    )
    write_image(smooth(MOVING)[:, ::2], ImageInfo("", "volume", "", info.affine, (1, 1, 1)), volumes / "half.nii.gz")
    images = [read_image(run(volumes, f"to_{n}", image=n), name="x")[0] for n in ("half.nii.gz", "moving.nii.gz")]
    core = (images[0] > 20) & (images[1] > 20)
    assert core.float().mean() > 0.3
    assert (images[0] - images[1])[core].abs().median() < 2


def test_pictures_by_a_known_shift(pictures: Path) -> None:
    with Image.open(run(pictures, "label.png", label="labels.png", moving_image="moving.png")) as file:
        label = np.asarray(file)
    assert np.array_equal(label[:-2, 3:], (PICTURE // 20)[2:, :-3]) and not label[:, :3].any()
    with Image.open(run(pictures, "image.png", image="moving.png")) as file:
        assert np.array_equal(np.asarray(file)[:-2, 3:], PICTURE[::-1][2:, :-3])
    options = {"label": "labels.png", "moving_image": "moving.png", "direction": "inverse"}
    back = read_labels(run(pictures, "back.png", **options), name="x")[0].numpy()
    assert np.array_equal(back[2:, :-3], (PICTURE // 20)[:-2, 3:])


# ---- points ----------------------------------------------------------------------------------------------------------


def test_points_by_a_known_shift(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {"points": csv(pictures / "p.csv", "i,j", [[10, 20], [29, 20], [4, 1]]), "moving_image": "moving.png"}
    there = run(pictures, "there.csv", **given)
    assert there.read_text(encoding="utf-8").split() == [
        "i,j",
        *["12.0000,17.0000", "31.0000,17.0000", "6.0000,-2.0000"],
    ]
    assert "2 of 3 points lie outside the moving image: rows 2, 3" in caplog.text
    back = run(pictures, "back.csv", points="there.csv", moving_image="moving.png", direction="inverse")
    assert np.allclose(np.loadtxt(back, delimiter=",", skiprows=1), [[10, 20], [29, 20], [4, 1]], atol=0.01)


def test_points_in_voxels_and_in_the_world_agree(volumes: Path) -> None:
    voxels = np.array([[10, 12, 6], [8, 8, 4], [12.5, 9.25, 7]])
    world = (np.c_[voxels, np.ones(3)] @ FIXED_INFO.affine.numpy().T)[:, :3]
    csv(volumes / "v.csv", "i,j,k", voxels)
    csv(volumes / "w.csv", "x,y,z", world)
    by_voxel = run(volumes, "v2.csv", points="v.csv", moving_image="moving.nii.gz")
    by_world = run(volumes, "w2.csv", points="w.csv", point_space="world")
    found, mm = (np.loadtxt(path, delimiter=",", skiprows=1) for path in (by_voxel, by_world))
    assert np.allclose(np.c_[found, np.ones(3)] @ MOVING_INFO.affine.numpy().T[:, :3], mm, atol=0.01)
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(volumes / "ddf.nii.gz"), sitk.sitkVectorFloat64))
    theirs = [np.multiply(field.TransformPoint((p * [-1, -1, 1]).tolist()), [-1, -1, 1]) for p in world]
    assert np.allclose(mm, theirs, atol=0.01)
    back = run(volumes, "w3.csv", points="w2.csv", point_space="world", direction="inverse")
    assert np.allclose(np.loadtxt(back, delimiter=",", skiprows=1), world, atol=0.01)


def test_where_the_field_folds_is_told(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = read_image(pictures / "fixed.png", name="x")[1]
    write_field(pictures / "folds.nii.gz", waves(PICTURE.shape, 9.0), torch.eye(3), info, info)
    run(pictures, "x.png", field="folds.nii.gz", image="fixed.png", moving_image="moving.png", direction="inverse")
    assert "the field folds and has no inverse at" in caplog.text


# ---- wrong input -----------------------------------------------------------------------------------------------------


def text(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return path.name


def far(folder: Path) -> str:
    info = read_image(folder / "fixed.png", name="x")[1]
    write_field(folder / "far.nii.gz", torch.full((2, *PICTURE.shape), 500.0), torch.eye(3), info, info)
    return "far.nii.gz"


def small(folder: Path) -> str:
    Image.fromarray(PICTURE[:20]).save(folder / "small.png")
    return "small.png"


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "nothing": (lambda _: {}, r"apply: nothing given; give one of --image, --label and --points"),
    "two": (lambda _: {"image": "moving.png", "label": "labels.png"}, r"apply: image and label given; give one of"),
    "direction": (lambda _: {"image": "moving.png", "direction": "back"}, r"direction: unknown 'back', expected 'forw"),
    "no field": (lambda _: {"image": "moving.png", "field": "no.nii.gz"}, r"field: .*no\.nii\.gz: cannot be read"),
    "no such field": (
        lambda d: {"image": "moving.png", "field": (nib.save(nib.Nifti1Image(PICTURE, None), d / "a.nii"), "a.nii")[1]},
        r"field: .*has shape \(30, 40\), which is no displacement field; give a NIfTI",
    ),
    "field of another pair": (
        lambda d: {"image": "moving.png", "field": far(d)},
        r"image: the field .* leads nowhere in",
    ),
    "another fixed image": (
        lambda d: {"image": "moving.png", "fixed_image": small(d)},
        r"fixed_image: .*of shape \(20, 40\), does not lie on the grid of the field",
    ),
    "label of another size": (
        lambda d: {"label": small(d), "moving_image": "moving.png"},
        r"label: .*has shape \(20, 40\); moving_image has \(30, 40\), and pictures must",
    ),
    "no grid": (
        lambda _: {"image": "fixed.png", "direction": "inverse"},
        r"moving_image: none given; .*for the grid of the result",
    ),
    "no integers": (
        lambda d: {"label": (nib.save(nib.Nifti1Image(PICTURE + 0.5, np.eye(4)), d / "a.nii"), "a.nii")[1]},
        r"label: .*no integers",
    ),
    "landmarks": (lambda d: {"points": text(d / "p.csv", "x,y\n1,2\n")}, r"points: .*expected CSV with header i,j"),
    "world of pictures": (
        lambda d: {"points": text(d / "p.csv", "x,y\n1,2\n"), "point_space": "world"},
        r"point_space: pictures have no world; give 'voxel'",
    ),
    "space": (lambda d: {"points": text(d / "p.csv", "i,j\n1,2\n"), "point_space": "mm"}, r"point_space: unknown 'mm'"),
    "ending": (
        lambda _: {"image": "moving.png", "output": "x.nii"},
        r"output_file: '\.nii' does not fit a picture; give",
    ),
    "labels in a JPEG": (
        lambda _: {"label": "labels.png", "output": "x.jpg"},
        r"'\.jpg' files cannot hold.*give \.png",
    ),
    "input as output": (lambda _: {"image": "moving.png", "output": "moving.png"}, r"output_file: .*one of the inputs"),
    "folder as output": (
        lambda _: {"image": "moving.png", "output": "."},
        r"output_file: .* is a folder; give the path",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_and_leaves_nothing(case: str, pictures: Path) -> None:
    make, message = WRONG[case]
    options = make(pictures)
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    with pytest.raises(InputError, match=message) as error:
        run(pictures, options.pop("output", "new/x.png"), **options)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


# ---- the command -----------------------------------------------------------------------------------------------------


def command(folder: Path, **options: str) -> subprocess.CompletedProcess[str]:
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    call = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ROOT / "configs" / "apply.yaml"), *words]
    return subprocess.run(
        call, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=False
    )


@pytest.mark.slow
def test_command(pictures: Path) -> None:
    options = {"field": "ddf.nii.gz", "moving_image": "moving.png", "output_file": "out/label.png"}
    done = command(pictures, label="labels.png", **options)
    assert done.returncode == 0, done.stderr
    label = read_labels(pictures / "out" / "label.png", name="x")[0].numpy()
    assert np.array_equal(label[:-2, 3:], (PICTURE // 20)[2:, :-3])
    assert [path.name for path in (pictures / "out").iterdir()] == ["label.png"]
    done = command(pictures, label="no.png", **options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("promptreg: label: no.png: no such file")
