# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""From prompts on the moving image to region pairs: Sections 3.1 to 3.3 in order, each step in a module of its name.

segment X -> prototype -> similarity on Y -> inverse prompt -> segment Y -> auxiliary prompts
\\________________ repeated under J transforms of X, probability maps averaged ______________/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from .auxiliary_prompts import Auxiliary, refine
from .errors import as_bool
from .geometry import bounding_box, resampled, transform_points
from .marginalisation import (
    Marginalisation,
    average,
    draw_transforms,
    map_back,
    transform_image,
    transform_prompts,
    views_seen,
)
from .prior import Prior
from .prompt_inversion import Inverse, Inversion, invert_prompts, starting_prompts
from .prompts import GivenPrompt, Prompts, concatenated
from .prototypes import Features, prototype, region_weights, similarity
from .region_pairs import (
    Trust,
    above_chance,
    backward_consistency,
    confidence,
    consensus_weights,
    enough_for_consensus,
    geometric_mean,
    region_centres,
    separation,
    soft_dice,
)
from .registration import RegionPairs
from .segmenters.protocol import Embedding, Segmenter


@dataclass(frozen=True)
class Method:
    """Settings of the correspondence, one group per section of the paper.

    Attributes:
        centre: subtract each image's mean feature before cosines are taken (the paper does not).
        inversion: Eq. 1; auxiliary: Eq. 2; marginalisation: Sec. 3.2; trust: confidence and consensus (ours).
    """

    centre: bool = True
    inversion: Inversion = field(default_factory=Inversion)
    auxiliary: Auxiliary = field(default_factory=Auxiliary)
    marginalisation: Marginalisation = field(default_factory=Marginalisation)
    trust: Trust = field(default_factory=Trust)

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", as_bool(self.centre, "method: centre"))


@dataclass(frozen=True)
class Found:
    """Counterparts of K prompts.

    Attributes:
        moving_regions: `[K, *M]` and fixed_regions: `[K, *S]`, probabilities on the images' (working) grids.
        prompts: K prompts on the fixed image.
        cues: of confidence, each `[K]` in [0, 1], by name.
        centres: `[K, D]` centres of mass of the moving and of the fixed regions, in voxels of their images.
        expected: `[K, D]` voxels of the fixed image, where the prior carries the moving regions' centres.
    """

    moving_regions: Tensor
    fixed_regions: Tensor
    prompts: Prompts
    cues: dict[str, Tensor]
    centres: tuple[Tensor, Tensor]
    expected: Tensor

    def __getitem__(self, index: list[int]) -> Found:
        cues = {name: values[index] for name, values in self.cues.items()}
        regions = self.moving_regions[index], self.fixed_regions[index]
        centres = self.centres[0][index], self.centres[1][index]
        return Found(*regions, self.prompts[index], cues, centres, self.expected[index])


def correspond(
    segmenter: Segmenter,
    moving_image: Tensor,
    moving: Embedding,
    fixed: Embedding,
    prompts: Prompts,
    prior: Prior,
    method: Method,
    generator: torch.Generator,
    features: dict[str, Features] | None = None,
) -> Found:
    """Find the counterparts of K prompts.

    Args:
        segmenter: the model.
        moving_image: `[C, *M]` raw intensities; moving, fixed: embeddings of both images.
        prompts: K prompts on the moving image, of a kind the model was trained with.
        prior: coarse map.
        method: settings.
        generator: source of randomness.
        features: of both embeddings by name, "moving" and "fixed", where they are known already.

    Returns:
        K regions on either side, the prompts found on the fixed image and the cues of confidence.
    """
    if features is None:
        features = {side: Features.of(e, centre=method.centre) for side, e in (("moving", moving), ("fixed", fixed))}
    transforms = [
        matrix.to(moving_image.device)
        for matrix in draw_transforms(
            method.marginalisation, moving.image_shape, generator, moving.spacing, moving.plane
        )
    ]
    turned = [transform_image(moving_image, matrix) for matrix in transforms[1:]]
    views = [moving, *(segmenter.encode(turned, [moving.affine] * len(turned)) if turned else [])]
    found = []
    for some in _in_memory(prompts, moving, fixed, method):
        found.append(_correspond(segmenter, moving, fixed, features, views, transforms, some, prior, method))
    return joined(found)


