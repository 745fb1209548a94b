# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""How far a pair of regions is trusted: cues, confidence, consensus, and "no correspondence".

Not in the paper, which fits to every pair; a few wrong ones ruin the fit (docs/log.md, "Consensus").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError, as_bool
from .geometry import centroid
from .prototypes import Features, similarity

PLACES = 20_000  # outside of a region, in `separation`


@dataclass(frozen=True)
class Trust:
    """When a pair counts.

    Attributes:
        threshold: confidence below which a prompt is returned as "no correspondence".
        floor: confidence below which a pair has no weight in the fit either. Doubtful pairs are worth little each and
            something together.
        consensus: whether pairs must agree on a smooth map.
        tolerance: smallest residual of the consensus that costs weight, relative to the image's longest side.
        smoothing: stiffness of the consensus map (thin-plate spline), larger is stiffer.
        rounds: reweighting rounds.
    """

    threshold: float = 0.4
    floor: float = 0.2
    consensus: bool = True
    tolerance: float = 0.03
    smoothing: float = 0.1
    rounds: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "consensus", as_bool(self.consensus, "trust: consensus"))
        if not 0 <= self.floor <= self.threshold <= 1:
            raise InputError(
                f"trust: floor {self.floor} and threshold {self.threshold}, expected 0 <= floor <= threshold <= 1"
            )


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Soft Dice of paired maps `[N, *S]`: `[N]` in [0, 1]."""
    a, b = a.flatten(1), b.flatten(1)
    return 2 * (a * b).sum(1) / (a.square().sum(1) + b.square().sum(1)).clamp(min=1e-6)


def separation(similarities: Tensor, weights: Tensor) -> Tensor:
    """How well similarity maps pick out regions: chance that a voxel inside is more similar than one outside (AUC).

    Of what lies outside in a volume, `PLACES` voxels tell as much as all.

    Args:
        similarities: `[N, *g]`.
        weights: `[N, *g]` regions in [0, 1] on the same grid.

    Returns:
        `[N]` in [0, 1]; 0.5 is chance.
    """
    values, inside = similarities.flatten(1), weights.flatten(1)
    outside = 1 - inside
    if values.shape[1] > PLACES:
        some = torch.randint(values.shape[1], (PLACES,), generator=torch.Generator().manual_seed(0)).to(values.device)
        seen = (inside > 0.01).any(0).nonzero()[:, 0]  # all of these: a region may be small
        values = torch.cat([values[:, some], values[:, seen]], dim=1)
        inside, outside = F.pad(inside[:, seen], (PLACES, 0)), F.pad(outside[:, some], (0, len(seen)))
    order = values.argsort(1)
    inside, outside = inside.gather(1, order), outside.gather(1, order)
    below = outside.cumsum(1) - 0.5 * outside
    return (inside * below).sum(1) / (inside.sum(1) * outside.sum(1)).clamp(min=1e-6)


def backward_consistency(moving: Features, fixed_prototypes: Tensor, moving_weights: Tensor) -> Tensor:
    """Does the fixed region's prototype point back to the moving region? `[N]` in [0, 1], chance level is 0.

    Args:
        moving: features of the moving image on a grid g; fixed_prototypes: `[N, C]`; moving_weights: `[N, *g]` regions.
    """
    similarities = similarity(moving.values, fixed_prototypes, moving.lengths)
    return above_chance(separation(similarities, moving_weights))


def above_chance(separations: Tensor) -> Tensor:
    """Separations `[N]` with chance at 0, in [0, 1]."""
    return (2 * separations - 1).clamp(min=0)


def geometric_mean(cues: dict[str, Tensor]) -> Tensor:
    """Geometric mean of cues in [0, 1], each `[N]`, which ranks candidates whatever the number of cues."""
    return torch.stack([cue.clamp(0, 1) for cue in cues.values()]).clamp(min=1e-6).log().mean(0).exp()


def confidence(cues: dict[str, Tensor]) -> Tensor:
    """Product of cues in [0, 1], each `[N]`, as of independent witnesses who must all be right."""
    return torch.stack([cue.clamp(0, 1) for cue in cues.values()]).prod(0)


def region_centres(regions: Tensor) -> Tensor:
    """Centres of mass `[N, D]` of maps `[N, *S]`, in voxels."""
    return torch.stack([centroid(region) for region in regions])


def enough_for_consensus(pairs: int, dims: int) -> bool:
    """Whether leaving one pair out leaves more than an affine map needs."""
    return pairs >= dims + 3


def consensus_weights(
    fixed_centres: Tensor, moving_centres: Tensor, weights: Tensor, longest: float, how: Trust
) -> Tensor:
    """Weights `[N]` in [0, 1] by which pairs agree on one smooth map (Tukey's biweight, iteratively reweighted).

    Each pair is compared with a smoothing thin-plate spline through all OTHERS, so that no pair vouches for itself.

    Args:
        fixed_centres, moving_centres: `[N, D]` corresponding points in one frame, any unit.
        weights: `[N]` prior weights (confidences).
        longest: the fixed image's longest side, likewise.
        how: settings.
    """
    n, dims = fixed_centres.shape
    if not how.consensus or not enough_for_consensus(n, dims):
        return torch.ones_like(weights)
    points = (fixed_centres / longest).double().cpu().numpy()
    shifts = ((moving_centres - fixed_centres) / longest).double().cpu().numpy()
    prior = weights.double().clamp(min=1e-3).cpu().numpy()
    agreed = np.ones(n)
    for _ in range(how.rounds):
        residual = np.empty(n)
        for k in range(n):
            others = np.arange(n) != k
            stiffness = how.smoothing / np.clip(prior * agreed, 1e-5, None)[others]
            try:
                spline = RBFInterpolator(points[others], shifts[others], smoothing=stiffness, degree=1)
            except np.linalg.LinAlgError:  # centres on one line determine no map: nothing to agree on
                return torch.ones_like(weights)
            residual[k] = np.linalg.norm(spline(points[k : k + 1])[0] - shifts[k])
        scale = max(1.4826 * float(np.median(residual)), how.tolerance)  # the standard deviation of a normal
        agreed = np.clip(1 - (residual / (3 * scale)) ** 2, 0, None) ** 2  # beyond three deviations nothing
    return torch.as_tensor(agreed, dtype=weights.dtype, device=weights.device)
