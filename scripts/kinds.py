# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Kinds of transformation by name."""

from __future__ import annotations

from .errors import InputError
from .free_form import BSpline, Dense, StationaryVelocity
from .grid import Grid
from .transformations import Affine, Rigid, Transformation

KINDS = {"bspline": BSpline, "dense": Dense, "svf": StationaryVelocity}
GLOBAL_KINDS = {"rigid": Rigid, "affine": Affine}


def build(kind: str, grid: Grid, controls: int) -> Transformation:
    """Identity transformation of a kind by name.

    Raises:
        InputError: for an unknown kind.
    """
    if kind in GLOBAL_KINDS:
        return GLOBAL_KINDS[kind](len(grid.shape))
    if kind in KINDS:
        return KINDS[kind](grid, controls)
    raise InputError(f"transformation: unknown kind '{kind}', expected one of {sorted({**GLOBAL_KINDS, **KINDS})}")
