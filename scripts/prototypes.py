# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prototype of a region and similarity of an image to it (Sec. 3.1).

    G = sum_i w_i F_i / sum_i w_i          prototype: mean feature under the soft region w
    S_i = <G, F_i> / (|G| |F_i|)           similarity: cosine at every voxel i of the feature grid

Features F are `[C, *g]`; the region w is `[*mask]` in [0, 1] over the same model input and is resampled by area to g.
Centring subtracts the image's own mean feature first. The paper does not centre; without it every cosine is near one
(docs/results.md, "Centring").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import resize_by_area
from .segmenters.embedding import Embedding


def centred_features(embedding: Embedding, *, centre: bool = True, level: int = -1) -> Tensor:
    """Feature grid `[C, *g]` minus its mean over the part that shows the image (kept when `centre` is False).

    Padding is zero either way, so that nothing is similar to it.
    """
    features = embedding.levels[level].float()
    inside = embedding.inside(tuple(features.shape[1:]))
    if centre:
        features = features - features[:, inside].mean(1).reshape(-1, *[1] * (features.ndim - 1))
    return features * inside


def area_weights(regions: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Soft regions `[N, *mask]` as weights on the feature grid, `[N, *grid]`."""
    return resize_by_area(regions, grid)


def region_weights(embedding: Embedding, regions: Tensor) -> Tensor:
    """Soft regions `[N, *mask]` as weights on the deepest feature grid, `[N, *g]`, without what lies in the padding."""
    inside = embedding.inside(tuple(regions.shape[1:]))
    return area_weights(regions * inside, tuple(embedding.features.shape[1:]))


def prototype(features: Tensor, weights: Tensor) -> Tensor:
    """Mean features under weights: `[C, *g]`, `[N, *g]` -> `[N, C]`. A region without weight gives zeros."""
    flat = weights.flatten(1)
    return flat @ features.flatten(1).T / flat.sum(1, keepdim=True).clamp(min=1e-6)


def similarity(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of prototypes `[N, C]` with every feature `[C, *g]`: `[N, *g]` in [-1, 1]."""
    unit = F.normalize(features.flatten(1), dim=0)
    return (F.normalize(prototypes, dim=1) @ unit).reshape(-1, *features.shape[1:])


def similarity_jacobian(features: Tensor, prototypes: Tensor) -> Tensor:
    """dS/dG, `[N, n, C]` with n voxels in the feature grid.

    dS_i/dG = (F_i / |F_i| - S_i G / |G|) / |G|. (The paper's printed form has a norm misplaced.)
    """
    unit_features = F.normalize(features.flatten(1), dim=0).T  # [n, C]
    norms = prototypes.norm(dim=1).clamp(min=1e-12)[:, None, None]
    unit_prototypes = prototypes[:, None] / norms  # [N, 1, C]
    cosine = unit_prototypes @ unit_features.T  # [N, 1, n]
    return (unit_features - cosine.mT * unit_prototypes) / norms


def prototype_jacobian(features: Tensor, probability: Tensor, logit_derivatives: Tensor) -> Tensor:
    """dG/dZ by the chain rule through sigmoid, area resampling and weighted mean.

    Args:
        features: `[C, *g]`.
        probability: `[N, *mask]`, sigmoid of the logits.
        logit_derivatives: `[N, Q, *mask]`, derivative of the logits by each of Q prompt coordinates.

    Returns:
        `[N, C, Q]`.
    """
    grid = tuple(features.shape[1:])
    slope = (probability * (1 - probability))[:, None] * logit_derivatives
    weights = area_weights(probability, grid).flatten(1)  # [N, n]
    changes = torch.stack([area_weights(s, grid).flatten(1) for s in slope])  # [N, Q, n]
    mean = weights @ features.flatten(1).T / weights.sum(1, keepdim=True).clamp(min=1e-6)
    offsets = features.flatten(1)[None] - mean[..., None]  # [N, C, n]
    return offsets @ changes.mT / weights.sum(1).clamp(min=1e-6)[:, None, None]
