# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Inverse prompt (Eq. 1): the prompt on the fixed image whose region has the moving region's prototype.

The paper linearises the prototype by the prompt, G ~ g + J Z, and the similarity map by the prototype, S ~ s + J_sim G, and
inverts both:

    Z^y  =  J^+ J_sim^+ (S^y - s) + rho

(the printed order of the two inverses is swapped; only this one fits the dimensions). Read as an algorithm this is one
Gauss-Newton step on the fixed image from a start rho: g is the prototype that the current prompt produces there, s its
similarity map, S^y the similarity map of the moving region's prototype. We take such steps from the best of several starts
and keep a step only if the match improves. `steps: 1, starts: [peak], keep: last` is the paper's formula to the letter.

J^+ and J_sim^+ are damped (J_sim has rank n - 1 at most). J is by forward differentiation through mask decoder and
prompt encoder, J_sim analytic (`prototypes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import bounding_box, sample, transform_points
from .prompts import Prompts
from .prototypes import area_weights, prototype, prototype_jacobian, similarity, similarity_jacobian
from .segmenters.protocol import Decoded, Embedding, PromptableSegmenter


@dataclass(frozen=True)
class Inversion:
    """How prompts are inverted.

    Attributes:
        starts: where to start: "carried" (the moving region, carried by the coarse prior), "peak" (the moving prompt's
            size at the peak of the similarity map). The paper starts at the peak.
        margins: sizes at which "carried" starts are tried, relative to the carried region's box.
        steps: Gauss-Newton steps at most (paper: 1).
        keep: "best" (a step must improve the match) or "last" (paper: no test).
        damping: of both pseudo-inverses, relative to their largest squared singular value.
        reach: longest allowed step, relative to the box's (or carried region's) size.
    """

    starts: tuple[str, ...] = ("carried", "peak")
    margins: tuple[float, ...] = (1.1, 1.3)
    steps: int = 1
    keep: str = "best"
    damping: float = 1e-2
    reach: float = 0.25


@dataclass(frozen=True)
class Inverse:
    """Prompts found on the fixed image and what they segment.

    Attributes:
        prompts: N prompts, voxels of the fixed image.
        probability: `[N, *mask]` over the model input.
        quality: `[N]` the model's own estimate in [0, 1].
        match: `[N]` cosine of the prototypes in [-1, 1].
    """

    prompts: Prompts
    probability: Tensor
    quality: Tensor
    match: Tensor


class Score(Protocol):
    """Rates N candidate regions, each for its own target; higher is better."""

    def __call__(self, index: Tensor, probability: Tensor, quality: Tensor, match: Tensor) -> Tensor:
        """`index` `[N]` says which target each candidate is for; the others are as in `Inverse`. Returns `[N]`."""


def damped_solve(matrix: Tensor, target: Tensor, damping: float) -> Tensor:
    """Damped pseudo-inverse applied to a vector: `(A^T A + d |A|^2 I)^-1 A^T b`, `[N, m, q]`, `[N, m]` -> `[N, q]`."""
    normal = matrix.mT @ matrix
    largest = torch.linalg.matrix_norm(normal, ord=2).clamp(min=1e-12)[:, None, None]
    identity = torch.eye(normal.shape[-1], device=matrix.device, dtype=matrix.dtype)
    return torch.linalg.solve(normal + damping * largest * identity, (matrix.mT @ target[..., None]))[..., 0]


def gauss_newton_step(
    features: Tensor, targets: Tensor, probability: Tensor, logit_jacobian: Tensor, damping: float
) -> Tensor:
    """Eq. 1 without its start: J^+ J_sim^+ (S^y - s).

    Args:
        features: `[C, *g]` of the fixed image.
        targets: `[N, C]` prototypes of the moving regions.
        probability: `[N, *mask]` of the current prompts.
        logit_jacobian: `[N, Q, *mask]` by prompt coordinate.
        damping: relative damping of both inverses.

    Returns:
        change of the coordinates `[N, Q]`.
    """
    current = prototype(features, area_weights(probability, tuple(features.shape[1:])))
    residual = (similarity(features, targets) - similarity(features, current)).flatten(1)
    towards = damped_solve(similarity_jacobian(features, current), residual, damping)
    return damped_solve(prototype_jacobian(features, probability, logit_jacobian), towards, damping)


def peak(similarity_map: Tensor, embedding: Embedding, prior: Tensor | None = None) -> Tensor:
    """Voxel of the image `[D]` where a similarity map `[*g]` (times an optional prior `[*image]`) is largest."""
    on_image = embedding.to_image(similarity_map[None])[0]
    on_image = on_image - on_image.amin()
    weighted = on_image if prior is None else on_image * prior
    return torch.stack(torch.unravel_index(weighted.argmax(), weighted.shape)).to(on_image.dtype)
