# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The two sides of a field on disk: which grids they have, and on which an image lies that is to be carried over."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import InputError
from .fields import between
from .geometry import box_corners, transform_points
from .images import read_values
from .readers import warn_once
from .registration import ImageInfo

NEAR = 0.01  # voxels by which equal grids may differ


@dataclass(frozen=True)
class Grid:
    """Where the voxels of one side lie: geometry and shape `S`, and what the user calls it."""

    info: ImageInfo
    shape: tuple[int, ...]
    name: str


def read_grid(path: str, name: str, frames: dict[str, int | None]) -> Grid | None:
    """The grid of an image, if a path is given; `frames` by name."""
    if not path:
        return None
    values, info = read_values(path, name=name, frame=frames.get(name))
    return Grid(info, tuple(values.shape[1:]), name)


def needed(moving: Grid | None, why: str) -> Grid:
    """The moving grid; raises InputError when it was not given."""
    if moving is None:
        raise InputError(f"moving_image: none given; expected the path of the registered moving image, for {why}")
    return moving


def check_same(given: Grid | None, fixed: Grid, field: str) -> None:
    """Raise unless the fixed image, if given, has the grid of the field."""
    if given is None:
        return
    same = given.shape == fixed.shape
    if same:
        box = torch.stack([torch.zeros(len(given.shape)), torch.tensor(given.shape).float()])
        corners = box_corners(box[None])[0].T.double()
        same = bool((transform_points(between(given.info, fixed.info), corners) - corners).abs().max() < NEAR)
    if not same:
        raise InputError(
            f"fixed_image: {given.info.path}, of shape {given.shape}, does not lie on the grid of the field {field}, "
            f"of shape {fixed.shape}; give the fixed image of this field, or none"
        )


def placed(carried: Grid, side: Grid | None) -> ImageInfo:
    """Where a carried image lies: where its header says, else where the image of its side lies, whose size it has."""
    if side is None or (carried.info.kind == "volume" and side.info.kind == "volume"):
        if side and carried.shape == side.shape:
            gap = (between(carried.info, side.info) - torch.eye(len(side.shape) + 1)).abs().max()
            if gap > NEAR:
                warn_once(
                    f"{carried.info.path}: has the size of {side.name} but another place by its header, which is used"
                )
        return carried.info
    if carried.shape != side.shape:
        raise InputError(
            f"{carried.name}: {carried.info.path} has shape {carried.shape}; {side.name} has {side.shape}, "
            "and pictures must have the same"
        )
    return side.info
