# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prototype, similarity and their analytic derivatives (Sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.geometry import scaling_about_corner
from scripts.prototypes import (
    Features,
    area_weights,
    centred_features,
    prototype,
    prototype_jacobian,
    similarity,
    similarity_normal,
)
from scripts.segmenters.embedding import Embedding


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_prototype_of_a_constant_region_is_its_feature() -> None:
    features = random(5, 8, 8)
    feature = random(5, seed=1)
    features[:, 2:4, 3:6] = feature[:, None, None]
    mask = torch.zeros(1, 16, 16)  # the mask has twice the resolution of the features
    mask[0, 4:8, 6:12] = 1.0
    assert torch.allclose(prototype(features, area_weights(mask, (8, 8)))[0], feature, atol=1e-6)


def test_prototype_weighs_by_area() -> None:
    features = torch.tensor([[[1.0, 5.0]]])
    mask = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])  # covers the first voxel fully and half of the second
    assert torch.allclose(prototype(features, area_weights(mask, (1, 2))), torch.tensor([[(1 + 0.5 * 5) / 1.5]]))
    assert torch.equal(prototype(features, torch.zeros(1, 1, 2)), torch.zeros(1, 1))


def test_similarity_sees_direction_only() -> None:
    features = random(4, 3, 5)
    maps = similarity(features, torch.stack([7 * features[:, 1, 2], -0.1 * features[:, 0, 4]]))
    assert maps.shape == (2, 3, 5) and maps.abs().max() < 1 + 1e-5
    assert abs(maps[0, 1, 2] - 1) < 1e-5 and abs(maps[1, 0, 4] + 1) < 1e-5


def test_the_normal_equations_of_similarity_are_those_of_its_derivative() -> None:
    features, prototypes = random(6, 4, 3, dtype=torch.float64), random(2, 6, seed=1, dtype=torch.float64)
    full = torch.autograd.functional.jacobian(lambda g: similarity(features, g), prototypes)  # [2, 4, 3, 2, 6]
    expected = torch.stack([full[n, ..., n, :].flatten(0, 1) for n in range(2)])
    residual = random(2, 4, 3, seed=2, dtype=torch.float64)
    normal, gradient = similarity_normal(Features(features), prototypes, residual)
    assert torch.allclose(normal, expected.mT @ expected, atol=1e-6)
    assert torch.allclose(gradient, torch.einsum("nic,ni->nc", expected, residual.flatten(1)), atol=1e-6)


def test_prototype_jacobian_is_the_derivative() -> None:
    features, offset = random(6, 4, 5), random(2, 8, 15, seed=1)
    slopes = random(2, 3, 8, 15, seed=2)  # logits = offset + sum_q z_q slope_q
    z = random(2, 3, seed=3)

    def logits(z: Tensor) -> Tensor:
        return offset + torch.einsum("nq,nqij->nij", z, slopes)

    full = torch.autograd.functional.jacobian(
        lambda z: prototype(features, area_weights(logits(z).sigmoid(), (4, 5))), z
    )
    expected = torch.stack([full[n, :, n] for n in range(2)])
    assert torch.allclose(prototype_jacobian(features, logits(z).sigmoid(), slopes), expected, atol=1e-5)


def test_centring_uses_the_valid_part_only() -> None:
    features = random(3, 8, 8) + 4.0
    features[:, :, 6:] = 1000.0  # padding
    embedding = Embedding((features,), (16, 12), scaling_about_corner((16, 12), (32, 24)), (32, 24), (32, 32))
    centred = centred_features(embedding)
    assert centred[:, :, :6].mean((1, 2)).abs().max() < 1e-5
    shift = (centred - features)[:, :, :6]
    assert torch.allclose(shift, shift[:, :1, :1].expand_as(shift), atol=1e-4)  # one shift per channel
    assert (centred[:, :, 6:] == 0).all()  # nothing is similar to padding
    raw = centred_features(embedding, centre=False)
    assert torch.equal(raw[:, :, :6], features[:, :, :6]) and (raw[:, :, 6:] == 0).all()
