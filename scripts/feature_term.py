# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The term that compares the segmenter's features."""

from __future__ import annotations

from math import inf, prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import as_bool
from .geometry import grid_steps, sample, transform_points
from .places import Places
from .prototypes import centred_features
from .scene import Scene
from .structure import shown
from .terms import Loss, Term
from .weighing import Weight, check_weight, weight_for


def principal_components(fixed: Tensor, moving: Tensor, *, components: int) -> list[Tensor]:
    """Unit features of both images in the basis of their common leading principal components.

    Args:
        fixed, moving: `[C, *g]` (grids may differ).
        components: dimensions kept.

    Returns:
        two grids `[components, *g]` of unit vectors; the basis is common, so cosines compare.
    """
    # Fifty thousand places of each tell the basis as well as all.
    few = [grid.flatten(1)[:, :: max(1, grid[0].numel() // 50_000)] for grid in (fixed, moving)]
    both = torch.cat(few, dim=1)
    _, vectors = torch.linalg.eigh(both @ both.T)  # ascending
    basis = vectors[:, -min(components, len(vectors)) :].T
    return [F.normalize(torch.tensordot(basis, grid, dims=1), dim=0) for grid in (fixed, moving)]


def _enough(cells: Tensor, places: int) -> list[int]:
    """Every how-manieth of the places `[D, *grid]`, in voxels of a feature grid, to look at along each axis.

    No denser than the cells, between which features say nothing, and no more than a number of `places`.
    """
    steps = grid_steps(cells).norm(dim=0).tolist()
    strides = [max(1, int(1 / max(step, 1e-6) + 0.01)) for step in steps]
    while prod(-(-n // stride) for n, stride in zip(cells.shape[1:], strides, strict=True)) > places:
        densest = min(range(len(steps)), key=lambda axis: strides[axis] * steps[axis])
        strides[densest] += 1
    return strides


class Lookup:
    """Multilinear interpolation of a grid `[C, *g]` that does not change; beyond its border its border.

    All channels of a cell lie together in memory, which `grid_sample` cannot use: in volumes on a CPU this is ten times
    as fast.
    """

    def __init__(self, grid: Tensor) -> None:
        self.shape = tuple(grid.shape[1:])
        self.rows = grid.flatten(1).T.contiguous()

    def __call__(self, points: Tensor) -> Tensor:
        """`[n, C]` values at points `[D, *T]`, voxels of the grid, n of them."""
        cells = points.new_zeros((1, points[0].numel()), dtype=torch.long)
        weights = torch.ones_like(cells, dtype=self.rows.dtype)
        for along, size in zip(points.flatten(1), self.shape, strict=True):
            along = along.clamp(0, size - 1)
            first = along.detach().floor().clamp(max=max(size - 2, 0))
            share = (along - first).to(weights.dtype)
            cells = cells * size + first.long()
            cells = torch.cat([cells, cells + min(1, size - 1)])  # the corners so far, each before and after
            weights = torch.cat([weights * (1 - share), weights * share])
        corners = cells.T.contiguous()
        return F.embedding_bag(corners, self.rows, per_sample_weights=weights.T.contiguous(), mode="sum")


class FeatureTerm(Term):
    """1 - mean cosine between the segmenter's features, each image's centred on its own mean.

    Features of an empty background tell where in the frame it is, not what it is: they stay where they are when what is
    seen moves or turns, and hold it back.

    Args:
        weight, controls: see `Term`.
        levels: which feature grids of the encoder, counted as in `Embedding.levels`; their cosines are averaged.
        components: principal components kept of each grid (fewer are faster and less noisy).
        centre: subtract each image's mean feature first.
        places: that are looked at, at most; bounds the time in volumes.
        background: weight of a place where the fixed image shows nothing (`structure.shown`), relative to others; or
            [in pictures, in volumes].
    """

    def __init__(
        self,
        weight: Weight = 1.0,
        controls: tuple[float, float] = (0, inf),
        levels: tuple[int, ...] = (-1,),
        components: int = 32,
        centre: bool = True,
        places: int = 20_000,
        background: Weight = 1.0,
    ) -> None:
        super().__init__(weight, controls)
        check_weight(background, "features: background")
        self.levels, self.components, self.centre = tuple(levels), components, as_bool(centre, "features: centre")
        self.places, self.background = places, background

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        pairs, background = [], weight_for(self.background, len(points))
        if background != 1 and "shown" not in scene.known:
            grey = (view.image.clamp(0, 1) for view in (scene.fixed, scene.moving))  # a CT's padding is no darkness
            scene.known["shown"] = [shown(image)[None].float() for image in grey]
        for level in self.levels:
            name = f"principal components {level} {self.components} {self.centre}"
            if name not in scene.known:
                both = (
                    centred_features(v.embedding, centre=self.centre, level=level) for v in (scene.fixed, scene.moving)
                )
                scene.known[name] = [Lookup(g) for g in principal_components(*both, components=self.components)]
            grids = scene.known[name]
            fixed_matrix, matrix = (
                view.embedding.to_grid(grid.shape)
                for view, grid in zip((scene.fixed, scene.moving), grids, strict=True)
            )
            every = _enough(transform_points(fixed_matrix, points), self.places)
            few = points[:, *[slice(None, None, stride) for stride in every]]
            weights = torch.ones_like(few[0]).flatten()
            if background != 1:
                weights = background + (1 - background) * sample(scene.known["shown"][0], few).flatten()
            fixed = grids[0](transform_points(fixed_matrix, few))
            pairs.append((fixed, grids[1], matrix, every, weights / weights.sum().clamp(min=1e-6)))

        def loss(moved: Places) -> Tensor:
            cosines = [
                (fixed * grid(moved.through(matrix, every))).sum(1) @ weights
                for fixed, grid, matrix, every, weights in pairs
            ]
            return 1 - torch.stack(cosines).mean()

        return loss
