# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Inverse prompt (Eq. 1): the prompt on the fixed image whose region has the moving region's prototype.

The paper linearises the prototype by the prompt, G ~ g + J Z, and the similarity map by the prototype, S ~ s + J_sim
G, and inverts both:

    Z^y  =  J^+ J_sim^+ (S^y - s) + rho

(the printed order of the two inverses is swapped; only this one fits the dimensions). Read as an algorithm this is one
Gauss-Newton step on the fixed image from a start rho: g is the prototype that the current prompt produces there, s its
similarity map, S^y the similarity map of the moving region's prototype. We take such steps from the best of several
starts and keep a step only if the match improves. `steps: 1, step_below: 1, starts: [peak], keep: last` is the paper's
formula to the letter.

J^+ and J_sim^+ are damped (J_sim has rank n - 1 at most). J is by forward differentiation through mask decoder and
prompt encoder, J_sim analytic (`prototypes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError
from .geometry import bounding_box
from .prompts import Prompts
from .prototypes import (
    Features,
    area_weights,
    prototype,
    prototype_jacobian,
    region_weights,
    similarity,
    similarity_normal,
)
from .segmenters.embedding import Embedding
from .segmenters.protocol import Segmenter


@dataclass(frozen=True)
class Inversion:
    """How prompts are inverted.

    Attributes:
        starts: where to start: "carried" (where the coarse prior carries the moving prompt's region) and "peak" (the
            prompt, carried likewise and then shifted to the peak of the similarity map; the paper's).
        margins: sizes at which a carried box is tried, relative to the carried region.
        tie: starts that score within so much of the best are as good; the one that was listed first is taken.
        steps: Gauss-Newton steps at most (paper: 1).
        step_below: take steps only where the best start scores below this; 1 always steps (paper).
        keep: "best" (a step must improve the score) or "last" (paper: no test).
        damping: of both pseudo-inverses, relative to their largest squared singular value.
        reach: longest allowed step of a coordinate, relative to the extent of the carried region.
    """

    starts: tuple[str, ...] = ("carried", "peak")
    margins: tuple[float, ...] = (1.1, 1.25, 0.85, 1.5)
    tie: float = 5e-4
    steps: int = 1
    step_below: float = 0.7
    keep: str = "best"
    damping: float = 1e-2
    reach: float = 0.25

    def __post_init__(self) -> None:
        unknown = set(self.starts) - {"carried", "peak"}
        if unknown or not self.starts:
            raise InputError(f"inversion: unknown starts {sorted(unknown)}, expected some of ['carried', 'peak']")
        numbers = isinstance(self.margins, list | tuple) and all(
            isinstance(m, int | float) and 0 < m < inf for m in self.margins
        )
        if not numbers or ("carried" in self.starts and not self.margins):
            raise InputError(f"inversion: margins are {self.margins!r}, expected a list of numbers above 0")
        if self.keep not in ("best", "last"):
            raise InputError(f"inversion: keep is '{self.keep}', expected 'best' or 'last'")


@dataclass(frozen=True)
class Inverse:
    """Prompts found on the fixed image and what they segment.

    Attributes:
        prompts: N prompts, voxels of the fixed image.
        probability: `[N, *mask]` over the model input; regions: `[N, *S]` the same on the image.
        quality: `[N]` the model's own estimate in [0, 1].
        weights: `[N, *g]` the regions on the feature grid; prototype: `[N, C]` under them.
        match: `[N]` its cosine with the target in [-1, 1].
    """

    prompts: Prompts
    probability: Tensor
    regions: Tensor
    quality: Tensor
    weights: Tensor
    prototype: Tensor
    match: Tensor

    def __getitem__(self, index: Tensor) -> Inverse:
        own = self.probability, self.regions, self.quality, self.weights, self.prototype, self.match
        return Inverse(self.prompts[index], *(values[index] for values in own))

    def replaced(self, index: Tensor, new: Inverse) -> Inverse:
        """These with `new` ones at `index`."""
        return Inverse(
            self.prompts.at(self.prompts.coordinates.index_copy(0, index, new.prompts.coordinates)),
            self.probability.index_copy(0, index, new.probability),
            self.regions.index_copy(0, index, new.regions),
            self.quality.index_copy(0, index, new.quality),
            self.weights.index_copy(0, index, new.weights),
            self.prototype.index_copy(0, index, new.prototype),
            self.match.index_copy(0, index, new.match),
        )


Score = Callable[[Tensor, Inverse], Tensor]
"""Rates candidates, higher is better: the pair each is for `[N]` and the candidates -> `[N]` in [0, 1]."""


def damped_solve(normal: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """Damped pseudo-inverse of A applied to b: `(A^T A + d |A|^2 I)^-1 A^T b`.

    Args:
        normal: A^T A `[N, q, q]`; gradient: A^T b `[N, q]`.
        damping: d.
    """
    largest = torch.linalg.matrix_norm(normal, ord=2).clamp(min=1e-12)[:, None, None]
    identity = torch.eye(normal.shape[-1], device=normal.device, dtype=normal.dtype)
    return torch.linalg.solve(normal + damping * largest * identity, gradient[..., None])[..., 0]


def gauss_newton_step(
    features: Features, targets: Tensor, probability: Tensor, logit_jacobian: Tensor, damping: float
) -> Tensor:
    """Eq. 1 without its start: J^+ J_sim^+ (S^y - s).

    Args:
        features: of the fixed image.
        targets: `[N, C]` prototypes of the moving regions.
        probability: `[N, *mask]` of the current prompts.
        logit_jacobian: `[N, Q, *mask]` by prompt coordinate.
        damping: relative damping of both inverses.

    Returns:
        change of the coordinates `[N, Q]`.
    """
    values = features.values
    current = prototype(values, area_weights(probability, tuple(values.shape[1:])))
    residual = similarity(values, targets, features.lengths) - similarity(values, current, features.lengths)
    towards = damped_solve(*similarity_normal(features, current, residual), damping)
    slopes = prototype_jacobian(values, probability, logit_jacobian)
    return damped_solve(slopes.mT @ slopes, (slopes.mT @ towards[..., None])[..., 0], damping)


def scaled_boxes(boxes: Tensor, factor: float) -> Tensor:
    """Boxes `[N, 2, D]` scaled about their centres."""
    centre = boxes.mean(1, keepdim=True)
    return centre + (boxes - centre) * factor


def peak(similarity_map: Tensor, embedding: Embedding) -> Tensor:
    """Voxel of the image `[D]` where a similarity map `[*g]` is largest."""
    on_image = embedding.to_image(similarity_map[None])[0]
    return torch.stack(torch.unravel_index(on_image.argmax(), on_image.shape)).to(on_image.dtype)


def starting_prompts(
    prompts: Prompts, carried: Tensor, similarities: Tensor, fixed: Embedding, how: Inversion
) -> tuple[Prompts, Tensor]:
    """All starts rho of all prompts.

    Args:
        prompts: K prompts of the moving image, carried to the fixed one by the coarse prior.
        carried: `[K, *S]` their regions, carried likewise.
        similarities: `[K, *g]` similarity maps on the fixed image.
        fixed: embedding of the fixed image.
        how: which starts.

    Returns:
        the starts and, for each, the index of its prompt `[N]`.
    """
    coordinates, index = [], []
    for k, own in enumerate(prompts.coordinates):
        box = bounding_box(carried[k] > 0.5)
        mine = []
        if "carried" in how.starts and prompts.kind == "box" and box is not None:
            mine += [scaled_boxes(box[None], margin)[0] for margin in how.margins]
        elif "carried" in how.starts:
            mine.append(own)
        if "peak" in how.starts or not mine:
            inside = own if prompts.labels is None else own[prompts.labels[k] == 1]
            mine.append(own + peak(similarities[k], fixed) - inside.mean(0))
        coordinates += mine
        index += [k] * len(mine)
    chosen = torch.tensor(index, device=prompts.coordinates.device)
    labels = None if prompts.labels is None else prompts.labels[chosen]
    return clamp_to_image(Prompts(torch.stack(coordinates), labels), fixed.image_shape), chosen


def clamp_to_image(prompts: Prompts, shape: tuple[int, ...]) -> Prompts:
    """Prompts moved inside an image of `shape`."""
    last = torch.tensor(shape, device=prompts.coordinates.device, dtype=prompts.coordinates.dtype) - 1
    return prompts.at(torch.minimum(prompts.coordinates.clamp(min=0), last))


def evaluate(
    segmenter: Segmenter,
    embedding: Embedding,
    features: Tensor,
    prompts: Prompts,
    targets: Tensor,
    *,
    draft: bool = False,
) -> Inverse:
    """Segment an image at N prompts, or draft it, and compare the regions' prototypes with N targets `[N, C]`."""
    decoded = (segmenter.draft if draft else segmenter.decode)(embedding, prompts)
    probability = decoded.logits.sigmoid()
    weights = region_weights(embedding, probability)
    found = prototype(features, weights)
    match, quality = F.cosine_similarity(found, targets, dim=1), decoded.quality.clamp(0, 1)
    return Inverse(prompts, probability, embedding.to_image(probability), quality, weights, found, match)


def invert_prompts(
    segmenter: Segmenter,
    fixed: Embedding,
    features: Features,
    targets: Tensor,
    starts: Prompts,
    index: Tensor,
    score: Score,
    how: Inversion,
    reach: Tensor,
) -> Inverse:
    """The best corresponding prompt on the fixed image for each of K targets.

    Args:
        segmenter: the model.
        fixed: embedding of the fixed image; features: its own, centred or not, as the targets.
        targets: `[K, C]` prototypes of the moving regions.
        starts: N >= K starting prompts; index: `[N]` which target each is for (every target has one at least).
        score: how candidates are rated.
        how: settings.
        reach: `[K, D]` voxels, longest step of a coordinate.

    Returns:
        K prompts with their regions.
    """
    candidates = evaluate(segmenter, fixed, features.values, starts, targets[index], draft=True)
    scores = score(index, candidates)
    everyone = torch.arange(len(targets), device=index.device)
    own = torch.where(index == everyone[:, None], scores, -1.0)  # [K, N]
    first = (own > own.amax(1, keepdim=True) - how.tie).int().argmax(1)
    best, best_scores = candidates[first], scores[first]
    if segmenter.spec.drafts:
        best = evaluate(segmenter, fixed, features.values, best.prompts, targets)
        best_scores = score(everyone, best)
    for _ in range(how.steps):
        doubtful = (best_scores < how.step_below).nonzero().flatten() if how.step_below < 1 else everyone
        if not len(doubtful):
            break
        current = best[doubtful]
        logits, jacobian = segmenter.decode_jacobian(fixed, current.prompts)
        image = fixed.inside(tuple(logits.shape[1:]))
        change = gauss_newton_step(features, targets[doubtful], logits.sigmoid() * image, jacobian * image, how.damping)
        change = change.reshape(current.prompts.coordinates.shape)
        excess = (change.abs() / reach[doubtful][:, None]).flatten(1).amax(1).clamp(min=1)
        moved = current.prompts.at(current.prompts.coordinates + change / excess[:, None, None])
        trial = evaluate(segmenter, fixed, features.values, clamp_to_image(moved, fixed.image_shape), targets[doubtful])
        trial_scores = score(doubtful, trial)
        accepted = (trial_scores > best_scores[doubtful]) | torch.tensor(how.keep == "last", device=index.device)
        best = best.replaced(doubtful[accepted], trial[accepted.nonzero().flatten()])
        best_scores = best_scores.index_copy(0, doubtful[accepted], trial_scores[accepted])
        if not accepted.any():
            break
    return best
