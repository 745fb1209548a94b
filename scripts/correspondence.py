# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Dense correspondence (Sec. 2): fit one transformation to many region pairs.

    min_T  sum_t w_t L_t(fixed, moving o T)  +  lambda * bending energy of T  +  mu * membrane energy of T

coarse to fine, by Adam. The terms L_t are in `objectives`, the kinds of T in `transformations`.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor

from .errors import InputError, as_bool
from .free_form import BSpline, Dense
from .geometry import identity_points, transform_points
from .grid import Grid
from .kinds import build
from .objectives import Objective, bending_energy, membrane_energy
from .scene import Scene
from .transformations import Affine, Composite, Linear, Transformation
from .weighing import Weight, check_weight, weight_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """One step from coarse to fine.

    Attributes:
        size: voxels along the longest side of the sampling grid.
        controls: control intervals along the longest side of a free-form transformation; 0 fits the affine alone. A
            level with fewer than 1.5 voxels for each, because the image or the `most` voxels of a grid allow no more,
            is left out.
        steps: Adam steps.
    """

    size: int
    controls: int
    steps: int


@dataclass(frozen=True)
class Fit:
    """How a transformation is fitted.

    Attributes:
        kind: "rigid", "affine", "bspline", "dense" or "svf".
        levels: coarse to fine. Global kinds use the levels' size and steps only.
        smoothness: lambda, weight of the bending energy with lengths measured in the finest level's control intervals:
            bends that its grid can just express cost the same in any fit. Levels beyond `voxels` measure in their own.
            This and `stiffness`: a number, or one for pictures and one for volumes.
        stiffness: mu; it holds the affine back as well, where little else does.
        step: Adam's step in units of the longest side at `controls` = 1; finer grids take proportionally smaller steps.
        affine_first: let free-form kinds ride on an affine.
        voxels: of a sampling grid at most; bounds time and memory in volumes.
        most: voxels of a grid whose control intervals would have fewer than 1.5 of them otherwise; None: `voxels`.
        both_ways: levels of so many controls or more compare the images in both directions, so that the result depends
            less on which of them is fixed; at twice the time, and for kinds with an exact inverse only (not B-splines
            and dense displacements).
    """

    kind: str = "svf"
    levels: list[Level] = field(default_factory=list)
    smoothness: Weight = 1e-2
    stiffness: Weight = 0.0
    step: float = 0.02
    affine_first: bool = True
    voxels: int = 270_000
    most: int | None = None
    both_ways: int | None = None

    def __post_init__(self) -> None:
        try:
            levels = [level if isinstance(level, Level) else Level(**level) for level in self.levels]
        except TypeError as error:
            raise InputError(
                f"fit: levels are {self.levels!r}, expected e.g. [{{'size': 64, 'controls': 16, 'steps': 40}}]"
            ) from error
        if not all(level.size > 1 and level.controls >= 0 and level.steps > 0 for level in levels):
            raise InputError(f"fit: levels are {levels}, expected sizes above 1, controls from 0 and steps from 1 on")
        for name in ("smoothness", "stiffness"):
            check_weight(getattr(self, name), f"fit: {name}")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "affine_first", as_bool(self.affine_first, "fit: affine_first"))
        kind = build(self.kind, Grid((4, 4), (1.0, 1.0)), 1)  # an unknown kind fails here, before any work
        if not self.affine_first and not isinstance(kind, Linear) and not all(level.controls for level in levels):
            raise InputError("fit: a level of 0 controls fits the affine alone, which affine_first: false leaves out")


def level_points(grid: Grid, fixed: Grid, device: torch.device) -> Tensor:
    """Where the voxels of a level's grid lie, `[D, *grid.shape]` in voxels of the fixed image (first and last
    coincide).
    """
    steps = [(n - 1) / max(m - 1, 1) for n, m in zip(fixed.shape, grid.shape, strict=True)]
    return identity_points(grid.shape, device=device) * torch.tensor(steps, device=device).reshape(
        -1, *[1] * len(grid.shape)
    )


def start(fit: Fit, fixed: Grid, device: torch.device, prior: Transformation | None = None) -> Transformation:
    """Where a fit starts: the identity of the kind that `fit` names, or the prior.

    A B-spline or a dense displacement approximates any prior; every other kind continues a prior of its own kind (a
    rigid or affine map its global part) and starts at the identity otherwise.
    """
    controls = next((level.controls for level in fit.levels if level.controls), 4)
    kind = build(fit.kind, fixed, controls).to(device)
    rides = fit.affine_first and not isinstance(kind, Linear)
    transformation = Composite(Affine(len(fixed.shape)).to(device), kind) if rides else kind
    if prior is None:
        return transformation
    if isinstance(kind, Linear) and isinstance(prior, Composite):
        prior = prior.outer  # a global map continues the global part
    if _kinds(prior) == _kinds(transformation):
        return deepcopy(prior)
    if isinstance(kind, BSpline | Dense):
        kind.approximate(prior(fixed), fixed)
    else:
        logger.warning("start: a fit of kind '%s' cannot continue the prior; it starts at the identity", fit.kind)
    return transformation


