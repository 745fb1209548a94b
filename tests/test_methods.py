# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Third-party methods: their maps mean to us what they mean to the tools, whatever the grid and the header."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from scripts.errors import InputError
from scripts.geometry import identity_points, sample, transform_points
from scripts.methods.ants import Ants
from scripts.methods.demons import Demons
from scripts.methods.elastix import Elastix
from scripts.methods.greedy import Greedy
from scripts.methods.itk_space import (
    grey,
    itk_image,
    itk_pair,
    missing_package,
    points_from_displacement,
    warped_on_fixed,
    workroom,
)
from scripts.methods.niftyreg import NiftyReg
from scripts.methods.protocol import Mapped, RegistrationMethod
from scripts.methods.sift import SiftAffine
from scripts.readers import lps_flip
from scripts.registration import ImageInfo
from scripts.request import PairRequest

METHODS: dict[str, Any] = {
    "ants_affine": Ants("Affine"),
    "ants_syn_mi": Ants(),
    "ants_syn_cc": Ants(syn_metric="CC", reg_iterations=(20, 5)),
    "niftyreg_aladin": NiftyReg("aladin"),
    "niftyreg_f3d": NiftyReg(f3d_iterations=30),
    "elastix_affine": Elastix(("affine",), resolutions=2, iterations=64),
    "elastix_bspline": Elastix(resolutions=2, iterations=32),
    "greedy_affine": Greedy(deformable=False),
    "greedy_ncc": Greedy(),
    # On so small images the usual coarsest level leaves fewer samples than its histogram has bins.
    "demons": Demons(bins=16, sampling=1.0, shrink=(2, 1), smoothing=(1.0, 0.0), iterations=20),
    "sift": SiftAffine(),
}


def texture(points: Tensor) -> Tensor:
    """Blobs of several sizes `[*T]`, 0 to about 200, at physical places `[D, *T]` (mm); fades towards the rim."""
    generator = torch.Generator().manual_seed(3)
    centres = (torch.rand(60, len(points), generator=generator) - 0.5) * 56
    heights, widths = 40 + 80 * torch.rand(60, generator=generator), 2.5 + 4 * torch.rand(60, generator=generator)
    total = torch.zeros(points.shape[1:])
    for centre, height, width in zip(centres, heights, widths, strict=True):
        distance = (points - centre.reshape(-1, *[1] * (points.ndim - 1))).norm(dim=0)
        total += height * torch.exp(-0.5 * (distance / width) ** 2)
    return total


def grid(shape: tuple[int, ...], spacing: tuple[float, ...], degrees: float) -> ImageInfo:
    """A volume around world 0 whose axes are permuted, one flipped, and turned."""
    turn = np.deg2rad(degrees)
    c, s = np.cos(turn), np.sin(turn)
    axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [1.0, -2.0, 0.5]
    return ImageInfo("", "volume", ".nii.gz", torch.from_numpy(affine), spacing)


def pair_2d() -> PairRequest:
    """Pictures of other sizes; the moving one shows the fixed one moved down by 4, to the left by 3, and turned."""
    shapes, turn = ((60, 76), (70, 64)), np.deg2rad(6)
    motion = torch.tensor([[np.cos(turn), -np.sin(turn), 4.0], [np.sin(turn), np.cos(turn), -3.0], [0, 0, 1]])
    images = []
    for shape, matrix in zip(shapes, (torch.eye(3), torch.linalg.inv(motion.double()).float()), strict=True):
        places = identity_points(shape) - torch.tensor([30.0, 36.0]).reshape(2, 1, 1)
        images.append(texture(transform_points(matrix, places))[None])
    info = ImageInfo("", "picture", ".png", torch.eye(3, dtype=torch.float64), (1.0, 1.0))
    return PairRequest(*images, info, info)


def pair_3d() -> PairRequest:
    """Volumes with anisotropic voxels of other sizes and directions; the moving one is shifted by (4, -3, 2) mm RAS."""
    infos = grid((40, 34, 18), (1.6, 1.8, 3.2), 10.0), grid((36, 42, 20), (1.7, 1.5, 3.0), -5.0)
    images = []
    for info, shape, shift in zip(infos, ((40, 34, 18), (36, 42, 20)), ((0, 0, 0), (4.0, -3.0, 2.0)), strict=True):
        world = transform_points(info.affine.float(), identity_points(shape))
        images.append(texture(world - torch.tensor(shift).reshape(3, 1, 1, 1))[None])
    return PairRequest(images[0], images[1], infos[0], infos[1])


