# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The page of a registered pair: complete, self-contained, and written for every kind of image and outcome."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts.drawing import in_colour
from scripts.geometry import identity_points, jacobian_determinant, warp
from scripts.planes import planes_of
from scripts.prompts import Prompts
from scripts.registration import ImageInfo, RegionPairs, Registration
from scripts.report import write_report


def image_info(shape: tuple[int, ...], kind: str) -> ImageInfo:
    """Geometry of a toy image; volumes are anisotropic and stored in LPS order."""
    dims = len(shape)
    if kind == "picture":
        return ImageInfo("a/<toy>.png", kind, ".png", torch.eye(dims + 1, dtype=torch.float64), (1.0,) * dims)
    spacing = (0.8, 0.8, 3.0)[:dims]
    diagonal = [-spacing[0], -spacing[1], *spacing[2:], 1.0]
    return ImageInfo("", kind, ".nii.gz", torch.diag(torch.tensor(diagonal, dtype=torch.float64)), spacing)


def balls(shape: tuple[int, ...], centres: torch.Tensor) -> torch.Tensor:
    """Soft balls `[K, *shape]` about `[K, D]`."""
    distances = [(identity_points(shape) - c.reshape(-1, *[1] * len(shape))).norm(dim=0) for c in centres]
    return torch.stack([torch.sigmoid(4.0 - d) for d in distances]) if distances else torch.zeros(0, *shape)


def registration_of(
    shape: tuple[int, ...],
    *,
    channels: int = 1,
    kind: str = "picture",
    found: tuple[bool, ...] = (True, False, True),
    box: bool = False,
    fold: bool = False,
) -> Registration:
    """A registration of noise with planted regions; the moving image is larger than the fixed one."""
    generator = torch.Generator().manual_seed(0)
    moving_shape, dims, count = tuple(n + 4 for n in shape), len(shape), len(found)
    centres = torch.rand(count, dims, generator=generator) * torch.tensor(shape)
    coordinates = torch.stack([centres - 3, centres + 3] if box else [centres, centres + 2], dim=1)
    prompts = Prompts(coordinates, None if box else torch.tensor([[1, 0]]).repeat(count, 1))
    confidence = torch.tensor(found).float() * 0.8
    pairs = RegionPairs(
        prompts,
        prompts,
        balls(moving_shape, centres),
        balls(shape, centres),
        confidence,
        {"match": confidence},
        torch.tensor(found, dtype=torch.bool),
        tuple(f"region-{k}" for k in range(count)),
    )
    ddf = torch.sin(identity_points(shape) / 5) * (8.0 if fold else 1.0)
    return Registration(
        255 * torch.rand(channels, *shape, generator=generator),
        torch.rand(channels, *moving_shape, generator=generator),
        torch.rand(channels, *shape, generator=generator),
        image_info(shape, kind),
        image_info(moving_shape, kind),
        ddf,
        torch.zeros_like(ddf),
        torch.eye(dims + 1),
        pairs,
        12.0 if fold else 0.0,
        {"encode": 1.0, "fit": 2.5},
        {"encodes": 2},
        {"seed": 7},
    )


def picture_format(source: str) -> str:
    """Format of a picture inside the page; nothing else may be referred to."""
    kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", source).groups()
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
        picture.load()
        assert picture.format == kind.upper()
        return picture.format


