# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Coarse to fine: the levels of a fit, and which of them an image's grid can resolve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from .errors import InputError, as_bool
from .grid import Grid
from .kinds import build
from .transformations import Linear
from .weighing import Weight, check_weight, weight_for


@dataclass(frozen=True)
class Level:
    """One step from coarse to fine.

    Attributes:
        size: voxels along the longest side of the sampling grid.
        controls: control intervals along the longest side of a free-form transformation; 0 fits the affine alone. A
            level with fewer than 1.5 voxels for each, because the image or its grid's bound allows no more, is left
            out.
        steps: Adam steps: a number, or one for pictures and one for volumes, either of which may be 0: there the level
            is left out.
    """

    size: int
    controls: int
    steps: int | Sequence[int]

    def of(self, dims: int) -> int:
        """Its steps in images of so many dimensions."""
        return int(weight_for(self.steps, dims))


@dataclass(frozen=True)
class Stage:
    """A level on one image.

    Attributes:
        level: what it is a stage of.
        steps: Adam steps.
        grid: where the images are compared.
        bending: weight of the bending energy in units of the longest side.
        both_ways: whether each image is compared on the other's side as well.
    """

    level: Level
    steps: int
    grid: Grid
    bending: float
    both_ways: bool


@dataclass(frozen=True)
class Fit:
    """How a transformation is fitted.

    Attributes:
        kind: "rigid", "affine", "bspline", "dense" or "svf".
        levels: coarse to fine. For global kinds `controls` only says how far a step goes (see `step`).
        smoothness: lambda, weight of the bending energy, see `lengths`. This and `stiffness`: a number, or one for
            pictures and one for volumes.
        lengths: in which control intervals bending measures lengths: the "finest" level's, so that a bend costs the
            same at every level, or each level's "own", so that coarse levels are stiff and the finest alone is soft.
            Fine levels always measure in their own.
        stiffness: mu; it holds the affine back as well, where little else does.
        step: Adam's step in units of the longest side at `controls` = 1; finer grids take proportionally smaller steps.
            An affine takes a quarter, and from 16 `controls` on four times what its grid does.
        affine_first: let free-form kinds ride on an affine.
        voxels: of a sampling grid at most; bounds time and memory in volumes.
        fine: control intervals from which on a free-form level of a volume is a fine one, with a grid of its own, where
            the usual grid has fewer than two voxels for each. None: no level is.
        both_ways: levels of so many controls or more compare the images in both directions, so that the result depends
            less on which of them is fixed; at twice the time, and for kinds with an exact inverse only (not B-splines
            and dense displacements). Fine levels go one way.
    """

    kind: str = "svf"
    levels: list[Level] = field(default_factory=list)
    smoothness: Weight = 1e-2
    lengths: str = "finest"
    stiffness: Weight = 0.0
    step: float = 0.02
    affine_first: bool = True
    voxels: int = 270_000
    fine: int | None = None
    both_ways: int | None = None

    def __post_init__(self) -> None:
        try:
            levels = [level if isinstance(level, Level) else Level(**level) for level in self.levels]
        except TypeError as error:
            raise InputError(
                f"fit: levels are {self.levels!r}, expected e.g. [{{'size': 64, 'controls': 16, 'steps': 40}}]"
            ) from error
        if not all(_whole(lv.size, 2) and _whole(lv.controls, 0) and _steps(lv.steps) for lv in levels):
            raise InputError(
                f"fit: levels are {levels}, expected whole sizes above 1, controls from 0, steps from 1 on, "
                "or [pictures, volumes] from 0 on"
            )
        for name in ("smoothness", "stiffness"):
            check_weight(getattr(self, name), f"fit: {name}")
        if self.lengths not in ("finest", "own"):
            raise InputError(f"fit: lengths is {self.lengths!r}, expected 'finest' or 'own'")
        if isinstance(self.step, bool) or not isinstance(self.step, int | float) or not 0 < self.step < inf:
            raise InputError(f"fit: step is {self.step!r}, expected a number above 0")
        for name, least, none in (
            ("voxels", 1, False),
            ("fine", 1, True),
            ("both_ways", 0, True),
        ):
            value = getattr(self, name)
            if not _whole(value, least) and not (none and value is None):
                expected = f"a whole number from {least} on" + (", or null" if none else "")
                raise InputError(f"fit: {name} is {value!r}, expected {expected}")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "affine_first", as_bool(self.affine_first, "fit: affine_first"))
        kind = build(self.kind, Grid((4, 4), (1.0, 1.0)), 1)  # an unknown kind fails here, before any work
        if not self.affine_first and not isinstance(kind, Linear) and not all(level.controls for level in levels):
            raise InputError("fit: a level of 0 controls fits the affine alone, which affine_first: false leaves out")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _steps(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(_whole(n, 0) for n in value)
    return _whole(value, 1)


def schedule(fit: Fit, fixed: Grid, *, every: bool = False) -> list[Stage]:
    """What a fit goes through on an image, of the levels that have steps: the first always, of the others (`every`:
    all) those whose control intervals its grid can resolve.
    """
    chosen: list[tuple[Level, Grid, bool]] = []
    dims, volume = len(fixed.shape), len(fixed.shape) == 3
    for level in (level for level in fit.levels if level.of(dims)):
        grid = fixed.coarsened(level.size, fit.voxels)
        fine = not every and volume and level.controls >= (fit.fine or inf) and max(grid.shape) < 2 * level.controls
        grid = fixed.coarsened(level.size) if fine else grid
        resolved = max(grid.shape) >= 1.5 * level.controls
        if every or not chosen or resolved:
            chosen.append((level, grid, fine))
    finest = max([1, *(lv.controls for lv, _, fine in chosen if not fine)]) if fit.lengths == "finest" else 1
    smoothness = weight_for(fit.smoothness, dims)
    return [
        Stage(
            level,
            level.of(dims),
            grid,
            bending=smoothness / max(finest, level.controls) ** 2,
            both_ways=not fine and fit.both_ways is not None and level.controls >= fit.both_ways,
        )
        for level, grid, fine in chosen
    ]
