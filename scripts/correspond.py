# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""From prompts on the moving image to region pairs: Sections 3.1 to 3.3 in order, each step in a module of its name.

segment X -> prototype -> similarity on Y -> inverse prompt -> segment Y -> auxiliary prompts
\\________________ repeated under J transforms of X, probability maps averaged ______________/
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .auxiliary_prompts import Auxiliary, refine
from .geometry import sample, transform_points, warp
from .marginalisation import Marginalisation, draw_transforms, map_back, transform_image, transform_prompts
from .prompt_inversion import Inverse, Inversion, invert_prompts, starting_prompts
from .prompts import GivenPrompt, Prompts
from .prototypes import area_weights, centred_features, prototype, similarity
from .region_pairs import Trust, backward_consistency, confidence, consensus_weights, region_centres, soft_dice
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


@dataclass(frozen=True)
class Prior:
    """Where things on the moving image are expected on the fixed one, before any prompt is asked.

    Attributes:
        ddf: `[D, *S]` voxels of the fixed grid; inverse: `[D, *S]` its inverse; to_moving: `[D+1, D+1]` (see
            `geometry`).
    """

    ddf: Tensor
    inverse: Tensor
    to_moving: Tensor

    def carry_maps(self, maps: Tensor) -> Tensor:
        """Maps `[K, *M]` of the moving image on the fixed grid `[K, *S]`."""
        return warp(maps, self.ddf, self.to_moving)

    def carry_points(self, points: Tensor) -> Tensor:
        """Points `[..., D]` of the moving image in voxels of the fixed one."""
        start = transform_points(torch.linalg.inv(self.to_moving), points.movedim(-1, 0))
        return (start + sample(self.inverse, start.flatten(1), padding="border").reshape(start.shape)).movedim(0, -1)


@dataclass(frozen=True)
class Found:
    """Counterparts of K prompts.

    Attributes:
        moving_regions: `[K, *M]` and fixed_regions: `[K, *S]`, probabilities on the images' own grids.
        prompts: K prompts on the fixed image.
        cues: of confidence, each `[K]` in [0, 1], by name.
    """

    moving_regions: Tensor
    fixed_regions: Tensor
    prompts: Prompts
    cues: dict[str, Tensor]


def correspond(
    segmenter: Segmenter,
    moving_image: Tensor,
    moving: Embedding,
    fixed: Embedding,
    prompts: Prompts,
    prior: Prior,
    method: Method,
    generator: torch.Generator,
) -> Found:
    """Find the counterparts of K prompts.

    Args:
        segmenter: the model.
        moving_image: `[C, *M]` raw intensities; moving, fixed: embeddings of both images.
        prompts: K prompts on the moving image, of a kind the model was trained with.
        prior: coarse map.
        method: settings.
        generator: source of randomness.

    Returns:
        K regions on either side, the prompts found on the fixed image and the cues of confidence.
    """
    fixed_features = centred_features(fixed, centre=method.centre)
    moving_features = centred_features(moving, centre=method.centre)
    grid = tuple(moving_features.shape[1:])
    moving_maps: list[Tensor] = []
    fixed_maps: list[Tensor] = []
    results: list[Inverse] = []
    cues: list[dict[str, Tensor]] = []

    transforms = draw_transforms(method.marginalisation, moving.image_shape, generator)
    views = (
        [moving, *segmenter.encode([transform_image(moving_image, a) for a in transforms[1:]])]
        if transforms[1:]
        else [moving]
    )
    for matrix, view in zip(transforms, views, strict=True):
        seen = (
            prompts
            if view is moving
            else transform_prompts(prompts, moving_maps[0], matrix, method.marginalisation.margin)
        )
        regions = view.to_image(segmenter.decode(view, seen).logits.sigmoid())
        regions = regions if view is moving else map_back(regions, matrix)

        weights = area_weights(on_model_input(regions, moving), grid)
        targets = prototype(moving_features, weights)
        similarities = similarity(fixed_features, targets)
        carried = prior.carry_maps(regions)

        def score(index: Tensor, candidates: Inverse, carried: Tensor = carried) -> Tensor:
            agreement = soft_dice(fixed.to_image(candidates.probability), carried[index])
            return confidence({"match": candidates.match, "agreement": agreement, "quality": candidates.quality})

        carried_points = prior.carry_points(prompts.coordinates)
        starts, index = starting_prompts(prompts, carried, carried_points, similarities, fixed, method.inversion)
        inverse = invert_prompts(
            segmenter,
            fixed,
            fixed_features,
            targets,
            starts,
            index,
            score,
            method.inversion,
            _reach(carried, method.inversion),
        )
        inverse = refine(segmenter, fixed, fixed_features, targets, carried, inverse, method.auxiliary)

        found = fixed.to_image(inverse.probability)
        found_prototypes = prototype(fixed_features, area_weights(inverse.probability, tuple(fixed_features.shape[1:])))
        cues.append(
            {
                "match": inverse.match,
                "agreement": soft_dice(found, carried),
                "quality": inverse.quality,
                "return": backward_consistency(moving_features, found_prototypes, weights),
            }
        )
        moving_maps.append(regions)
        fixed_maps.append(found)
        results.append(inverse)

    # The prompt that is shown is the best view's; maps and cues are averaged over all views (Sec. 3.2).
    scores = torch.stack([confidence(cue) for cue in cues])
    best = scores.argmax(0)
    coordinates = torch.stack([result.prompts.coordinates for result in results])
    shown = results[0].prompts.at(coordinates[best, torch.arange(len(prompts), device=best.device)])
    mean_cues = {name: torch.stack([cue[name] for cue in cues]).mean(0) for name in cues[0]}
    return Found(torch.stack(moving_maps).mean(0), torch.stack(fixed_maps).mean(0), shown, mean_cues)


