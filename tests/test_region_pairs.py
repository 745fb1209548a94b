# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Cues, confidence, consensus, and "no correspondence" for what is not there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import DiscSegmenter, box_around, disc

from scripts.correspond import Method, correspond, pair_up
from scripts.geometry import transform_points
from scripts.prior import Prior
from scripts.prompts import GivenPrompt, Prompts
from scripts.prototypes import Features
from scripts.region_pairs import (
    Trust,
    above_chance,
    backward_consistency,
    confidence,
    consensus_weights,
    region_centres,
    separation,
    soft_dice,
)


def test_soft_dice() -> None:
    a = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]], [[0.5, 0.0, 0.0, 0.0]]])
    b = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]])
    assert torch.allclose(soft_dice(a, b), torch.tensor([1.0, 0.5, 2 * 0.5 / 1.25]))
    assert soft_dice(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).item() == 0


def test_separation_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 6, 7, generator=generator)
    inside = torch.rand(2, 6, 7, generator=generator) > 0.7
    brute = [
        (v[m][:, None] > v[~m][None]).float().mean() for v, m in zip(values.flatten(1), inside.flatten(1), strict=True)
    ]
    assert torch.allclose(separation(values, inside.float()), torch.stack(brute), atol=1e-5)
    assert torch.allclose(separation(inside.float() + 0.1 * values.sigmoid(), inside.float()), torch.ones(2))
    assert separation(values, torch.full((2, 6, 7), 0.5)).sub(0.5).abs().max() < 1e-5


def test_separation_of_a_large_grid_looks_at_some_places_outside() -> None:
    regions = torch.stack([disc((300, 300), (150.0, 150.0), radius) for radius in (60.0, 1.5)])
    similarities = regions + 0.5 * torch.randn(regions.shape, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.region_pairs.PLACES", regions[0].numel())
        exact = separation(similarities, regions)
    assert torch.allclose(separation(similarities, regions), exact, atol=0.005)  # the speck has its voxels too
    assert above_chance(torch.tensor([0.2, 0.5, 0.75, 1.0])).tolist() == [0.0, 0.0, 0.5, 1.0]


def test_backward_consistency_is_one_for_its_own_prototype_and_zero_for_the_opposite() -> None:
    features = torch.zeros(2, 4, 4)
    features[0], features[1, :2] = 1.0, 2.0
    upper = torch.zeros(1, 4, 4)
    upper[0, :2] = 1.0
    assert backward_consistency(Features(features), torch.tensor([[1.0, 2.0]]), upper).item() == pytest.approx(1.0)
    assert backward_consistency(Features(features), torch.tensor([[1.0, -2.0]]), upper).item() == pytest.approx(0.0)


def test_confidence_is_the_product() -> None:
    cues = {"match": torch.tensor([0.9, 1.0, -0.3]), "quality": torch.tensor([0.4, 1.2, 1.0])}
    assert torch.allclose(confidence(cues), torch.tensor([0.36, 1.0, 0.0]), atol=1e-4)


def test_region_centres() -> None:
    regions = torch.stack([disc((20, 24), (8.0, 9.0), 4.0), disc((20, 24), (11.0, 14.0), 5.0)])
    assert torch.allclose(region_centres(regions), torch.tensor([[8.0, 9.0], [11.0, 14.0]]), atol=0.01)


def affine_pairs(dims: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    fixed = 100 * torch.rand(10, dims, generator=generator)
    matrix = torch.eye(dims + 1)
    matrix[:dims, :dims] += 0.1 * torch.randn(dims, dims, generator=generator)
    matrix[:dims, dims] = 5.0
    return fixed, transform_points(matrix, fixed.T).T


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("outlier", [0, 4, 7])
def test_consensus_rejects_the_outlier_only(dims: int, outlier: int) -> None:
    fixed, moving = affine_pairs(dims)
    moving[outlier] += 30.0
    weights = consensus_weights(fixed, moving, torch.ones(10), 100.0, Trust())
    others = torch.arange(10) != outlier
    assert weights[outlier] < 0.01
    assert weights[others].min() > (0.9 if dims == 2 else 0.85)


def test_consensus_needs_enough_pairs_and_can_be_switched_off() -> None:
    fixed, moving = affine_pairs(2)
    moving[0] += 30.0
    assert torch.equal(consensus_weights(fixed[:4], moving[:4], torch.ones(4), 100.0, Trust()), torch.ones(4))
    assert torch.equal(consensus_weights(fixed, moving, torch.ones(10), 100.0, Trust(consensus=False)), torch.ones(10))


@pytest.mark.parametrize("kind", ["box", "point"])
@pytest.mark.parametrize("dims", [2, 3])
def test_what_was_erased_has_no_correspondence(dims: int, kind: str) -> None:
    size = 64 if dims == 2 else 32
    shape, rest = (size,) * dims, (0.5 * size,) * (dims - 2)
    there, erased = (0.3 * size, 0.3 * size, *rest), (0.7 * size, 0.65 * size, *rest)
    radius = 0.16 * size
    moving_image = (0.1 + 0.8 * disc(shape, there, radius) + 0.4 * disc(shape, erased, radius))[None]
    fixed_image = (0.1 + 0.8 * disc(shape, tuple(c + 0.03 * size for c in there), radius))[None]
    toy = DiscSegmenter(dims, size)
    moving, fixed = toy.encode([moving_image, fixed_image])
    if kind == "box":
        prompts = Prompts(torch.stack([box_around(there, 1.1 * radius), box_around(erased, 1.1 * radius)]))
    else:
        prompts = Prompts(torch.tensor([[there], [erased]]), torch.ones(2, 1, dtype=torch.long))
    given = [GivenPrompt(name, prompts.coordinates[n], None) for n, name in enumerate(("there", "erased"))]
    still = torch.zeros(dims, *shape)
    prior = Prior(still, still, torch.eye(dims + 1))
    found = correspond(toy, moving_image, moving, fixed, prompts, prior, Method(), torch.Generator().manual_seed(0))
    pairs = pair_up(found, prompts, given, torch.eye(dims + 1), [1.0] * dims, Trust())
    assert pairs.found.tolist() == [True, False]
    assert pairs.confidence[0] > 0.5 and pairs.confidence[1] == 0
    assert pairs.ids == ("there", "erased")
    truth = disc(shape, tuple(c + 0.03 * size for c in there), radius)[None]
    assert soft_dice(pairs.fixed_regions[:1], truth).item() > 0.8
