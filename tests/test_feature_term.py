# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What the features of an empty background count: they tell places of the frame, not what is seen."""

from __future__ import annotations

import pytest
import torch
from test_correspondence import texture
from torch import Tensor

from scripts.correspondence import fit_transformation
from scripts.errors import InputError
from scripts.feature_term import FeatureTerm
from scripts.geometry import identity_points
from scripts.grid import Grid
from scripts.objectives import Objective
from scripts.places import Places
from scripts.scene import Scene, View
from scripts.schedule import Fit, Level
from scripts.segmenters.embedding import Embedding

SHAPE, SHIFT = (64, 64), (7, -5)
FRAME = torch.cat([texture(SHAPE, 8, seed) for seed in range(6)]) - 0.5  # a background's, the same in any picture
THING = torch.cat([texture(SHAPE, 8, seed) for seed in range(6, 12)]) - 0.5


def view(shift: tuple[int, int]) -> View:
    """A thing of 24 x 24 pixels before nothing, and features that stay where they are where nothing is seen."""
    image = torch.zeros(1, *SHAPE)
    image[:, 20:44, 20:44] = 1.0
    image, thing = (torch.roll(maps, shift, (1, 2)) for maps in (image, THING))
    eye = torch.eye(3)
    return View(image, Embedding((torch.where(image > 0, thing, FRAME),), SHAPE, eye, SHAPE, SHAPE, eye), image[:0])


def error(background: float | list[float]) -> float:
    """Of a fitted affine, mean over the thing, pixels."""
    scene = Scene(view((0, 0)), view(SHIFT))
    objective = Objective([{"term": "features", "background": background}])
    fit = Fit(kind="affine", both_ways=0, levels=[Level(64, 0, 60)])
    found: Tensor = fit_transformation(scene, Grid(SHAPE, (1.0, 1.0)), torch.eye(3), objective, fit)(
        Grid(SHAPE, (1.0, 1.0))
    )
    away = found[:, 20:44, 20:44] - torch.tensor(SHIFT)[:, None, None]
    return away.norm(dim=0).mean().item()


def test_a_background_holds_back_what_moves_before_it() -> None:
    assert error(1.0) > 5
    assert error(0.1) < 1.5
    assert error(0.0) < 0.5
    assert error([0.1, 1.0]) == error(0.1)  # pictures, volumes


def test_without_any_content_all_places_count_alike() -> None:
    nothing = View(torch.zeros(1, *SHAPE), view((0, 0)).embedding, torch.zeros(0, *SHAPE))
    points = identity_points(SHAPE)
    moved = Places(points + 3.0)
    losses = [FeatureTerm(background=share).prepare(Scene(nothing, nothing), points)(moved) for share in (0.1, 1.0)]
    torch.testing.assert_close(*losses)


def test_a_background_counts_from_0_on() -> None:
    with pytest.raises(InputError, match="features: background is -1"):
        FeatureTerm(background=-1)
