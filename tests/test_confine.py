# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Names from clients stay inside the studies folder; clicks of MONAI Label's clients land where they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from scripts.confine import image_in
from scripts.errors import InputError
from scripts.transforms import LabelFiled, ReadPaird


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for path in (folder / "fixed.png", folder / "moving.png", folder / ".hidden.png", tmp_path / "secret.png"):
        Image.fromarray(generator.integers(0, 255, (40, 60), dtype=np.uint8)).save(path)
    for name in ("twice.png", "twice.tif"):
        Image.open(folder / "fixed.png").save(folder / name)
    (folder / "leak.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "alias.png").symlink_to(folder / "moving.png")
    return folder


def test_names_and_ids_lead_to_images(studies: Path) -> None:
    for name in ("moving", "moving.png"):
        assert image_in(studies, name, what="moving_image") == studies / "moving.png"
    assert image_in(studies, "alias", what="moving_image").name == "alias.png"


WRONG = [
    ("", "no name of an image"),
    (None, "no name of an image"),
    (7, "no name of an image"),
    (["moving"], "no name of an image"),
    ("../secret.png", "no name of an image"),
    ("..", "no name of an image"),
    ("../studies/moving.png", "no name of an image"),
    ("/etc/passwd", "no name of an image"),
    ("C:\\secret.png", "no name of an image"),
    ("sub/moving.png", "no name of an image"),
    ("moving.png\x00", "no name of an image"),
    ("moving\n", "no name of an image"),
    ("~", "no name of an image"),
    ("$HOME", "no name of an image"),
    (".hidden.png", "no name of an image"),
    ("a" * 300, "no name of an image"),
    ("secret", "no image named"),
    ("movin", "no image named"),
    ("twice", "several images named"),
    ("leak", "leads out of the studies"),
    ("leak.png", "leads out of the studies"),
    ("out", "leads out of the studies"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_nothing_else_can_be_named(studies: Path, name: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        image_in(studies, name, what="moving_image")
    assert str(studies.parent) not in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moving": "../secret.png"}, "moving_image: '../secret.png' is no name"),
        ({"moving": "leak.png"}, "leads out"),
        ({"prompts": "prompts.json"}, "prompts: a client cannot name files"),
        ({"moving_label": "moving.png"}, "moving_label: a client cannot name files"),
        ({"prompts": [{"id": "a", "mask": "moving.png"}]}, "prompts: a client cannot name masks"),
        ({"foreground": "here"}, "is no list of points"),
        ({"foreground": [3, 4]}, "is no list of points"),
        ({"foreground": [[3]]}, "wrong length"),
        ({"foreground": [["a", "b"]]}, "is no list of points"),
        ({"foreground": [[60, 10, 0]]}, "lies outside the moving image"),
        ({"background": [[6, 10, 0]]}, "all labels are 0"),
    ],
)
def test_requests_of_clients(studies: Path, options: dict[str, Any], message: str) -> None:
    request = {"image": str(studies / "fixed.png"), "image_path": str(studies / "fixed.png"), "moving": "moving"}
    with pytest.raises(InputError, match=message):
        ReadPaird()({**request, **options})


def test_a_click_of_a_client_on_a_picture_counts_columns_first(studies: Path) -> None:
    """Both plugins send rounded indices of the image as ITK counts them."""
    path = str(studies / "fixed.png")
    request = {"image": path, "image_path": path, "moving": "moving", "foreground": [[50, 7, 0]], "background": []}
    (prompt,) = ReadPaird()(request)["image"].meta["request"].prompts
    assert prompt.points.tolist() == [[7.0, 50.0]] and prompt.labels.tolist() == [1]


def test_regions_in_the_form_of_the_writer() -> None:
    plane, volume = torch.zeros(1, 4, 6), torch.zeros(1, 4, 6, 3)
    plane[0, 1, 5] = volume[0, 1, 5, 2] = 2
    flat = LabelFiled("pred")({"pred": MetaTensor(plane, meta={"registration": "kept"})})["pred"]
    assert flat.shape == (6, 4) and flat[5, 1] == 2 and flat.dtype == torch.uint8
    assert flat.meta["registration"] == "kept"
    assert torch.equal(LabelFiled("pred")({"pred": volume})["pred"], volume)
