# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Two images of one scene: where their edges say that they lie, however far apart, and whether to believe it.

Features of a segmenter say what things are, and bring different subjects together; they are blind to large motion and
no more precise than their grid. Images of the SAME scene (another day, sensor or stain) share their edges instead. So
there are two hypotheses, and the images decide: the map that makes edges agree better over what both images show.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .correspondence import Fit, fit_transformation, level_points
from .geometry import identity_points, sample, transform_points
from .global_search import GlobalSearch, search_starts
from .objectives import Objective, StructureTerm
from .scene import Scene
from .structure import standing_view
from .transformations import Grid


@dataclass(frozen=True)
class SameScene:
    """How the hypothesis of one scene is made and judged.

    Attributes:
        search: of starts.
        align, align_fit: objective and schedule of the affine: every start goes through the first level, the best one
            through the others.
        objective, fit: of the deformation on top of the best one; far stiffer than between subjects.
        size: voxels along the longest side at which edges are compared.
    """

    search: GlobalSearch
    align: Objective
    align_fit: Fit
    objective: Objective
    fit: Fit
    size: int = 256

    def settings(self) -> dict[str, Any]:
        """What decides, JSON-able."""
        return {
            "search": asdict(self.search),
            "align": {"objective": self.align.terms, "fit": asdict(self.align_fit)},
            "objective": self.objective.terms,
            "fit": asdict(self.fit),
            "size": self.size,
        }

    def propose(self, scene: Scene, grid: Grid, to_moving: Tensor) -> tuple[Tensor, Tensor]:
        """The map under which edges agree best.

        Args:
            scene: both images and their features.
            grid: of the fixed image; to_moving: from fixed to moving voxels before anything is known.

        Returns:
            field and inverse field `[D, *S]`, voxels of the fixed grid (see `geometry`; `to_moving` acts after them).
        """
        scene = seen(scene)
        starts = search_starts(scene.fixed.image, scene.moving.image, grid, to_moving, self.search)
        first, rest = (
            replace(self.align_fit, levels=part) for part in (self.align_fit.levels[:1], self.align_fit.levels[1:])
        )
        refined = [self._refined(scene, grid, matrix, first) for matrix in (to_moving, *(s.matrix for s in starts))]
        still = torch.zeros(len(grid.shape), *grid.shape, device=to_moving.device)
        best = max(refined, key=lambda matrix: self.agreement(scene, grid, matrix, still))
        best = self._refined(scene, grid, best, rest)
        deformation = fit_transformation(scene, grid, best, self.objective, self.fit)
        return relative_to(to_moving, best, deformation(grid), deformation.inverse(grid))

    def agreement(self, scene: Scene, grid: Grid, to_moving: Tensor, ddf: Tensor) -> float:
        """How well edges agree under a map, in [-1, 1].

        Their correlation times the root of the share of the fixed image that the moving one covers, as the
        significance of a correlation grows with its evidence.
        """
        points = level_points(grid.coarsened(self.size), grid, ddf.device)
        moved = transform_points(to_moving, points + sample(ddf, points))
        last = torch.tensor(scene.moving.image.shape[1:], device=ddf.device).reshape(-1, *[1] * len(points)) - 1
        covered = ((moved >= 0) & (moved <= last)).all(0).float().mean().item()
        scene = replace(seen(scene), to_moving=to_moving)
        return (1 - StructureTerm().prepare(scene, points)(moved).item()) * math.sqrt(covered)

    def _refined(self, scene: Scene, grid: Grid, to_moving: Tensor, fit: Fit) -> Tensor:
        fitted = fit_transformation(scene, grid, to_moving, self.align, fit)
        corners = torch.cartesian_prod(*[torch.tensor([0.0, n - 1.0]) for n in grid.shape]).T.to(to_moving)
        places = transform_points(to_moving, corners + sample(fitted(grid), corners))
        ones = torch.cat([corners, torch.ones_like(corners[:1])])
        matrix = torch.eye(len(ones), device=places.device)
        matrix[:-1] = torch.linalg.lstsq(ones.T.double(), places.T.double()).solution.T.to(matrix)
        return matrix


def relative_to(to_moving: Tensor, matrix: Tensor, ddf: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Field and inverse field `[D, *S]` before `to_moving` that mean the same as the given ones before `matrix`."""
    identity = identity_points(ddf.shape[1:], device=ddf.device)
    ahead = (torch.linalg.inv(to_moving.double()) @ matrix.double()).float()
    points = transform_points(torch.linalg.inv(ahead), identity)
    back = points + sample(inverse, points, padding="border")
    return transform_points(ahead, identity + ddf) - identity, back - identity


def seen(scene: Scene) -> Scene:
    """The scene without a dark surround that stands still while the content moves (see `standing_view`)."""
    if scene.fixed.shown is not None:
        return scene
    masks = standing_view(scene.fixed.image, scene.moving.image)
    if masks is None:
        return scene
    fixed, moving = (replace(view, shown=mask) for view, mask in zip((scene.fixed, scene.moving), masks, strict=True))
    return replace(scene, fixed=fixed, moving=moving)
