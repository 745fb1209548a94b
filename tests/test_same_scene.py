# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Edges find one scene again, however far it has moved and whatever its contrast; two scenes are not taken for one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy import ndimage
from skimage import data
from torch import Tensor
from toy import DiscSegmenter

from scripts.geometry import identity_points, resize_by_area, sample, transform_points
from scripts.global_search import GlobalSearch, search_starts
from scripts.grid import Grid
from scripts.objectives import Objective
from scripts.same_scene import SameScene
from scripts.scene import Scene, View
from scripts.schedule import Fit, Level
from scripts.structure import device_view, oriented_gradients, shown

SIZE = 160


def retina() -> Tensor:
    """`[1, 240, 240]` of a real retinal photograph, in [0, 1], whose middle shows vessels to every side."""
    grey = torch.from_numpy(data.retina()[..., 1].astype("float32"))[None, 230:1190, 230:1190] / 255
    return resize_by_area(grey, (240, 240))


def similarity(degrees: float, scale: float, shift: tuple[float, float]) -> Tensor:
    """Matrix from fixed to moving voxels that turns and scales about the centre, then shifts."""
    angle, middle = math.radians(degrees), torch.tensor([(SIZE - 1) / 2] * 2)
    matrix = torch.eye(3)
    matrix[:2, :2] = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle + torch.tensor(shift)
    return matrix


