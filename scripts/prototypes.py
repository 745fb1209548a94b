# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prototype of a region and similarity of an image to it (Sec. 3.1).

    G = sum_i w_i F_i / sum_i w_i          prototype: mean feature under the soft region w
    S_i = <G, F_i> / (|G| |F_i|)           similarity: cosine at every voxel i of the feature grid

Features F are `[C, *g]`; the region w is `[*mask]` in [0, 1] over the same model input and is resampled by area to g.
Centring subtracts the image's own mean feature first. The paper does not centre; without it every cosine is near one
(docs/log.md, "Centring").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import resize_by_area
from .segmenters.embedding import Embedding


@dataclass(frozen=True)
class Features:
    """An image's features as prototypes are compared with them; kept for all prompts of a session.

    Attributes:
        values: `[C, *g]`, see `centred_features`.
    """

    values: Tensor

    @classmethod
    def of(cls, embedding: Embedding, *, centre: bool) -> Features:
        """The deepest grid of an embedding."""
        return cls(centred_features(embedding, centre=centre))

    @cached_property
    def lengths(self) -> Tensor:
        """`[n]` of all n voxels' features, above 0."""
        return lengths(self.values)

    @cached_property
    def alike(self) -> Tensor:
        """`[C, C]`, the sum of f f^T over the grid's unit features f."""
        unit = self.values.flatten(1) / self.lengths
        return unit @ unit.T


def lengths(features: Tensor) -> Tensor:
    """`[n]` lengths of the features `[C, *g]` of n voxels, above 0."""
    squares = features.new_zeros(features[0].numel())
    for channel in features.flatten(1):  # PyTorch's norm along the first axis takes four times as long
        squares.addcmul_(channel, channel)
    return squares.sqrt_().clamp_(min=1e-12)


def centred_features(embedding: Embedding, *, centre: bool = True, level: int = -1) -> Tensor:
    """Feature grid `[C, *g]` minus its mean over the part that shows the image (kept when `centre` is False).

    Padding is zero either way, so that nothing is similar to it.
    """
    features = embedding.levels[level].float().contiguous()  # slices are stored one after the other
    inside = embedding.inside(tuple(features.shape[1:])).to(features)
    if not centre:
        return features * inside
    mean = features.flatten(1) @ inside.flatten() / inside.sum()  # no copy of what lies inside
    return (features - mean.reshape(-1, *[1] * inside.ndim)).mul_(inside)


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


def similarity(features: Tensor, prototypes: Tensor, known: Tensor | None = None) -> Tensor:
    """Cosine of prototypes `[N, C]` with every feature `[C, *g]`: `[N, *g]` in [-1, 1]; `known`: the `lengths`."""
    # Products first: features of unit length would be one more array of their size.
    products = F.normalize(prototypes, dim=1) @ features.flatten(1)
    return (products / (lengths(features) if known is None else known)).reshape(-1, *features.shape[1:])


def similarity_normal(features: Features, prototypes: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """J^T J `[N, C, C]` and J^T r `[N, C]` of J = dS/dG at prototypes `[N, C]` and residuals r of S, `[N, *g]`.

    With unit features f_i and the unit prototype g, dS_i/dG = (f_i - S_i g) / |G| = (1 - g g^T) f_i / |G|. (The paper's
    printed form has a norm misplaced.) J itself has a row for every voxel of the grid and is not needed: its product
    with itself follows from `Features.alike`.
    """
    norms = prototypes.norm(dim=1).clamp(min=1e-12)
    unit = prototypes / norms[:, None]
    across = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device) - unit[:, :, None] * unit[:, None]
    flat = features.values.flatten(1)
    pulled = (residual.flatten(1) / features.lengths) @ flat.T
    normal = across @ features.alike @ across / norms[:, None, None] ** 2
    return normal, (across @ pulled[..., None])[..., 0] / norms[:, None]


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
    moved = (changes @ features.flatten(1).T).mT - mean[..., None] * changes.sum(2)[:, None]  # of the weighted sum
    return moved / weights.sum(1).clamp(min=1e-6)[:, None, None]