def _kinds(transformation: Transformation) -> list[type]:
    parts = [transformation.outer, transformation.inner] if isinstance(transformation, Composite) else [transformation]
    return [type(part) for part in parts]


def fit_transformation(
    scene: Scene,
    fixed: Grid,
    to_moving: Tensor,
    objective: Objective,
    fit: Fit,
    *,
    initial: Transformation | None = None,
) -> Transformation:
    """Minimise the objective over the parameters of a transformation.

    Args:
        scene: both images, their regions and confidences.
        fixed: the fixed image's grid.
        to_moving: matrix from fixed to moving voxels before anything is fitted (headers, centres).
        objective: weighted terms.
        fit: kind and schedule.
        initial: start here instead of at the identity (see `start`); it is not changed.

    Returns:
        the fitted transformation, parameters detached from the graph.
    """
    device = scene.fixed.image.device
    scene = replace(scene, to_moving=to_moving)
    transformation = start(fit, fixed, device, initial)
    for level, grid, bending in _schedule(fit, fixed, every=isinstance(transformation, Linear)):
        if level.controls:
            transformation = transformation.refined(level.controls)
        _fit_level(transformation, level, grid, scene, fixed, to_moving, objective, fit, bending)
    return transformation.requires_grad_(False)


def _schedule(fit: Fit, fixed: Grid, *, every: bool = False) -> list[tuple[Level, Grid, float]]:
    """Levels with their sampling grids and weights of the bending energy.

    The first level always, of the others those whose control intervals hold 1.5 voxels at least (`every`: all).
    """
    usual, beyond = [], []
    for level in fit.levels:
        grid, needed = fixed.coarsened(level.size, fit.voxels), 1.5 * level.controls
        if every or not usual or max(grid.shape) >= needed:
            usual.append((level, grid))
            continue
        grid = fixed.coarsened(min(level.size, ceil(needed)), fit.most or fit.voxels)
        if max(grid.shape) >= needed:
            beyond.append((level, grid))
    finest = max([1, *(level.controls for level, _ in usual)])
    smoothness = weight_for(fit.smoothness, len(fixed.shape))
    return [(level, grid, smoothness / max(finest, level.controls) ** 2) for level, grid in [*usual, *beyond]]


def _fit_level(
    transformation: Transformation,
    level: Level,
    grid: Grid,
    scene: Scene,
    fixed: Grid,
    to_moving: Tensor,
    objective: Objective,
    fit: Fit,
    bending: float,
) -> None:
    points = level_points(grid, fixed, scene.fixed.image.device)
    scale = torch.tensor([(n - 1) / max(m - 1, 1) for n, m in zip(fixed.shape, grid.shape, strict=True)]).to(points)
    scale = scale.reshape(-1, *[1] * (points.ndim - 1))
    per_unit, stiffness = grid.voxels_per_unit(points.device), weight_for(fit.stiffness, len(fixed.shape))
    loss = objective.prepare(scene, points, level.controls)
    back = None
    if transformation.invertible and fit.both_ways is not None and level.controls >= fit.both_ways:
        back = objective.prepare(scene.swapped(), transform_points(to_moving, points), level.controls)
    active = _parameters(transformation, deform=level.controls > 0)
    optimiser = torch.optim.Adam(
        [{"params": [p], "lr": fit.step / max(1, level.controls if free else 4)} for p, free in active],
        betas=(0.9, 0.99),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, level.steps)
    with torch.enable_grad():
        for _ in range(level.steps):
            optimiser.zero_grad()
            ddf = transformation(grid)
            total = loss(transform_points(to_moving, points + ddf * scale))
            if back is not None:
                total = (total + back(points + transformation.inverse(grid) * scale)) / 2
            if level.controls:
                total = total + bending * bending_energy(ddf, per_unit)
            if stiffness:
                total = total + stiffness * membrane_energy(ddf, per_unit)
            total.backward()
            optimiser.step()
            schedule.step()


def _parameters(transformation: Transformation, *, deform: bool) -> list[tuple[Tensor, bool]]:
    """Parameters to optimise at a level, each with whether it belongs to a free-form kind."""
    free = {
        id(p)
        for m in transformation.modules()
        if not isinstance(m, Linear | Composite)
        for p in m.parameters(recurse=False)
    }
    chosen = [p for p in transformation.parameters() if deform or id(p) not in free]
    for p in transformation.parameters():
        p.requires_grad_(any(p is c for c in chosen))
    return [(p, id(p) in free) for p in chosen]
