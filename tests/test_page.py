# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The page's pictures and desk, without a browser: what is drawn where, and which voxel was clicked."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from test_inferer import inferer
from test_interactive import FIXED, MOVING
from toy import DiscSegmenter

from scripts.errors import InputError
from scripts.page_canvas import NAMES, Canvas
from scripts.page_desk import Desk
from scripts.page_view import Mark, View
from scripts.prompts import Prompts
from scripts.registration import ImageInfo


def write_pair(folder: Path) -> dict[str, Any]:
    """A disc in two places."""
    for side, image in (("fixed", FIXED), ("moving", MOVING)):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(folder / f"{side}.png")
    return {side: folder / f"{side}.png" for side in ("fixed", "moving")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pair(tmp_path_factory.mktemp("pair"))


# ---- what is drawn, and what is clicked ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal"])
def test_a_pixel_leads_to_its_voxel_and_back(name: str) -> None:
    affine = torch.tensor([[0, 2.0, 0, 5], [-1.0, 0, 0, 3], [0, 0, 3.0, -7], [0, 0, 0, 1]], dtype=torch.float64)
    canvas = Canvas.of(ImageInfo("", "volume", ".nii.gz", affine, (1.0, 2.0, 3.0)), (60, 40, 12), (30.0, 20.0, 4.0))
    view = canvas.views[NAMES.index(name)]
    left, top = canvas.corners[NAMES.index(name)]
    for pixel in ((3.0, 5.0), (100.0, 50.0)):
        voxel = view.voxel(pixel)
        assert canvas.at((pixel[0] + left, pixel[1] + top)) == (view, voxel)
        assert canvas.pixel(voxel, name) == pytest.approx((pixel[0] + left, pixel[1] + top))
        assert view.pixel(voxel) == pytest.approx(pixel) and view.shown(voxel)
        voxel[view.plane.across] += 2
        assert not view.shown(voxel)
    assert view.size[0] / view.size[1] == pytest.approx(view.plane.sides[0] / view.plane.sides[1], rel=0.02)


def test_marks_lie_where_they_belong() -> None:
    """A region in a corner of a volume that is flipped on the page is outlined where its own voxels are shown."""
    info = ImageInfo("", "volume", ".nii.gz", torch.diag(torch.tensor([1.0, 1, 3, 1])).double(), (1.0, 1.0, 3.0))
    image = torch.zeros(1, 40, 30, 8)
    image[0, 5:12, 20:26, 3] = 1
    view, other = (View.all(info, (40, 30, 8), (20.0, 15.0, at))[0] for at in (3.0, 6.0))
    prompt = Prompts(torch.tensor([[[8.0, 22.0, 3.0]]]), torch.ones(1, 1, dtype=torch.long))
    plain = np.asarray(view.grey(image, (0.0, 1.0))).astype(int)
    drawn = np.asarray(view.draw(image, (0.0, 1.0), [Mark(0, True, prompt, image[0])])).astype(int)
    bright, changed = (np.argwhere(a).mean(0) for a in (plain.sum(-1) > 380, np.abs(plain - drawn).sum(-1) > 0))
    assert np.allclose(bright, changed, atol=6)
    assert np.array_equal(
        other.draw(image, (0.0, 1.0), [Mark(0, True, prompt, image[0])]), other.grey(image, (0.0, 1.0))
    )


def test_a_desk(files: dict[str, Any]) -> None:
    desk = Desk(files, inferer(), DiscSegmenter())
    view = desk.canvas("moving")
    assert "confidence" in desk.click("moving", list(view.pixel([30.0, 34.0])), box=False)
    assert "opposite corner" in desk.click("fixed", list(view.pixel([23.0, 17.0])), box=True)
    assert "confidence" in desk.click("fixed", list(view.pixel([49.0, 43.0])), box=True)
    assert desk.names == ["1", "2"] and desk.table().count("<tr>") == 3
    desk.remove(["1"])
    desk.click("moving", list(view.pixel([28.0, 33.0])), box=False)
    assert desk.names == ["2", "3"] and desk.blend(0.5) is None
    first = [Path(file) for file in desk.register()]
    names = {file.name for file in first}
    assert {"ddf.nii.gz", "moved.png", "regions_fixed.png", "prompts.json", "report.html"} <= names
    assert desk.blend(0.5) is not None
    second = [Path(file) for file in desk.register()]
    assert not first[0].parent.exists() and all(file.exists() for file in second)
    del desk
    gc.collect()
    assert not second[0].parent.exists()


def test_a_desk_for_volumes(tmp_path: Path) -> None:
    offset = np.indices((32, 32, 32)).astype(float)
    for side, centre in (("fixed", (18, 15, 16)), ("moving", (15, 17, 14))):
        distance = np.sqrt(((offset - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0))
        nib.save(nib.Nifti1Image((distance < 7).astype(np.float32), np.eye(4)), tmp_path / f"{side}.nii")
    desk = Desk({side: tmp_path / f"{side}.nii" for side in ("fixed", "moving")}, inferer(), DiscSegmenter(3, 32))
    assert desk.slices("fixed") == dict.fromkeys(NAMES, (16, 32)), "the middle"
    desk.go_to("moving", "axial", 14)
    canvas = desk.canvas("moving")
    assert "confidence" in desk.click("moving", list(canvas.pixel([15.0, 17.0, 14.0])), box=False)
    assert np.allclose(desk.at["fixed"], (18, 15, 16), atol=2), "the other image goes to the counterpart"
    assert np.allclose(desk.at["moving"], (15, 17, 14), atol=0.5), "and this one to the click"
    assert desk.picture("fixed").size == desk.canvas("fixed").size

    canvas = desk.canvas("moving")
    assert "inside one of the planes" in desk.click("moving", [-1.0, 5.0], box=False)
    for voxel in ((15.0, 10.0, 7.0), (15.0, 24.0, 21.0)):  # a box in the sagittal plane, as deep as it is wide
        told = desk.click("moving", list(canvas.pixel(voxel, "sagittal")), box=True)
    assert "confidence" in told
    box = desk.session.pairs().moving_prompts.coordinates[1]
    assert torch.allclose(box, torch.tensor([[8.0, 10.0, 7.0], [22.0, 24.0, 21.0]]), atol=1.0)


def test_wrong_files_are_told(files: dict[str, Any], tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 8)), np.eye(4)), tmp_path / "volume.nii.gz")
    (tmp_path / "not.png").write_text("no image", encoding="utf-8")
    wrong = (("moving", "", "none given"), ("moving", tmp_path / "volume.nii.gz", "both must be 2-D"))
    for side, path, message in (*wrong, ("fixed", tmp_path / "not.png", "cannot be read")):
        with pytest.raises(InputError, match=message):
            Desk({**files, side: path}, inferer(), DiscSegmenter())
