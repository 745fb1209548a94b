# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Dense correspondence (Sec. 2): fit one transformation to many region pairs.

    min_T  sum_t w_t L_t(fixed, moving o T)  +  lambda * bending energy of T  +  mu * membrane energy of T

coarse to fine (`schedule`), by Adam. The terms L_t are in `objectives`, the kinds of T in `transformations`.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from .free_form import BSpline, Dense
from .geometry import identity_points, transform_points
from .grid import Grid
from .kinds import build
from .objectives import Objective, bending_energy, membrane_energy
from .places import Places
from .scene import Scene
from .schedule import Fit, Stage, schedule
from .transformations import Affine, Composite, Linear, Rigid, Transformation
from .weighing import weight_for

logger = logging.getLogger(__name__)


def level_points(grid: Grid, fixed: Grid, device: torch.device) -> Tensor:
    """Where the voxels of a level's grid lie, `[D, *grid.shape]` in voxels of the fixed image (first and last
    coincide).
    """
    return identity_points(grid.shape, device=device) * _steps(grid.shape, fixed).to(device)


def start(fit: Fit, fixed: Grid, device: torch.device, prior: Transformation | None = None) -> Transformation:
    """Where a fit starts: the identity of the kind that `fit` names, or the prior.

    A B-spline or a dense displacement approximates any prior; every other kind continues a prior of its own kind (a
    rigid or affine map its global part), rides on a rigid or affine one, and starts at the identity otherwise.
    """
    controls = next((lv.controls for lv in fit.levels if lv.controls and lv.of(len(fixed.shape))), 4)
    kind = build(fit.kind, fixed, controls).to(device)
    rides = fit.affine_first and not isinstance(kind, Linear)
    transformation = Composite(Affine(len(fixed.shape)).to(device), kind) if rides else kind
    if prior is None:
        return transformation
    if isinstance(kind, Linear) and isinstance(prior, Composite):
        prior = prior.outer  # a global map continues the global part
    if isinstance(prior, Rigid) and not isinstance(kind, Rigid):
        prior = Affine.of(prior)
    if _kinds(prior) == _kinds(transformation):
        return deepcopy(prior)
    if rides and isinstance(prior, Affine):
        return Composite(deepcopy(prior), kind)
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
    stages: slice = slice(None),
) -> Transformation:
    """Minimise the objective over the parameters of a transformation.

    Args:
        scene: both images, their regions and confidences.
        fixed: the fixed image's grid.
        to_moving: matrix from fixed to moving voxels before anything is fitted (headers, centres).
        objective: weighted terms.
        fit: kind and schedule.
        initial: start here instead of at the identity (see `start`); it is not changed.
        stages: of the schedule to go through; a fit that goes on from an earlier one's result ends as one in one go.

    Returns:
        the fitted transformation, parameters detached from the graph.
    """
    device = scene.fixed.image.device
    scene = replace(scene, to_moving=to_moving)
    transformation = start(fit, fixed, device, initial)
    for stage in schedule(fit, fixed, every=isinstance(transformation, Linear))[stages]:
        if stage.level.controls:
            transformation = transformation.refined(stage.level.controls)
        _fit_stage(transformation, stage, scene, fixed, to_moving, objective, fit)
    return transformation.requires_grad_(False)


def _fit_stage(
    transformation: Transformation,
    stage: Stage,
    scene: Scene,
    fixed: Grid,
    to_moving: Tensor,
    objective: Objective,
    fit: Fit,
) -> None:
    level, grid = stage.level, stage.grid
    points = level_points(grid, fixed, scene.fixed.image.device)
    carrier = transformation.carrier(grid)  # a finer grid only interpolates it, so adds nothing to how the map bends
    samples = level_points(carrier, fixed, points.device)
    from_carrier = _steps(carrier.shape, fixed).to(points)
    per_unit, stiffness = carrier.voxels_per_unit(points.device), weight_for(fit.stiffness, len(fixed.shape))
    loss = objective.prepare(scene, points, level.controls)
    back = None
    if transformation.invertible and stage.both_ways:
        back = objective.prepare(scene.swapped(), transform_points(to_moving, points), level.controls)
    active = _parameters(transformation, deform=level.controls > 0)
    affine = min(fit.step / 4, 4 * fit.step / max(1, level.controls))  # more than that could leave what was found
    optimiser = torch.optim.Adam(
        [{"params": [p], "lr": fit.step / max(1, level.controls) if free else affine} for p, free in active],
        betas=(0.9, 0.99),
    )
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, stage.steps)
    with torch.enable_grad():
        for _ in range(stage.steps):
            optimiser.zero_grad()
            ddf = transformation(carrier)
            total = loss(Places(transform_points(to_moving, samples + ddf * from_carrier), grid.shape))
            if back is not None:
                behind = samples + transformation.inverse(carrier) * from_carrier
                total = (total + back(Places(behind, grid.shape))) / 2
            if level.controls:
                total = total + stage.bending * bending_energy(ddf, per_unit)
            if stiffness:
                total = total + stiffness * membrane_energy(ddf, per_unit)
            total.backward()
            optimiser.step()
            annealing.step()


def _steps(shape: tuple[int, ...], fixed: Grid) -> Tensor:
    """Voxels of the fixed image between voxels of a grid over the same extent, `[D, 1, ...]`."""
    steps = [(n - 1) / max(m - 1, 1) for n, m in zip(fixed.shape, shape, strict=True)]
    return torch.tensor(steps).reshape(-1, *[1] * len(shape))


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