def truth(request: PairRequest) -> Tensor:
    """Where each fixed voxel really lies in the moving image."""
    if request.fixed.ndim == 3:
        turn, middle = np.deg2rad(6), torch.tensor([30.0, 36.0]).reshape(2, 1, 1)
        rotation = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).float()
        places = torch.tensordot(rotation, identity_points(request.fixed.shape[1:]) - middle, dims=1)
        return places + torch.tensor([4.0, -3.0]).reshape(2, 1, 1) + middle
    world = transform_points(request.fixed_info.affine, identity_points(request.fixed.shape[1:]).double())
    world += torch.tensor([4.0, -3.0, 2.0]).reshape(3, 1, 1, 1)
    return transform_points(torch.linalg.inv(request.moving_info.affine), world).float()


def disagreement(request: PairRequest, points: Tensor, warped: Tensor) -> float:
    """Mean difference between our warp and the tool's, away from the moving image's rim, as a share of its range."""
    image = grey(request.moving)[None]
    size = torch.tensor(image.shape[1:]).reshape(-1, *[1] * (image.ndim - 1))
    inside = ((points > 0.5) & (points < size - 1.5)).all(0)
    assert inside.float().mean() > 0.3
    return float((sample(image, points)[0] - warped)[inside].abs().mean() / (image.max() - image.min()))


def error(request: PairRequest, points: Tensor) -> float:
    """Mean distance from the truth where the image shows something, mm."""
    distance = (points - truth(request)) * torch.tensor(request.moving_info.spacing).reshape(
        -1, *[1] * (points.ndim - 1)
    )
    image = grey(request.fixed)
    return float(distance.norm(dim=0)[image > 0.2 * image.max()].mean())


def registered(name: str, request: PairRequest) -> Mapped:
    if reason := METHODS[name].missing():
        pytest.skip(reason)
    return METHODS[name](request)


# ITK takes half a minute to load what elastix needs.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("elastix") else n for n in METHODS]
)
@pytest.mark.parametrize("pair", [pair_2d, pair_3d])
def test_points_are_the_tools_own_map(
    name: str, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "sift" and pair is pair_3d:
        pytest.skip("2-D only")
    request = pair()
    mapped = registered(name, request)
    assert mapped.points.shape == (request.fixed.ndim - 1, *request.fixed.shape[1:])
    assert mapped.points.dtype == torch.float32 and mapped.warped is not None
    assert mapped.warped.shape == request.fixed.shape[1:]
    assert disagreement(request, mapped.points, mapped.warped) < 0.005
    # The same check refuses a map that is turned around or has its axes in another order.
    start = request.to_moving("world")
    before = transform_points(start, identity_points(request.fixed.shape[1:]))
    for wrong in (2 * before - mapped.points, before + (mapped.points - before).roll(1, 0)):
        assert disagreement(request, wrong, mapped.warped) > 0.02
    assert error(request, mapped.points) < 0.4 * error(request, before)
    assert not list(tmp_path.iterdir())  # nothing is left in the working directory
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pair", [pair_2d, pair_3d])
def test_itk_and_we_mean_the_same_place(pair: Any) -> None:
    """SimpleITK resamples by headers alone to what our sampling at its displacement (zero) gives."""
    request = pair()
    fixed, moving = itk_pair(request)
    theirs = warped_on_fixed(sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.Transform())), request)
    points = points_from_displacement(np.zeros((*fixed.GetSize()[::-1], fixed.GetDimension())), request)
    expected = transform_points(request.to_moving("world"), identity_points(request.fixed.shape[1:]))
    assert torch.allclose(points, expected, atol=1e-4)
    assert disagreement(request, points, theirs) < 1e-5


def test_displacements_are_lps() -> None:
    """One mm along ITK's first axis is one mm to the left: -x in RAS."""
    request = pair_3d()
    size = request.fixed.shape[1:]
    field = np.zeros((*size[::-1], 3))
    field[..., 0] = 1.0
    moved = points_from_displacement(field, request) - points_from_displacement(0 * field, request)
    world = torch.tensordot(request.moving_info.affine[:3, :3].float(), moved, dims=1)
    assert torch.allclose(world, torch.tensor([-1.0, 0.0, 0.0]).reshape(3, 1, 1, 1).expand_as(world), atol=1e-4)


