# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Images that lie turned or far from each other are brought together; those that do not stay where they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.correspondence import fit_transformation
from scripts.errors import InputError
from scripts.geometry import identity_points, sample, transform_points
from scripts.grid import Grid
from scripts.objectives import Objective
from scripts.prior_starts import PriorStarts
from scripts.scene import Scene, View
from scripts.schedule import Fit, Level
from scripts.transformations import Affine, Transformation
from tests.toy import DiscSegmenter, disc

SHAPE = (96, 80)
GRID = Grid(SHAPE, (1.0, 1.0))
CENTRES = torch.tensor([[30.0, 52.0, 60.0], [34.0, 28.0, 50.0]])  # [D, N], of discs of different tones
OBJECTIVE = Objective([{"term": "features", "weight": 1.0}])
NOWHERE = {"angle": 0.0, "scale": 1.0, "shift": 0.0}
FIT = Fit(kind="svf", smoothness=0.025, levels=[Level(32, 0, 30), Level(64, 4, 20)])


def similarity(degrees: float, scale: float, shift: tuple[float, float]) -> Tensor:
    """From fixed to moving voxels: turned and scaled about the centre, then shifted."""
    angle, middle = math.radians(degrees), torch.tensor([(n - 1) / 2 for n in SHAPE])
    matrix = torch.eye(3)
    matrix[:2, :2] = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle + torch.tensor(shift)
    return matrix


def scene_of(truth: Tensor) -> Scene:
    """Fixed discs, and the same where `truth` leads them."""
    fixed = torch.zeros(SHAPE)
    for centre, tone, radius in zip(CENTRES.T.tolist(), (0.4, 0.7, 1.0), (12.0, 9.0, 6.0), strict=True):
        fixed = torch.maximum(fixed, tone * disc(SHAPE, tuple(centre), radius))
    moving = sample(fixed[None], transform_points(torch.linalg.inv(truth), identity_points(SHAPE)))
    views = [View.plain(image, e) for image, e in zip((fixed[None], moving), encode(fixed[None], moving), strict=True)]
    return Scene(*views)


def encode(*images: Tensor) -> list:
    return DiscSegmenter(size=96).encode(list(images))


def error(moved: Tensor, truth: Tensor) -> float:
    return (moved - transform_points(truth, CENTRES)).norm(dim=0).mean().item()


@pytest.mark.parametrize(
    ("turn", "scale", "shift"), [(30.0, 1.0, (0.0, 0.0)), (-20.0, 0.8, (6.0, -8.0)), (0.0, 1.0, (-18.0, 14.0))]
)
def test_a_start_is_the_similarity_that_fits(turn: float, scale: float, shift: tuple[float, float]) -> None:
    truth = similarity(turn, scale, shift)
    scene = scene_of(truth)
    start = PriorStarts().starts(scene, GRID, torch.eye(3))[0]
    assert error(CENTRES + sample(start(GRID), CENTRES), truth) < 4  # a cell has two voxels
    prior, found = PriorStarts().fit(scene, GRID, torch.eye(3), OBJECTIVE, FIT)
    assert error(CENTRES + sample(prior(GRID), CENTRES), truth) < 2
    assert found != NOWHERE


def test_without_it_the_prior_goes_astray() -> None:
    truth = similarity(0.0, 1.0, (-18.0, 14.0))
    prior = fit_transformation(scene_of(truth), GRID, torch.eye(3), OBJECTIVE, FIT)
    assert error(CENTRES + sample(prior(GRID), CENTRES), truth) > 8


def test_what_lies_right_stays() -> None:
    prior, found = PriorStarts().fit(scene_of(torch.eye(3)), GRID, torch.eye(3), OBJECTIVE, FIT)
    assert found == NOWHERE
    assert error(CENTRES + sample(prior(GRID), CENTRES), torch.eye(3)) < 0.5


SOLID, BALLS = (40, 36, 32), torch.tensor([[12.0, 27.0, 20.0], [17.0, 13.0, 27.0], [9.0, 22.0, 17.0]])
POSE = PriorStarts(levels=1, pose=Fit(kind="rigid", step=0.06, both_ways=0, levels=[Level(24, 0, 60)]))


