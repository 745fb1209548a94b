# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Where else the coarse prior may start in images that nobody has brought into place: turned, scaled and shifted.

The prior follows its features downhill, to the nearest optimum. Between subjects a turn of 20 degrees or a shift of a
tenth of the image may lead it to a wrong one. So features are compared over turns, scales (of pictures) and all shifts.
The best of these start a prior each, in volumes after a rigid fit, whose steps are larger than those of the prior's
affine; the one under which most of the images is alike is fitted to the end. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .correspondence import fit_transformation, level_points
from .errors import InputError
from .geometry import sample, transform_points
from .grid import Grid
from .objectives import Objective
from .prealignment import score, scores_of_shifts
from .scene import Scene
from .schedule import Fit
from .transformations import Affine, Linear, Rigid, Transformation
from .weighing import weight_for


@dataclass(frozen=True)
class PriorStarts:
    """How starts of the prior are searched and chosen.

    Attributes:
        size: cells along the longest side at which features are compared: a number, or [pictures, volumes].
        angles: turns of pictures tried, degrees.
        scales: of the moving relative to the fixed picture.
        keep: starts of pictures beside the one without any change.
        turns: of volumes about each axis, degrees.
        levels: of the prior that each start goes through before one is chosen: a number, or [pictures, volumes].
        apart: starts nearer to a better one are dropped, relative to the longest side (mean over the corners).
        gain: by which the prior of another start must be better than that of none; little better is as good.
        pose: the rigid fit that leads from the best turn to the other start of volumes; None: they have none.
    """

    size: int | Sequence[int] = 48
    angles: tuple[float, ...] = (-30, -20, -10, 0, 10, 20, 30)
    scales: tuple[float, ...] = (0.8, 1.0, 1.25)
    keep: int = 3
    turns: tuple[float, ...] = (-20, 20)
    levels: int | Sequence[int] = 4
    apart: float = 0.1
    gain: float = 1.02
    pose: Fit | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.keep, int) or isinstance(self.keep, bool) or self.keep < 0:
            raise InputError(f"prior_starts: keep is {self.keep!r}, expected a whole number from 0 on")
        for name, fewest in (("levels", 1), ("size", 8)):
            value = getattr(self, name)
            both = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= fewest for n in both):
                raise InputError(
                    f"prior_starts: {name} is {value!r}, expected a whole number from {fewest} on, or two: "
                    "[pictures, volumes]"
                )
        if self.pose is not None and self.pose.kind != "rigid":
            raise InputError(f"prior_starts: pose is a fit of kind '{self.pose.kind}', expected 'rigid'")
        for name, least in (("angles", -math.inf), ("turns", -math.inf), ("scales", 0.0)):
            values = getattr(self, name)
            numbers = isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values)
            if not numbers or not values or not all(least < v < math.inf for v in values):
                expected = "numbers above 0" if name == "scales" else "numbers"
                raise InputError(f"prior_starts: {name} are {values!r}, expected a list of {expected}")

    def fit(
        self, scene: Scene, grid: Grid, to_moving: Tensor, objective: Objective, fit: Fit
    ) -> tuple[Transformation, dict[str, float]]:
        """The prior of the best start.

        Args:
            scene: both images embedded.
            grid: the fixed image's; to_moving: from fixed to moving voxels before anything is fitted.
            objective, fit: the prior's; its kind must have an affine of its own.

        Returns:
            the prior; where it started, as "angle" (degrees), "scale" and "shift" (relative to the longest side).
        """
        how = scene, grid, to_moving, objective, fit
        levels = int(weight_for(self.levels, len(grid.shape)))
        first, rest = slice(levels), slice(levels, None)
        points = level_points(grid.coarsened(64, fit.voxels), grid, to_moving.device)
        starts = self.starts(scene, grid, to_moving) if len(grid.shape) == 2 else self._posed(*how[:-1])
        best, found, most = None, {"angle": 0.0, "scale": 1.0, "shift": 0.0}, 0.0
        for start in (None, *starts):
            prior = fit_transformation(*how, initial=start, stages=first)
            moved = points + sample(prior(grid), points, padding="border")
            alike = score(scene, points, transform_points(to_moving, moved))
            if best is None or alike > most:
                best, most = prior, alike * (self.gain if best is None else 1.0)
                found = found if start is None else _told(start)
        return fit_transformation(*how, initial=best, stages=rest), found

    def _posed(self, scene: Scene, grid: Grid, to_moving: Tensor, objective: Objective) -> list[Affine]:
        """The pose of a volume, if it is asked for: from the turn and shift under which features are most alike."""
        if self.pose is None:
            return []
        best, most = _turned(0, 0.0), -math.inf
        for axis, degrees in ((0, 0.0), *product(range(3), self.turns)):
            turned = _turned(axis, degrees).to(to_moving.device)
            value, shift = self._shifts(scene, grid, to_moving, turned)[0]
            if value > most:
                best, most = turned, value
                best.shift.copy_(shift)
        pose = fit_transformation(scene, grid, to_moving, objective, self.pose, initial=best)
        assert isinstance(pose, Rigid)
        return [Affine.of(pose)]

    def starts(self, scene: Scene, grid: Grid, to_moving: Tensor) -> list[Affine]:
        """Similarities under which features of pictures are most alike, best first, all different and none near the
        identity.
        """
        device = to_moving.device
        corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=device) for _ in grid.shape]).T
        corners = corners * torch.tensor(grid.extent, device=device)[:, None] / grid.unit
        found: list[tuple[float, Affine]] = []
        for scale, angle in product(self.scales, self.angles):
            for value, shift in self._shifts(scene, grid, to_moving, _similarity(angle, scale).to(device)):
                found.append((value, _similarity(angle, scale, shift)))
        chosen: list[Affine] = []
        places = [corners]
        for _, start in sorted(found, key=lambda entry: -entry[0]):
            there = start.matrix() @ corners + start.shift[:, None]
            if len(chosen) < self.keep and all((there - p).norm(dim=0).mean() > self.apart for p in places):
                chosen.append(start)
                places.append(there)
        return chosen

    def _shifts(self, scene: Scene, grid: Grid, to_moving: Tensor, start: Linear) -> list[tuple[float, Tensor]]:
        """The best shifts `[D]` in units behind a linear map about the middle, each with how alike features are."""
        dims, device = len(grid.shape), to_moving.device
        per_unit = grid.voxels_per_unit(device).flatten()
        middle = torch.tensor([(n - 1) / 2 for n in grid.shape], device=device)
        linear = per_unit[:, None] * start.matrix() / per_unit
        matrix = torch.eye(dims + 1, device=device)
        matrix[:dims, :dims], matrix[:dims, dims] = linear, middle - linear @ middle
        scores, step = scores_of_shifts(scene, to_moving @ matrix, int(weight_for(self.size, dims)))
        return [(value, linear @ (cells.to(device) * step) / per_unit) for value, cells in _peaks(scores)]