def pair(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Fixed and moving view `[1, SIZE, SIZE]` of one retina; the moving one has its contrast inverted."""
    whole, corner = retina(), 40.0
    points = identity_points((SIZE, SIZE))
    moving = sample(whole, points + corner, padding="border")
    fixed = sample(whole, transform_points(truth, points) + corner, padding="border")
    return fixed, 1 - moving**0.7


def error(found: Tensor, truth: Tensor) -> float:
    """Mean distance at the corners of the middle, moving voxels."""
    corners = torch.tensor([[40.0, 40.0, 120.0, 120.0], [40.0, 120.0, 40.0, 120.0]])
    return (transform_points(found, corners) - transform_points(truth, corners)).norm(dim=0).mean().item()


def test_structure_does_not_know_contrast() -> None:
    image = retina()
    first, second = oriented_gradients(image), oriented_gradients(1 - 0.3 * image)
    assert first.shape == (8, 240, 240) and first.amin() >= 0
    assert torch.allclose(first, second, atol=2e-3)
    # One step of eight is 22.5 degrees: a quarter turn moves every direction by four.
    turned = oriented_gradients(image.rot90(1, (1, 2)))
    assert torch.allclose(turned.roll(4, 0), first.rot90(1, (1, 2)), atol=2e-3)


def test_a_frame_turns_the_directions() -> None:
    image = retina()
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert torch.allclose(oriented_gradients(image, frame=quarter), oriented_gradients(image).roll(4, 0), atol=2e-3)


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [(0.0, 1.0, (0.0, 0.0)), (0.0, 1.0, (-50.0, 20.0)), (17.0, 1.0, (20.0, 15.0)), (-8.0, 1.15, (5.0, -25.0))],
)
def test_the_search_finds_large_motion(degrees: float, scale: float, shift: tuple[float, float]) -> None:
    truth = similarity(degrees, scale, shift)
    fixed, moving = pair(truth)
    grid = Grid((SIZE, SIZE), (1.0, 1.0))
    best = search_starts(fixed, moving, grid, torch.eye(3), GlobalSearch())[0]
    assert error(best.matrix, truth) < 6.0  # half a step is 2.5 degrees and 5 % of scale, each 2.5 px at the corners


def scene_of(fixed: Tensor, moving: Tensor) -> Scene:
    embeddings = DiscSegmenter().encode([255 * fixed, 255 * moving])
    return Scene(View.plain(255 * fixed, embeddings[0]), View.plain(255 * moving, embeddings[1]))


def hypothesis() -> SameScene:
    terms = [{"term": "structure"}]
    return SameScene(
        search=GlobalSearch(),
        align=Objective(terms),
        align_fit=Fit(kind="affine", levels=[Level(128, 0, 30), Level(160, 0, 20)]),
        objective=Objective([*terms, {"term": "lncc"}]),
        fit=Fit(smoothness=6.0, step=0.005, levels=[Level(160, 8, 20)]),
        fine_objective=Objective([{"term": "lncc"}]),
        fine_fit=Fit(smoothness=0.3, step=0.005, both_ways=0, levels=[Level(160, 16, 30)]),
    )


def never() -> Tensor:
    """The free map of a case that is not doubtful."""
    raise AssertionError("asked for")


def test_one_scene_is_aligned_to_a_fraction_of_a_voxel_and_believed() -> None:
    truth = similarity(6.0, 1.05, (-38.0, 22.0))
    fixed, moving = pair(truth)
    scene, grid, same = scene_of(fixed, moving), Grid((SIZE, SIZE), (1.0, 1.0)), hypothesis()
    edges, evidence = same.propose(scene, grid, torch.eye(3), never)
    assert edges is not None
    ddf, inverse = edges
    points = torch.tensor([[60.0, 80.0, 110.0], [50.0, 90.0, 70.0]])
    carried = points + sample(ddf, points)
    assert (carried + sample(inverse, carried) - points).norm(dim=0).max() < 0.05
    assert (carried - transform_points(truth, points)).norm(dim=0).max() < 0.5
    assert evidence["agreement"] > 0.5 and evidence["sharpness"] > 0.3
    assert evidence["motion"] == pytest.approx(math.hypot(38, 22) / SIZE, rel=0.15)
    assert same.agreement(scene, grid, truth) > 0.5 > 0.2 > same.agreement(scene, grid, torch.eye(3))


def test_another_scene_is_left_to_the_features() -> None:
    """A smooth blob's edges agree about as well beside each other as in place."""
    grid, same = Grid((SIZE, SIZE), (1.0, 1.0)), hypothesis()
    blob = torch.exp(-((identity_points((SIZE, SIZE)) - 80) / 40).square().sum(0))[None]
    other = torch.exp(-((identity_points((SIZE, SIZE)) - 95) / 45).square().sum(0))[None]
    edges, evidence = same.propose(scene_of(blob, other), grid, torch.eye(3), never)
    assert edges is None and evidence["sharpness"] < 0.25


def test_a_scene_that_hardly_moved_is_believed_unless_a_free_map_explains_far_more() -> None:
    grid, same = Grid((SIZE, SIZE), (1.0, 1.0)), hypothesis()
    fixed, moving = pair(torch.eye(3))
    edges, evidence = same.propose(scene_of(fixed, moving), grid, torch.eye(3), lambda: torch.ones(2, SIZE, SIZE))
    assert evidence["motion"] < 0.005 and evidence["remainder"] > 0.9 and edges is not None
    assert edges[0].abs().mean() < 0.3
    # What has bent more than the stiff map can follow.
    points = identity_points((SIZE, SIZE))
    bend = 3 * torch.stack([(points[1] * 6.28 / 53).sin(), (points[0] * 6.28 / 47).cos()])
    bent = sample(moving, points + bend, padding="border")
    bold = replace(same, sharpness=0.05)
    edges, evidence = bold.propose(scene_of(bent, moving), grid, torch.eye(3), lambda: bend)
    assert evidence["motion"] < 0.02 and evidence["remainder"] < 0.5 and edges is None


def test_where_sensors_see_alike_intensities_bend_the_map_further() -> None:
    grid, same, points = Grid((SIZE, SIZE), (1.0, 1.0)), hypothesis(), identity_points((SIZE, SIZE))
    fixed, moving = pair(similarity(0.0, 1.0, (12.0, 0.0)))
    bend = 1.2 * torch.stack([(points[1] * 6.28 / 53).sin(), (points[0] * 6.28 / 47).cos()])
    bent = sample(fixed, points + bend, padding="border")
    truth, middle = bend + torch.tensor([12.0, 0.0]).reshape(2, 1, 1), (slice(None), slice(30, -30), slice(30, -30))
    errors = {}
    for alike in (0.5, 1.1):  # 1.1: never
        edges, evidence = replace(same, alike=alike).propose(scene_of(bent, moving), grid, torch.eye(3), never)
        assert edges is not None and evidence["alike"] > 0.5
        errors[alike] = (edges[0] - truth)[middle].norm(dim=0).mean().item()
        back = edges[0] + sample(edges[1], points + edges[0], padding="border")
        assert back[middle].norm(dim=0).max() < 0.1
    assert errors[0.5] < 0.6 * errors[1.1] and errors[0.5] < 0.5


def test_a_surround_that_stands_still_is_not_looked_at() -> None:
    fan = identity_points((SIZE, SIZE))
    fan = (fan[1] - SIZE / 2).abs() < 0.4 * fan[0]
    fixed, moving = (image + 0.1 for image in pair(similarity(0.0, 1.0, (12.0, 0.0))))
    masks = device_view(fixed * fan, moving * fan)
    assert masks is not None
    rim = fan & ~torch.from_numpy(ndimage.binary_erosion(fan.numpy(), iterations=2, border_value=1))
    assert not any((mask & (rim | ~fan)).any() for mask in masks)  # the edge itself is left out too
    assert masks[0].sum() > 0.8 * fan.sum()
    # Content that is dark at one end hides the device's edge there.
    dark = identity_points((SIZE, SIZE))[0] > 125
    assert device_view(fixed * fan, moving * (fan & ~dark)) is not None
    # An outline that moves is the subject's own.
    assert device_view(fixed * fan, moving * fan.roll(12, 0)) is None
    assert shown(fixed).all()


def test_a_round_surround_is_not_looked_at_wherever_it_is() -> None:
    """Another camera, or a picture that was cut: fields of two sizes in two places of pictures of two sizes."""
    fixed, moving = (image + 0.1 for image in pair(similarity(0.0, 1.0, (12.0, 0.0))))
    from_middle = identity_points((SIZE, SIZE)) - SIZE / 2
    field, other = from_middle.norm(dim=0) < 70, (from_middle - 20).norm(dim=0) < 55
    masks = device_view(fixed * field, (moving * other)[:, 10:])
    assert masks is not None
    assert not (masks[0] & ~field).any() and not (masks[1] & ~other[10:]).any()
    assert masks[1].sum() > 0.7 * other.sum()
    masks = device_view(fixed * field, moving)  # one that fills its picture
    assert masks is not None and not (masks[0] & ~field).any() and masks[1].all()
    assert device_view(fixed, moving) is None
    for outline in (
        (from_middle / torch.tensor([1.0, 1.1]).reshape(2, 1, 1)).norm(dim=0) < 55,  # an oval
        from_middle[0] > 0.1 * from_middle[1],  # straight
        from_middle[0] > 0.002 * from_middle[1].square(),  # gently bent
    ):
        assert device_view(fixed * outline, moving * outline.roll(12, 0)) is None
