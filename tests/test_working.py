# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Work on smaller grids gives what work on the images' own gives, in the images' own voxels."""

from __future__ import annotations

from dataclasses import replace

import torch
from test_inferer import click, inferer, info, scene
from toy import DiscSegmenter

from scripts.geometry import transform_points
from scripts.interactive import Session
from scripts.prior import Prior
from scripts.request import PairRequest
from scripts.working import WorkingPair

# A shifted disc; the moving image shows its own at another resolution.
FIXED, MOVING = scene((96, 80), (54.0, 37.0), 17.0), scene((128, 96), (62.0, 51.0), 22.0)
PAIR = PairRequest(FIXED, MOVING, info((1.0, 1.0)), info((0.75, 0.75)), click(62.0, 51.0))


def test_small_images_stay_as_they_are() -> None:
    working = WorkingPair.of(PAIR, 128 * 96)
    assert working.request.fixed is FIXED and working.request.moving is MOVING
    assert all(matrix.equal(torch.eye(3)) for matrix in working.ahead.values())


def test_places_stay_where_they_are_in_the_world() -> None:
    request = replace(PAIR, moving_label=(MOVING[0] > 0.5).long())
    working = WorkingPair.of(request, 2000)
    small = working.request
    assert small.fixed[0].numel() <= 2000 and small.moving[0].numel() <= 2000
    own, there = torch.tensor([[10.0], [70.0]]).double(), working.ahead["moving"].double()
    assert torch.allclose(
        transform_points(small.moving_info.affine, transform_points(there, own)),
        transform_points(request.moving_info.affine, own),
    )
    # Areas: the label covers the same part of the image, the mean of the grey values stays.
    assert small.moving_label.shape == small.moving.shape[1:]
    assert abs((small.moving_label > 0).float().mean() - (request.moving_label > 0).float().mean()) < 0.02
    assert torch.allclose(small.moving.mean(), MOVING.mean(), atol=1e-5)
    embedding = DiscSegmenter().encode([MOVING], [PAIR.moving_info.affine.float()])[0]
    on = working.embedding(embedding, "moving")
    assert torch.allclose(on.to_model @ working.ahead["moving"], embedding.to_model, atol=1e-6)
    assert on.inside((16, 16)).equal(embedding.inside((16, 16)))
    assert torch.allclose(torch.tensor(on.spacing), torch.tensor(small.moving_info.spacing))
    extents = torch.tensor(small.moving_info.spacing) * torch.tensor(small.moving.shape[1:])
    assert torch.allclose(extents, 0.75 * torch.tensor(MOVING.shape[1:]))


def test_slices_that_are_far_apart_are_kept() -> None:
    """The longest side is across the slices, which are coarse as they are: only within them it is averaged."""
    thick, flat = torch.zeros(1, 64, 60, 20), torch.zeros(1, 12, 12, 6)
    request = PairRequest(flat, thick, info((1.0, 1.0, 1.0)), info((0.3, 0.3, 8.0)))
    working = WorkingPair.of(request, 20_000)
    assert working.request.fixed is flat
    rows, columns, slices = working.request.moving.shape[1:]
    assert slices == 20 and 15_000 < rows * columns * slices <= 20_000 and abs(rows / columns - 64 / 60) < 0.05


def test_a_map_between_working_grids_leads_the_same_places_to_each_other() -> None:
    """In a volume whose working voxels are larger than its own by another factor along every axis."""
    fixed, moving = torch.zeros(1, 30, 24, 8), torch.zeros(1, 20, 36, 16)
    working = WorkingPair.of(PairRequest(fixed, moving, info((1.0, 1.5, 4.0)), info((2.0, 1.0, 1.0))), 1500)
    shape = working.request.fixed.shape[1:]
    assert len(set(working.ahead["fixed"].diagonal().tolist())) > 2
    turn = torch.eye(4)
    turn[:3] += 0.1 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([1.5, -0.5, 0.25])
    ddf = shift.reshape(3, 1, 1, 1).expand(3, *shape)
    own = working.map(Prior(ddf, -ddf, turn))
    assert own.ddf.shape == own.inverse.shape == (3, *fixed.shape[1:])
    place = torch.tensor([[20.0], [13.0], [3.0]])
    led = transform_points(own.to_moving, place + own.ddf[:, 20, 13, 3][:, None])
    expected = transform_points(turn, transform_points(working.ahead["fixed"], place) + shift[:, None])
    assert torch.allclose(transform_points(working.ahead["moving"], led), expected, atol=1e-4)
    assert torch.allclose(own.carry_points(led.T).T, place, atol=1e-4)


def test_a_registration_is_told_on_the_images_own_grids() -> None:
    whole, small = (inferer(voxels=voxels).register(PAIR, DiscSegmenter()) for voxels in (10**6, 3000))
    assert small.ddf.shape == whole.ddf.shape and small.moved.shape == FIXED.shape
    assert small.pairs.moving_regions.shape[1:] == MOVING.shape[1:] and small.pairs.found.all()
    assert torch.allclose(small.pairs.moving_prompts.coordinates, whole.pairs.moving_prompts.coordinates, atol=1e-3)
    assert torch.allclose(small.pairs.fixed_prompts.coordinates, whole.pairs.fixed_prompts.coordinates, atol=1.5)
    inside = FIXED[0] > 0.5
    assert (small.ddf - whole.ddf)[:, inside].abs().max() < 1.0
    assert ((small.pairs.fixed_regions[0] > 0.5) == inside).float().mean() > 0.97


def test_a_session_takes_and_gives_the_images_own_voxels() -> None:
    one = Session(inferer(voxels=3000), replace(PAIR, prompts=None), DiscSegmenter())
    there = one.counterpart(click(62.0, 51.0))
    assert there.fixed_regions.shape[1:] == FIXED.shape[1:]
    assert torch.allclose(there.moving_prompts.coordinates[0, 0], torch.tensor([62.0, 51.0]), atol=1e-3)
    assert torch.allclose(there.fixed_prompts.coordinates[0, 0], torch.tensor([54.0, 37.0]), atol=4.0)
    here = one.counterpart([replace(click(54.0, 37.0)[0], id="2")], "fixed")
    assert torch.allclose(here.fixed_prompts.coordinates[0, 0], torch.tensor([54.0, 37.0]), atol=1e-3)
    assert torch.allclose(here.moving_prompts.coordinates[0, 0], torch.tensor([62.0, 51.0]), atol=4.0)
    assert ((here.moving_regions[0] > 0.5) == (MOVING[0] > 0.5)).float().mean() > 0.97
    again = one.pairs()
    assert again.ids == ("1", "2") and torch.equal(again.moving_regions[1], here.moving_regions[0])
    one.remove("2")
    assert one.pairs().ids == ("1",) and one.register().ddf.shape[1:] == FIXED.shape[1:]
