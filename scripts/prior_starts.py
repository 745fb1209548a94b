# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Where else the coarse prior may start in images that nobody has brought into place: turned, scaled and shifted.

The prior follows its features downhill, to the nearest optimum. Between subjects a turn of 20 degrees or a shift of a
tenth of the image may lead it to a wrong one. So in pictures features are compared over turns, scales and all shifts;
volumes, which `prealignment` shifts, are turned as a whole, in larger steps than the prior's affine. The best of these
start a prior each, and the one under which most of the images is alike is fitted to the end. Not in the paper.
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
from .transformations import Affine, Rigid, Transformation
from .weighing import weight_for


@dataclass(frozen=True)
class PriorStarts:
    """How starts of the prior are searched and chosen.

    Attributes:
        size: cells along the longest side at which features of pictures are compared.
        angles: turns tried, degrees.
        scales: of the moving relative to the fixed image.
        keep: starts beside the one without any change.
        levels: of the prior that each start goes through before one is chosen: a number, or [pictures, volumes].
        apart: starts nearer to a better one are dropped, relative to the longest side (mean over the corners).
        gain: by which the prior of another start must be better than that of none; little better is as good.
        pose: the rigid fit that leads to the other start of volumes; None: they have none.
    """

    size: int = 48
    angles: tuple[float, ...] = (-30, -20, -10, 0, 10, 20, 30)
    scales: tuple[float, ...] = (0.8, 1.0, 1.25)
    keep: int = 3
    levels: int | Sequence[int] = 4
    apart: float = 0.1
    gain: float = 1.02
    pose: Fit | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.keep, int) or isinstance(self.keep, bool) or self.keep < 0:
            raise InputError(f"prior_starts: keep is {self.keep!r}, expected a whole number from 0 on")
        both = self.levels if isinstance(self.levels, list | tuple) and len(self.levels) == 2 else [self.levels]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in both):
            raise InputError(
                f"prior_starts: levels is {self.levels!r}, expected a whole number from 1 on, or "
                "two: [pictures, volumes]"
            )
        if self.pose is not None and self.pose.kind != "rigid":
            raise InputError(f"prior_starts: pose is a fit of kind '{self.pose.kind}', expected 'rigid'")
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 8:
            raise InputError(f"prior_starts: size is {self.size!r}, expected a whole number from 8 on")
        for name, least in (("angles", -math.inf), ("scales", 0.0)):
            values = getattr(self, name)
            numbers = isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values)
            if not numbers or not values or not all(least < v < math.inf for v in values):
                expected = "numbers" if name == "angles" else "numbers above 0"
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
        starts = self.starts(scene, grid, to_moving) if len(grid.shape) == 2 else self._turned(*how[:-1])
        best, found, most = None, {"angle": 0.0, "scale": 1.0, "shift": 0.0}, 0.0
        for start in (None, *starts):
            prior = fit_transformation(*how, initial=start, stages=first)
            moved = points + sample(prior(grid), points, padding="border")
            alike = score(scene, points, transform_points(to_moving, moved))
            if best is None or alike > most:
                best, most = prior, alike * (self.gain if best is None else 1.0)
                found = found if start is None else _told(start)
        return fit_transformation(*how, initial=best, stages=rest), found

    def _turned(self, scene: Scene, grid: Grid, to_moving: Tensor, objective: Objective) -> list[Affine]:
        """The pose of volumes, if it is asked for."""
        if self.pose is None:
            return []
        pose = fit_transformation(scene, grid, to_moving, objective, self.pose)
        assert isinstance(pose, Rigid)
        return [Affine.of(pose)]

    def starts(self, scene: Scene, grid: Grid, to_moving: Tensor) -> list[Affine]:
        """Similarities under which features of pictures are most alike, best first, all different and none near the
        identity.
        """
        device = to_moving.device
        per_unit = grid.voxels_per_unit(device).flatten()
        middle = torch.tensor([(n - 1) / 2 for n in grid.shape], device=device)
        corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=device) for _ in grid.shape]).T
        corners = corners * torch.tensor(grid.extent, device=device)[:, None] / grid.unit
        found: list[tuple[float, Affine]] = []
        for scale, angle in product(self.scales, self.angles):
            linear = per_unit[:, None] * _similarity(angle, scale).matrix().to(device) / per_unit
            matrix = torch.eye(3, device=device)
            matrix[:2, :2], matrix[:2, 2] = linear, middle - linear @ middle
            scores, step = scores_of_shifts(scene, to_moving @ matrix, self.size)
            for value, cells in _peaks(scores):
                shift = linear @ (cells.to(device) * step) / per_unit
                found.append((value, _similarity(angle, scale, shift)))
        chosen: list[Affine] = []
        places = [corners]
        for _, start in sorted(found, key=lambda entry: -entry[0]):
            there = start.matrix() @ corners + start.shift[:, None]
            if len(chosen) < self.keep and all((there - p).norm(dim=0).mean() > self.apart for p in places):
                chosen.append(start)
                places.append(there)
        return chosen


def _peaks(scores: Tensor, count: int = 3) -> list[tuple[float, Tensor]]:
    """Highest local peaks of scores of shifts (see `scores_of_shifts`): value and shift in cells `[D]`."""
    peaks = torch.where(F.max_pool2d(scores[None], 5, 1, 2)[0] == scores, scores, -1.0)
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


def _told(start: Affine) -> dict[str, float]:
    size, turn = start.logarithm.diagonal().mean().item(), (start.logarithm - start.logarithm.T) / 2
    angle = (turn[1, 0] if start.dims == 2 else turn.norm() / 2**0.5).item()
    told = {"angle": math.degrees(angle), "scale": math.exp(size), "shift": start.shift.norm().item()}
    return {name: round(value, 4) for name, value in told.items()}