def _peaks(scores: Tensor, count: int = 3) -> list[tuple[float, Tensor]]:
    """Highest local peaks of scores of shifts (see `scores_of_shifts`): value and shift in cells `[D]`."""
    pool = (F.max_pool2d, F.max_pool3d)[scores.ndim - 2]
    peaks = torch.where(pool(scores[None], 5, 1, 2)[0] == scores, scores, -1.0)
    values, places = peaks.flatten().topk(count)
    shape = torch.tensor(scores.shape)
    cells = torch.stack(torch.unravel_index(places, scores.shape), dim=1)
    return list(zip(values.tolist(), torch.where(2 * cells < shape, cells, cells - shape), strict=True))


def _similarity(degrees: float, scale: float, shift: Tensor | None = None) -> Affine:
    """Turn and scaling about the centre, then a shift `[2]` in units."""
    angle, size = math.radians(degrees), math.log(scale)
    start = Affine(2).requires_grad_(False)
    start.logarithm.copy_(torch.tensor([[size, -angle], [angle, size]]))
    if shift is not None:
        start = start.to(shift.device)
        start.shift.copy_(shift)
    return start


def _turned(axis: int, degrees: float) -> Rigid:
    """Turn of a volume about the centre and an axis."""
    start = Rigid(3).requires_grad_(False)
    start.angles[2 - axis] = math.radians(degrees)  # told by the planes (0, 1), (0, 2), (1, 2)
    return start


def _told(start: Affine) -> dict[str, float]:
    size, turn = start.logarithm.diagonal().mean().item(), (start.logarithm - start.logarithm.T) / 2
    angle = (turn[1, 0] if start.dims == 2 else turn.norm() / 2**0.5).item()
    told = {"angle": math.degrees(angle), "scale": math.exp(size), "shift": start.shift.norm().item()}
    return {name: round(value, 4) for name, value in told.items()}
