# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Where things are expected: a dense map that carries maps, points and prompts from one image to the other.

Not in the paper. The coarse prior is one before any prompt is asked; what is fitted in the end is one as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .geometry import box_corners, identity_points, sample, transform_points
from .prompts import Prompts


@dataclass(frozen=True)
class Prior:
    """Where things on the moving image are expected on the fixed one, before any prompt is asked.

    Attributes:
        ddf: `[D, *S]` voxels of the fixed grid; inverse: `[D, *S]` its inverse; to_moving: `[D+1, D+1]` (see
            `geometry`).
    """

    ddf: Tensor
    inverse: Tensor
    to_moving: Tensor

    @cached_property
    def places(self) -> Tensor:
        """`[D, *S]` voxels of the moving image that those of the fixed one are led to."""
        return transform_points(self.to_moving, identity_points(self.ddf.shape[1:], device=self.ddf.device) + self.ddf)

    def carry_maps(self, maps: Tensor) -> Tensor:
        """Maps `[K, *M]` of the moving image on the fixed grid `[K, *S]`."""
        return sample(maps, self.places)

    def carry_points(self, points: Tensor) -> Tensor:
        """Points `[..., D]` of the moving image in voxels of the fixed one."""
        start = transform_points(torch.linalg.inv(self.to_moving), points.movedim(-1, 0))
        return (start + sample(self.inverse, start.flatten(1), padding="border").reshape(start.shape)).movedim(0, -1)

    def carry_prompts(self, prompts: Prompts) -> Prompts:
        """Prompts of the moving image on the fixed one; a box becomes the box around its carried corners."""
        if prompts.kind == "point":
            return prompts.at(self.carry_points(prompts.coordinates))
        corners = self.carry_points(box_corners(prompts.coordinates))
        return prompts.at(torch.stack([corners.amin(1), corners.amax(1)], dim=1))

    def reversed(self, shape: Sequence[int]) -> Prior:
        """The same for prompts on the fixed image, with the roles of the images exchanged.

        With `phi(p) = T (p + u(p))` from fixed to moving voxels, T = `to_moving` and v = `inverse`, the way back is
        `q -> T^-1 q + v(T^-1 q)`: a field `T v(T^-1 q)` on the moving grid, before the matrix T^-1. A field's own
        values turn with the linear part of T alone. Fields go on constantly beyond the fixed image.

        Args:
            shape: of the moving image.
        """
        back, linear = torch.linalg.inv(self.to_moving), self.to_moving[:-1, :-1]
        places = transform_points(back, identity_points(shape, device=self.ddf.device))
        ddf, inverse = (
            torch.tensordot(linear, sample(values, places, padding="border"), dims=1)
            for values in (self.inverse, self.ddf)
        )
        return Prior(ddf, inverse, back)
