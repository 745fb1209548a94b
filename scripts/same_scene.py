# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Two images of one scene: where their edges say that they lie, however far apart, and whether to believe it.

Features of a segmenter say what things are, and bring different subjects together; they are blind to large motion and
no more precise than their grid. Images of the SAME scene (another day, sensor or stain) share their edges instead. So
there are two hypotheses, and the images decide. Edges of one scene agree in one place and nowhere near it; those of
different subjects agree roughly, and hardly less when shifted a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .correspondence import fit_transformation, level_points
from .geometry import identity_points, sample, transform_points
from .global_search import GlobalSearch, search_starts
from .grid import Grid
from .intensity_terms import StructureTerm
from .objectives import Objective
from .places import Places
from .scene import Scene
from .schedule import Fit
from .structure import device_view
from .terms import Loss


@dataclass(frozen=True)
class SameScene:
    """How the hypothesis of one scene is made and judged.

    Attributes:
        search: of starts.
        align, align_fit: objective and schedule of the affine: every start goes through the first level, the best one
            through the others.
        objective, fit: of the deformation on top of the best one; far stiffer than between subjects.
        fine_objective, fine_fit: of what follows where intensities can be trusted: a map that bends more.
        alike: agreement of edges under the stiff map from which on they can: the sensors see alike.
        size: voxels along the longest side at which edges are compared.
        sharpness: one scene must lose at least this share of its agreement by a shift of `shift`.
        shift: relative to the longest side.
        motion: a scene that has moved as a whole by more (mean over the image, relative to the longest side) is
            believed; what remains of less may be deformation, so a free map is tried beside the stiff one.
        detail: voxels along the longest side at which maps are compared, finer than they were fitted at.
        remainder: share of the stiff map's disagreement of edges (1 - correlation) that the free map must leave at
            most. It has so many more parameters that a small gain is no evidence.
    """

    search: GlobalSearch
    align: Objective
    align_fit: Fit
    objective: Objective
    fit: Fit
    fine_objective: Objective
    fine_fit: Fit
    alike: float = 0.5
    size: int = 256
    sharpness: float = 0.25
    shift: float = 0.01
    motion: float = 0.02
    detail: int = 512
    remainder: float = 0.75

    def settings(self) -> dict[str, Any]:
        """What decides, JSON-able."""
        return {
            "search": asdict(self.search),
            "align": {"objective": self.align.terms, "fit": asdict(self.align_fit)},
            "objective": self.objective.terms,
            "fit": asdict(self.fit),
            "fine": {"objective": self.fine_objective.terms, "fit": asdict(self.fine_fit)},
            **{
                name: getattr(self, name)
                for name in ("alike", "size", "sharpness", "shift", "motion", "detail", "remainder")
            },
        }

    def propose(
        self, scene: Scene, grid: Grid, to_moving: Tensor, free: Callable[[], Tensor]
    ) -> tuple[tuple[Tensor, Tensor] | None, dict[str, float]]:
        """The map under which edges agree best, if it is that of one scene that has moved.

        Args:
            scene: both images and their features.
            grid: of the fixed image; to_moving: from fixed to moving voxels before anything is known.
            free: gives the field `[D, *S]` that deforms freely; only doubtful cases ask for it.

        Returns:
            field and inverse field `[D, *S]`, voxels of the fixed grid (see `geometry`; `to_moving` acts after them),
            or None; and the evidence: agreement of edges in [-1, 1] under the affine, its sharpness, the motion, in
            doubtful cases the remainder, and how far the sensors see alike (see the class).
        """
        scene = seen(scene)
        # The search is a few FFTs of small pictures: not worth a GPU.
        images = scene.fixed.image.cpu(), scene.moving.image.cpu()
        starts = [start.matrix.to(to_moving) for start in search_starts(*images, grid, to_moving.cpu(), self.search)]
        first, rest = (
            replace(self.align_fit, levels=part) for part in (self.align_fit.levels[:1], self.align_fit.levels[1:])
        )
        refined = [self._refined(scene, grid, matrix, first) for matrix in (to_moving, *starts)]
        best = max(refined, key=lambda matrix: self.agreement(scene, grid, matrix))
        best = self._refined(scene, grid, best, rest)
        evidence = self._evidence(scene, grid, to_moving, best)
        if evidence["sharpness"] < self.sharpness:
            return None, evidence
        deformation = fit_transformation(scene, grid, best, self.objective, self.fit)
        ddf, inverse = relative_to(to_moving, best, deformation(grid), deformation.inverse(grid))
        if evidence["motion"] < self.motion:
            stiff_left, free_left = (self._disagreement(scene, grid, to_moving, field) for field in (ddf, free()))
            evidence["remainder"] = free_left / max(stiff_left, 1e-6)
            if evidence["remainder"] <= self.remainder:
                return None, evidence
        evidence["alike"] = 1 - self._disagreement(scene, grid, best, deformation(grid))
        if evidence["alike"] >= self.alike:
            deformation = fit_transformation(scene, grid, best, self.fine_objective, self.fine_fit, initial=deformation)
            ddf, inverse = relative_to(to_moving, best, deformation(grid), deformation.inverse(grid))
        return (ddf, inverse), evidence

    def agreement(self, scene: Scene, grid: Grid, to_moving: Tensor) -> float:
        """How well edges agree under an affine map from fixed to moving voxels, in [-1, 1].

        Their correlation times the root of the share of the fixed image that the moving one covers, as the
        significance of a correlation grows with its evidence.
        """
        points = level_points(grid.coarsened(self.size), grid, to_moving.device)
        moved = transform_points(to_moving, points)
        last = torch.tensor(scene.moving.image.shape[1:], device=moved.device).reshape(-1, *[1] * len(points)) - 1
        covered = ((moved >= 0) & (moved <= last)).all(0).float().mean().item()
        return (1 - self._structure(scene, points, to_moving)(Places(moved)).item()) * math.sqrt(covered)

    @staticmethod
    def _structure(scene: Scene, points: Tensor, to_moving: Tensor) -> Loss:
        return StructureTerm().prepare(replace(scene, to_moving=to_moving), points)

    def _disagreement(self, scene: Scene, grid: Grid, to_moving: Tensor, ddf: Tensor) -> float:
        """1 - correlation of edges under a field `[D, *S]` before `to_moving`, in detail."""
        points = level_points(grid.coarsened(self.detail), grid, ddf.device)
        moved = transform_points(to_moving, points + sample(ddf, points, padding="border"))
        return self._structure(scene, points, to_moving)(Places(moved)).item()

    def _evidence(self, scene: Scene, grid: Grid, to_moving: Tensor, matrix: Tensor) -> dict[str, float]:
        points = level_points(grid.coarsened(self.size), grid, matrix.device)
        loss, side = self._structure(scene, points, matrix), max(grid.shape)
        here = 1 - loss(Places(transform_points(matrix, points))).item()
        steps = torch.cat([torch.eye(len(points)), -torch.eye(len(points))]).to(points) * self.shift * side
        beside = [
            1 - loss(Places(transform_points(matrix, points + s.reshape(-1, *[1] * len(points))))).item() for s in steps
        ]
        moved = transform_points(torch.linalg.inv(to_moving) @ matrix, points) - points
        return {
            "agreement": here,
            "sharpness": 1 - sum(beside) / len(beside) / max(here, 1e-6),
            "motion": moved.norm(dim=0).mean().item() / side,
        }

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
    """The scene without the edge of a device's field of view (see `device_view`)."""
    if scene.fixed.shown is not None:
        return scene
    masks = device_view(scene.fixed.image, scene.moving.image)
    if masks is None:
        return scene
    fixed, moving = (replace(view, shown=mask) for view, mask in zip((scene.fixed, scene.moving), masks, strict=True))
    return replace(scene, fixed=fixed, moving=moving)