def on_model_input(regions: Tensor, embedding: Embedding) -> Tensor:
    """Maps `[N, *image]` resampled to the model input's voxels `[N, *input]`, zero in the padding."""
    from_input = torch.linalg.inv(embedding.to_model)
    axes = [torch.arange(n, dtype=torch.float32, device=regions.device) for n in embedding.input_size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    inside = embedding.inside(embedding.input_size)
    return sample(regions, transform_points(from_input, points), padding="border") * inside


def _reach(carried: Tensor, how: Inversion) -> Tensor:
    """`[K, D]` voxels: the longest step of a prompt coordinate, from the extent of each carried region."""
    grid_extent = torch.tensor(carried.shape[1:], device=carried.device, dtype=torch.float32)
    # A uniform bar of length L has the standard deviation L / sqrt(12) along its axis.
    axes = [torch.arange(n, device=carried.device, dtype=torch.float32) for n in carried.shape[1:]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    weights = carried[:, None]
    dims = tuple(range(2, points.ndim))
    total = weights.sum(dims).clamp(min=1e-6)
    mean = (points * weights).sum(dims) / total
    variance = ((points - mean.reshape(*mean.shape, *[1] * len(dims))).square() * weights).sum(dims) / total
    return how.reach * torch.minimum((12 * variance).sqrt().clamp(min=2.0), grid_extent)


def pair_up(found: Found, prompts: Prompts, given: list[GivenPrompt], to_moving: Tensor, trust: Trust) -> RegionPairs:
    """Region pairs with confidence: cues, times agreement with the other pairs; "no correspondence" below the
    threshold.

    Args:
        found: counterparts of K prompts.
        prompts: as the model understood them; given: as they were given (their ids).
        to_moving: matrix from fixed to moving voxels before the fit.
        trust: settings.
    """
    own = confidence(found.cues)
    fixed_centres = region_centres(found.fixed_regions)
    moving_centres = transform_points(torch.linalg.inv(to_moving), region_centres(found.moving_regions).T).T
    longest = max(found.fixed_regions.shape[1:])
    usable = own >= trust.threshold
    consensus = torch.ones_like(own)
    consensus[usable] = consensus_weights(fixed_centres[usable], moving_centres[usable], own[usable], longest, trust)
    total = own * consensus
    kept = total >= trust.threshold
    return RegionPairs(
        moving_prompts=prompts,
        fixed_prompts=found.prompts,
        moving_regions=found.moving_regions,
        fixed_regions=found.fixed_regions,
        confidence=torch.where(kept, total, 0.0),
        cues={**found.cues, "consensus": consensus},
        found=kept,
        ids=tuple(p.id for p in given),
    )