def test_grey_is_the_mean_of_the_channels_and_pictures_start_with_columns() -> None:
    picture = torch.arange(3 * 8 * 9.0).reshape(3, 8, 9)
    info = ImageInfo("", "picture", ".png", torch.eye(3, dtype=torch.float64), (1.0, 1.0))
    image = itk_image(picture, info)
    assert image.GetSize() == (9, 8)
    assert image.GetPixel(5, 2) == float(picture[:, 2, 5].mean())


def test_sheared_header_is_refused() -> None:
    affine = torch.from_numpy(lps_flip(3))
    affine[0, 1] = 0.3
    info = ImageInfo("a.nii", "volume", ".nii", affine, (1.0, 1.04, 1.0))
    with pytest.raises(InputError, match=r"a\.nii: its axes are sheared"):
        itk_image(torch.rand(1, 8, 8, 4), info)


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_json_and_tell_methods_apart(name: str) -> None:
    method: RegistrationMethod = METHODS[name]
    known = json.dumps(method.settings())
    assert all(json.dumps(other.settings()) != known for key, other in METHODS.items() if key != name)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert missing_package("thing", "thing==1.2", "no_such_module_here") == (
        "thing is not installed: pip install thing==1.2"
    )
    assert missing_package("torch", "torch==1", "torch") is None
    assert "has no reg_aladin" in str(NiftyReg(folder=str(tmp_path)).missing())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Ants(initial="centre"),
        lambda: NiftyReg("both"),
        lambda: Elastix(initial="mass"),
        lambda: Greedy(initial="mass"),
        lambda: Greedy(metric="NONSENSE"),
        lambda: Greedy(affine=False, deformable=False),
        lambda: Greedy(affine=False),
    ],
)
def test_unknown_words_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        wrong()


def test_sift_refuses_volumes_and_says_when_it_cannot_fit() -> None:
    with pytest.raises(InputError, match="volumes"):
        SiftAffine()(pair_3d())
    if reason := SiftAffine().missing():
        pytest.skip(reason)
    request = pair_2d()
    flat = torch.zeros_like(request.fixed)
    flat[..., :5] = 1  # an edge without corners
    with pytest.raises(RuntimeError, match="too few matches"):
        SiftAffine()(replace(request, fixed=flat))


def test_greedy_registers_thin_volumes() -> None:
    """Six slices: a second level would leave three, on which greedy throws."""
    request = pair_3d()
    thin = replace(request, fixed=request.fixed[..., 6:12], moving=request.moving[..., 7:13])
    if reason := METHODS["greedy_ncc"].missing():
        pytest.skip(reason)
    assert torch.isfinite(METHODS["greedy_ncc"](thin).points).all()


@pytest.mark.parametrize(
    "name", ["ants_affine", "niftyreg_aladin", "greedy_affine", pytest.param("elastix_affine", marks=pytest.mark.slow)]
)
def test_failure_has_the_tools_last_words(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "ants_affine": replace(METHODS["ants_affine"], type_of_transform="Nonsense"),
        "niftyreg_aladin": replace(METHODS["niftyreg_aladin"], levels="nonsense"),
        "greedy_affine": replace(METHODS["greedy_affine"], radius=("nonsense",)),
        "elastix_affine": replace(METHODS["elastix_affine"], parameters={"Metric": ["Nonsense"]}),
    }[name]
    if reason := wrong.missing():
        pytest.skip(reason)
    with pytest.raises(RuntimeError, match=r"failed: .*\w") as raised:
        wrong(pair_2d())
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_workroom_hushes_and_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = RuntimeError if error is ValueError else error
    with pytest.raises(expected) as raised, workroom("tool") as folder:  # noqa: PT012
        (folder / "left.nii").write_text("x", encoding="utf-8")
        print("by Python")
        sys.stdout.flush()
        os.write(1, b"last word of C\n")
        raise error("wrong")
    if error is ValueError:
        assert str(raised.value) == "tool failed: wrong; last word of C"
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