def _in_memory(prompts: Prompts, moving: Embedding, fixed: Embedding, method: Method) -> list[Prompts]:
    """The prompts in groups whose maps fit into a gigabyte: of a volume a few, of a picture usually all."""
    voxels = max(prod(embedding.image_shape) for embedding in (moving, fixed))
    starts = len(method.inversion.margins) + 1
    at_once = int(max(1, 2**30 // (4 * voxels * (2 * starts + 4 * method.marginalisation.transforms))))
    return [prompts[n : n + at_once] for n in range(0, len(prompts), at_once)]


def joined(parts: list[Found]) -> Found:
    """The counterparts of several groups of prompts of one kind, in order."""
    if len(parts) == 1:
        return parts[0]
    return Found(
        moving_regions=torch.cat([part.moving_regions for part in parts]),
        fixed_regions=torch.cat([part.fixed_regions for part in parts]),
        prompts=concatenated([part.prompts for part in parts]),
        cues={name: torch.cat([part.cues[name] for part in parts]) for name in parts[0].cues},
        centres=(torch.cat([part.centres[0] for part in parts]), torch.cat([part.centres[1] for part in parts])),
        expected=torch.cat([part.expected for part in parts]),
    )


def _correspond(
    segmenter: Segmenter,
    moving: Embedding,
    fixed: Embedding,
    features: dict[str, Features],
    views: list[Embedding],
    transforms: list[Tensor],
    prompts: Prompts,
    prior: Prior,
    method: Method,
) -> Found:
    """Counterparts of prompts that fit into memory together: one result a view, averaged."""
    results: list[_Result] = []
    for matrix, view in zip(transforms, views, strict=True):
        if view is moving:
            regions = view.to_image(segmenter.decode(view, prompts).logits.sigmoid())
        else:
            seen = transform_prompts(prompts, results[0].moving_regions, matrix, method.marginalisation.margin)
            regions = map_back(view.to_image(segmenter.decode(view, seen).logits.sigmoid()), matrix)
        results.append(_invert(segmenter, regions, moving, fixed, features, prompts, prior, method))

    # Averages over the views that saw the prompt, and where they saw (Sec. 3.2); the shown prompt is the best view's.
    asked, shown = views_seen(prompts, transforms, moving.image_shape)
    per_map = asked.reshape(*asked.shape, *[1] * len(moving.image_shape))
    best = (torch.stack([geometric_mean(result.cues) for result in results]) * asked).argmax(0)
    coordinates = torch.stack([result.inverse.prompts.coordinates for result in results])
    moving_regions = average(torch.stack([r.moving_regions for r in results]), per_map * shown[:, None])
    fixed_regions = average(torch.stack([r.inverse.regions for r in results]), per_map)
    return Found(
        moving_regions=moving_regions,
        fixed_regions=fixed_regions,
        prompts=results[0].inverse.prompts.at(coordinates[best, torch.arange(len(prompts), device=best.device)]),
        cues={name: average(torch.stack([r.cues[name] for r in results]), asked) for name in results[0].cues},
        centres=(region_centres(moving_regions), region_centres(fixed_regions)),
        expected=region_centres(average(torch.stack([r.carried for r in results]), per_map)),
    )


@dataclass(frozen=True)
class _Result:
    """What one view of the moving image gave."""

    moving_regions: Tensor
    carried: Tensor
    inverse: Inverse
    cues: dict[str, Tensor]


def _invert(
    segmenter: Segmenter,
    regions: Tensor,
    moving: Embedding,
    fixed: Embedding,
    features: dict[str, Features],
    prompts: Prompts,
    prior: Prior,
    method: Method,
) -> _Result:
    """Prototype, similarity, inverse prompt and auxiliary prompts for K moving regions `[K, *M]`."""
    there, back = features["fixed"], features["moving"]
    weights = region_weights(moving, on_model_input(regions, moving))
    targets = prototype(back.values, weights)
    similarities = similarity(there.values, targets, there.lengths)
    carried = prior.carry_maps(regions)

    def rating(index: Tensor, candidates: Inverse) -> Tensor:
        cues = {
            "match": candidates.match,
            "quality": candidates.quality,
            "separation": above_chance(separation(similarities[index], candidates.weights)),
            "agreement": soft_dice(candidates.regions, carried[index]).sqrt(),  # the prior knows places, sizes less
        }
        return geometric_mean(cues)

    starts, index = starting_prompts(prior.carry_prompts(prompts), carried, similarities, fixed, method.inversion)
    reach = method.inversion.reach * _extents(carried)
    inverse = invert_prompts(segmenter, fixed, there, targets, starts, index, rating, method.inversion, reach)
    inverse = refine(segmenter, fixed, there.values, targets, carried, inverse, method.auxiliary)

    cues = {
        "match": inverse.match,
        "agreement": soft_dice(inverse.regions, carried),
        "quality": inverse.quality,
        "return": backward_consistency(back, inverse.prototype, weights),
    }
    return _Result(regions, carried, inverse, cues)


def on_model_input(regions: Tensor, embedding: Embedding) -> Tensor:
    """Maps `[N, *image]` resampled to the model input's voxels `[N, *input]`."""
    return resampled(regions, torch.linalg.inv(embedding.to_model), embedding.input_size, padding="border")


def _extents(regions: Tensor) -> Tensor:
    """Sides of the boxes around regions `[K, *S]`, `[K, D]` voxels; a tenth of the image where a region is empty."""
    boxes = [bounding_box(region > 0.5) for region in regions]
    empty = 0.1 * torch.tensor(regions.shape[1:], device=regions.device)
    return torch.stack([empty if box is None else (box[1] - box[0]).clamp(min=2) for box in boxes])


def pair_up(
    found: Found,
    prompts: Prompts,
    given: list[GivenPrompt],
    to_moving: Tensor,
    spacing: Sequence[float],
    trust: Trust,
) -> RegionPairs:
    """Region pairs with confidence (cues times agreement with the other pairs) or "no correspondence".

    Args:
        found: counterparts of K prompts.
        prompts: as the model understood them; given: as they were given (their ids).
        to_moving: matrix from fixed to moving voxels before the fit.
        spacing: of the fixed image.
        trust: settings.
    """
    own = confidence(found.cues)
    size = torch.tensor(spacing, device=own.device)
    fixed_centres = found.centres[1] * size
    moving_centres = transform_points(torch.linalg.inv(to_moving), found.centres[0].T).T * size
    longest = float((torch.tensor(found.fixed_regions.shape[1:], device=own.device) * size).amax())
    usable = own >= trust.floor
    consensus = torch.ones_like(own)
    consensus[usable] = consensus_weights(fixed_centres[usable], moving_centres[usable], own[usable], longest, trust)
    checked = trust.consensus and enough_for_consensus(int(usable.sum()), fixed_centres.shape[1])
    total = own * consensus
    return RegionPairs(
        moving_prompts=prompts,
        fixed_prompts=found.prompts,
        moving_regions=found.moving_regions,
        fixed_regions=found.fixed_regions,
        confidence=torch.where(total >= trust.floor, total, 0.0),
        cues=found.cues | ({"consensus": consensus} if checked else {}),
        found=total >= trust.threshold,
        ids=tuple(p.id for p in given),
    )