CASES = {
    "picture": registration_of((40, 52)),
    "boxes": registration_of((40, 52), box=True),
    "colour": registration_of((40, 52), channels=3),
    "flat volume": registration_of((40, 52), kind="volume"),
    "volume": registration_of((24, 28, 8), kind="volume"),
    "volume, boxes": registration_of((24, 28, 8), kind="volume", box=True),
    "large": registration_of((40, 900)),
    "none found": registration_of((40, 52), found=(False, False)),
    "no prompts": registration_of((24, 28, 8), kind="volume", found=()),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_page_is_complete_and_self_contained(name: str, tmp_path: Path) -> None:
    registration = CASES[name]
    write_report(registration, tmp_path / "report.html", notes={"Remark": "a <b> & c"})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    volume, matched = registration.fixed.ndim == 4, bool(registration.pairs.found.any())
    slices = registration.fixed.shape[-1] if volume else 0
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 4 + slices + (volume and matched)
    assert [picture_format(source) for source in sources].count("JPEG") == slices
    assert page.count("<script>") == page.count("<script") == volume == page.count('type="range"')
    assert "url(" not in page and "@import" not in page
    assert "a &lt;b&gt; &amp; c" in page and "not a medical device" in page
    for identity in registration.pairs.ids:
        assert f"<b>{identity}</b>" in page
    found = int(registration.pairs.found.sum())
    assert page.count("<td>corresponding</td>") == found
    assert page.count("<td>no correspondence</td>") == len(registration.pairs) - found
    assert f"{found} of {len(registration.pairs)}" in page


def test_cautions_are_given_only_where_due(tmp_path: Path) -> None:
    def page_of(**options: object) -> str:
        write_report(registration_of((32, 32), **options), tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    assert "Caution" not in page_of(found=(True,) * 4)
    assert "No corresponding region" in page_of(found=(False,))
    assert "Only 1 of 4" in page_of(found=(True, False, False, False))
    assert "pass through itself" in page_of(found=(True,) * 4, fold=True)


def test_displacement_is_in_millimetres(tmp_path: Path) -> None:
    registration = registration_of((24, 28, 8), kind="volume")
    registration.ddf[:] = torch.tensor([0.0, 0.0, 2.0]).reshape(3, 1, 1, 1)  # 2 voxels of 3 mm
    write_report(registration, tmp_path / "report.html")
    assert "<b>6.0 mm</b><span>median displacement</span>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_planes_show_the_array_where_its_voxels_are() -> None:
    volume = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    info = image_info((2, 3, 4), "volume")
    axial, coronal, sagittal = planes_of(info, (2, 3, 4), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(torch.from_numpy(axial.take(volume)[0]), volume[0, :, :, 3].T)
    assert torch.equal(torch.from_numpy(coronal.take(volume)[0]), volume[0, :, 2, :].T)
    assert torch.equal(torch.from_numpy(sagittal.take(volume)[0]), volume[0, 1].T)
    assert axial.flipped == (False, False) and coronal.flipped == (True, False)  # LPS: only superior runs upwards
    (picture,) = planes_of(image_info((2, 3), "picture"), (2, 3), torch.zeros(2))
    assert torch.equal(torch.from_numpy(picture.take(volume[..., 0])[0]), volume[0, :, :, 0])


def test_plane_quantities_equal_those_of_the_whole_field() -> None:
    registration = registration_of((24, 28, 8), kind="volume")
    to_moving = torch.eye(4)
    to_moving[:3, 3] = torch.tensor([1.5, -2.0, 0.5])
    for through in ([0.0, 0.0, 0.0], [11.0, 13.0, 4.0], [23.0, 27.0, 7.0]):
        for plane in planes_of(registration.fixed_info, (24, 28, 8), torch.tensor(through)):
            determinant = plane.take_jacobian(registration.ddf)[0]
            assert torch.allclose(
                torch.from_numpy(determinant),
                torch.from_numpy(plane.take(jacobian_determinant(registration.ddf)[None])[0]),
                atol=1e-5,
            )
            still = warp(registration.moving, torch.zeros_like(registration.ddf), to_moving)
            shown = plane.take_unregistered(registration.moving, to_moving)
            assert torch.allclose(torch.from_numpy(shown), torch.from_numpy(plane.take(still)), atol=1e-5)


def test_in_colour_windows_grey_and_keeps_colour() -> None:
    grey = in_colour(torch.tensor([[[-1.0, 0.5, 9.0]]]).numpy(), (0.0, 1.0))
    assert grey.shape == (1, 3, 3) and grey[0, :, 0].tolist() == [0.0, 0.5, 1.0]
    assert in_colour(torch.tensor([1.0, 0.0, 0.5]).reshape(3, 1, 1).numpy(), (0.0, 1.0))[0, 0].tolist() == [
        1.0,
        0.0,
        0.5,
    ]


def test_few_counterparts_do_not_discredit_a_map_that_follows_edges(tmp_path: Path) -> None:
    few = registration_of((40, 52), found=(True, False, False))
    pages = {}
    for hypothesis in ("features", "one scene"):
        write_report(replace(few, hypothesis=hypothesis), tmp_path / "r.html")
        pages[hypothesis] = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert all("Only 1 of 3 prompts found a counterpart" in page for page in pages.values())
    assert "Away from the matched regions" in pages["features"]
    assert "Away from the matched regions" not in pages["one scene"] and "follows the edges" in pages["one scene"]
