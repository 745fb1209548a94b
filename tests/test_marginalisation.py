# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Spatial transforms of the moving image (Sec. 3.2) and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import DiscSegmenter, box_around, disc

from scripts.correspond import Found, Method, correspond
from scripts.errors import InputError
from scripts.geometry import bounding_box, identity_points, sample
from scripts.marginalisation import (
    Marginalisation,
    average,
    draw_transforms,
    map_back,
    transform_image,
    transform_prompts,
    views_seen,
)
from scripts.prior import Prior
from scripts.prompts import Prompts
from scripts.region_pairs import soft_dice

SHAPES = [(24, 33), (10, 14, 17)]
KINDS = ["flip", "rotation", "scaling", "mixed"]


def drawn(shape: tuple[int, ...], seed: int = 0, **settings) -> list[Tensor]:
    return draw_transforms(Marginalisation(**settings), shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_transform_is_the_identity_and_the_centre_stays(kind: str, shape: tuple[int, ...]) -> None:
    matrices = drawn(shape, transforms=4, kind=kind)
    centre = torch.tensor([*((n - 1) / 2 for n in shape), 1.0])
    assert len(matrices) == 4
    assert torch.equal(matrices[0], torch.eye(len(shape) + 1))
    for matrix in matrices[1:]:
        assert not torch.allclose(matrix, matrices[0], atol=1e-3)
        assert torch.allclose(matrix @ centre, centre, atol=1e-4)


@pytest.mark.parametrize("kind", ["rotation", "scaling", "mixed"])
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (drawn((24, 33), seed, transforms=4, kind=kind) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(first[1:], other[1:], strict=True))


def test_ranges_are_kept() -> None:
    scales = [m[:2, :2].det().sqrt().item() for m in drawn((24, 24), transforms=40, kind="scaling")[1:]]
    assert 0.5 <= min(scales) < 0.7 and 2.0 < max(scales) <= 2.5
    turns = drawn((24, 24), transforms=40, kind="rotation", angles=(10.0, 30.0))[1:]
    angles = [torch.rad2deg(torch.atan2(m[1, 0], m[0, 0])).item() for m in turns]
    assert 10 <= min(angles) < 13 and 27 < max(angles) <= 30


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_are_flips_and_come_back_exactly(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    matrices = drawn(shape, transforms=2 ** len(shape))
    images = [transform_image(image, matrix) for matrix in matrices]
    assert torch.allclose(images[1], image.flip(1), atol=1e-4)
    assert torch.allclose(images[3], image.flip(1, 2), atol=1e-4)
    for number, (turned, matrix) in enumerate(zip(images, matrices, strict=True)):
        assert torch.allclose(map_back(turned, matrix), image, atol=1e-4)
        assert all((turned - other).abs().max() > 0.1 for other in images[:number])  # each combination once


@pytest.mark.parametrize("kind", ["rotation", "scaling", "mixed"])
@pytest.mark.parametrize("shape", [(48, 48), (32, 32, 32)])
def test_a_centred_blob_comes_back(shape: tuple[int, ...], kind: str) -> None:
    centre = [(n - 1) / 2 for n in shape]
    blob = disc(shape, (centre[0] + 1.5, *centre[1:]), 0.15 * shape[0])[None]
    for matrix in drawn(shape, transforms=4, kind=kind)[1:]:
        assert soft_dice(map_back(transform_image(blob, matrix), matrix), blob).item() > 0.93


def test_what_a_transform_did_not_see_comes_back_empty() -> None:
    magnified = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    magnified[:2, 2] = 0.5 * 11.5
    seen = map_back(transform_image(torch.ones(1, 24, 24), magnified), magnified)
    assert seen[0, 12, 12] == 1 and seen[0, 2, 2] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_points_stay_on_what_they_showed(kind: str) -> None:
    image = torch.sin(identity_points((48, 48)) / torch.tensor([7.0, 9.0])[:, None, None]).sum(0, keepdim=True)
    points = Prompts(torch.tensor([[[20.0, 27.0], [26.0, 22.0]]]), torch.tensor([[1, 0]]))
    expected = sample(image, points.coordinates[0].T)
    for matrix in drawn((48, 48), transforms=4, kind=kind, scales=(0.7, 1.5))[1:]:
        moved = transform_prompts(points, torch.zeros(1, 48, 48), matrix, 1.1)
        assert torch.equal(moved.labels, points.labels)
        assert not torch.allclose(moved.coordinates, points.coordinates, atol=1e-2)
        assert torch.allclose(sample(transform_image(image, matrix), moved.coordinates[0].T), expected, atol=0.05)


def test_a_box_becomes_the_box_of_the_carried_region() -> None:
    region = disc((48, 48), (20.0, 27.0), 8.0)[None]
    matrix = drawn((48, 48), transforms=2, kind="rotation", angles=(45.0, 45.0))[1]
    box = transform_prompts(Prompts(box_around((20.0, 27.0), 9.0)[None]), region, matrix, 1.0).coordinates[0]
    expected = bounding_box(transform_image(region, matrix)[0] > 0.5)
    assert torch.allclose(box, expected)
    assert (box[1] - box[0]).max() < 18  # a disc turned by 45 degrees is no wider; its box's box would be 25


def test_a_box_without_a_region_is_carried_by_its_corners() -> None:
    flip = drawn((48, 48), transforms=2)[1]
    box = Prompts(torch.tensor([[[10.0, 20.0], [15.0, 30.0]]]))
    moved = transform_prompts(box, torch.zeros(1, 48, 48), flip, 1.1)
    assert torch.allclose(moved.coordinates, torch.tensor([[[32.0, 20.0], [37.0, 30.0]]]))


def found(transforms: int, kind: str = "flip", seed: int = 0) -> tuple[Found, DiscSegmenter]:
    toy = DiscSegmenter()
    image = (0.1 + 0.8 * disc((64, 64), (30.0, 36.0), 12.0))[None]
    moving, fixed = toy.encode([image, image.roll(3, 1)])
    prior = Prior(torch.zeros(2, 64, 64), torch.zeros(2, 64, 64), torch.eye(3))
    method = Method(marginalisation=Marginalisation(transforms=transforms, kind=kind))
    box = Prompts(box_around((30.0, 36.0), 13.0)[None])
    generator = torch.Generator().manual_seed(seed)
    return correspond(toy, image, moving, fixed, box, prior, method, generator), toy


def test_one_transform_is_the_plain_call() -> None:
    plain, toy = found(1)
    image = (0.1 + 0.8 * disc((64, 64), (30.0, 36.0), 12.0))[None]
    embedding = toy.encode([image])[0]
    direct = embedding.to_image(toy.decode(embedding, Prompts(box_around((30.0, 36.0), 13.0)[None])).logits.sigmoid())
    assert torch.equal(plain.moving_regions, direct)
    mixed, _ = found(1, "mixed", seed=5)
    assert torch.equal(plain.fixed_regions, mixed.fixed_regions)


def test_flips_of_a_symmetric_model_change_nothing_much() -> None:
    plain, flipped = found(1)[0], found(4)[0]
    assert soft_dice(plain.moving_regions, flipped.moving_regions).item() > 0.99
    assert soft_dice(plain.fixed_regions, flipped.fixed_regions).item() > 0.95


def test_views_are_averaged() -> None:
    both, plain = found(2, "scaling")[0], found(1)[0]
    assert not torch.allclose(both.moving_regions, plain.moving_regions, atol=1e-3)
    assert soft_dice(both.moving_regions, plain.moving_regions).item() > 0.9


def test_what_a_view_does_not_see_does_not_count() -> None:
    away = torch.eye(3)
    away[0, 2] = 40.0  # shows what lies 40 rows further down
    prompts = Prompts(torch.tensor([[[5.0, 30.0]], [[55.0, 30.0]]]), torch.ones(2, 1))
    asked, shown = views_seen(prompts, [torch.eye(3), away], (64, 64))
    assert asked.tolist() == [[1, 1], [0, 1]]
    assert shown[0].all() and not shown[1, :40].any() and shown[1, 41:].all()
    maps = torch.stack([torch.full((2, 64, 64), 0.8), torch.zeros(2, 64, 64)])
    mean = average(maps, asked[..., None, None] * shown[:, None])
    assert torch.allclose(mean[0], torch.tensor(0.8)) and torch.allclose(mean[1, :40], torch.tensor(0.8))
    assert torch.allclose(mean[1, 41:], torch.tensor(0.4))


@pytest.mark.parametrize(
    ("settings", "message"), [({"kind": "shear"}, "unknown kind 'shear'"), ({"transforms": 0}, "transforms is 0")]
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Marginalisation(**settings)


@pytest.mark.parametrize(("row", "inside"), [(-0.5, 1), (-0.25, 1), (63.5, 1), (-0.6, 0), (63.6, 0)])
def test_a_click_on_the_rim_is_asked(row: float, inside: int) -> None:
    click = Prompts(torch.tensor([[[row, 30.0]]]), torch.ones(1, 1))
    assert views_seen(click, [torch.eye(3)], (64, 64))[0].tolist() == [[inside]]