def volumes_turned(degrees: float, axis: int, shift: float) -> tuple[Scene, Tensor]:
    """Balls of different tones, turned about an axis and shifted along it; and the truth, from fixed to moving
    voxels.
    """
    angle, middle = math.radians(degrees), torch.tensor([(n - 1) / 2 for n in SOLID])
    truth, (a, b) = torch.eye(4), (other for other in range(3) if other != axis)
    truth[a, a] = truth[b, b] = math.cos(angle)
    truth[a, b], truth[b, a] = -math.sin(angle), math.sin(angle)
    truth[:3, 3] = middle - truth[:3, :3] @ middle
    truth[axis, 3] += shift
    balls = [disc(SOLID, tuple(c), r) for c, r in zip(BALLS.T.tolist(), (7.0, 6.0, 5.0), strict=True)]
    fixed = torch.stack([tone * ball for tone, ball in zip((0.4, 0.7, 1.0), balls, strict=True)]).amax(0)[None]
    moving = sample(fixed, transform_points(torch.linalg.inv(truth), identity_points(SOLID)))
    encoded = DiscSegmenter(dims=3, size=40).encode([fixed, moving])
    return Scene(*[View.plain(*both) for both in zip((fixed, moving), encoded, strict=True)]), truth


@pytest.mark.parametrize(
    ("degrees", "axis", "shift"),
    [(35.0, 2, 0.0), (-35.0, 2, 4.0), (40.0, 1, 0.0), (-40.0, 0, -4.0), (0.0, 2, 0.0)],
)
def test_a_turned_volume_is_turned_back_as_a_whole(degrees: float, axis: int, shift: float) -> None:
    """The prior's affine alone takes small steps and stops on the way."""
    scene, truth = volumes_turned(degrees, axis, shift)
    grid, there = Grid(SOLID, (1.0, 1.0, 1.0)), transform_points(truth, BALLS)
    fit = Fit(kind="svf", smoothness=0.025, step=0.02, levels=[Level(32, 0, 30)])

    def error(prior: Transformation) -> float:
        return (BALLS + sample(prior(grid), BALLS) - there).norm(dim=0).mean().item()

    alone = fit_transformation(scene, grid, torch.eye(4), OBJECTIVE, fit)
    prior, found = POSE.fit(scene, grid, torch.eye(4), OBJECTIVE, fit)
    assert error(prior) < 1.5
    if degrees:
        assert error(alone) > 3
        assert abs(found["angle"] - abs(degrees)) < 15
    else:
        assert found == NOWHERE


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": -1}, "keep is -1"),
        ({"levels": 0}, "levels is 0"),
        ({"size": 2}, "size is 2"),
        ({"size": [48, 2]}, r"size is \[48, 2\]"),
        ({"angles": 20}, "angles are 20"),
        ({"turns": ["a"]}, "turns are"),
        ({"scales": [0.8, 0]}, "scales are"),
        ({"scales": ["a"]}, "scales are"),
        ({"angles": []}, "angles are"),
        ({"levels": [2, 0]}, r"levels is \[2, 0\]"),
        ({"pose": Fit(kind="affine", levels=[Level(24, 0, 60)])}, "pose is a fit of kind 'affine'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"prior_starts: {says}"):
        PriorStarts(**wrong)


def test_it_searches_about_where_the_images_were_placed() -> None:
    """The moving image's grid is another one, which `to_moving` knows."""
    truth = similarity(10.0, 1.0, (-16.0, 14.0))
    placed = torch.tensor([[1.0, 0.0, -16.0], [0.0, 1.0, 14.0], [0.0, 0.0, 1.0]])
    prior, found = PriorStarts().fit(scene_of(truth), GRID, placed, OBJECTIVE, FIT)
    assert error(transform_points(placed, CENTRES + sample(prior(GRID), CENTRES)), truth) < 2
    assert found["shift"] < 0.1


def test_a_small_image_is_found_in_the_far_corner_of_a_large_one() -> None:
    grid, large = Grid((56, 48), (1.0, 1.0)), torch.zeros(256, 256)
    for i, j, radius, tone in ((215.0, 220.0, 12.0, 1.0), (242.0, 235.0, 8.0, 0.5)):
        large = torch.maximum(large, tone * disc((256, 256), (i, j), radius))
    images = [large[None, 200:256, 208:256].clone(), large[None]]
    views = [View.plain(i, e) for i, e in zip(images, DiscSegmenter(size=256).encode(images), strict=True)]
    value, shift = PriorStarts()._shifts(Scene(*views), grid, torch.eye(3), Affine(2).requires_grad_(False))[0]
    assert value > 0.5
    found = shift * grid.voxels_per_unit(shift.device).flatten()
    assert (found - torch.tensor([200.0, 208.0])).norm() < 8  # a cell has five voxels
