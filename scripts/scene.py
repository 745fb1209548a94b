# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Both images as the terms of the objective see them: grey values, features, regions, how they lie to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .geometry import grid_steps, quantiles, resize_by_area, sample, scaling_about_corner, transform_points
from .places import Places
from .segmenters.protocol import Embedding


@dataclass(frozen=True)
class View:
    """One image as the terms see it.

    Attributes:
        image: `[1, *S]` grey values, all but a few of them in [0, 1].
        embedding: of the same image.
        regions: `[K, *S]` soft regions in [0, 1], in the order of the pairs.
        shown: `[*S]` bool, where the image shows what can be compared; None: everywhere.
    """

    image: Tensor
    embedding: Embedding
    regions: Tensor
    shown: Tensor | None = None

    def shows(self, points: Tensor) -> Tensor:
        """`[*grid]` bool: which voxels `[D, *grid]` lie inside the image, where it shows something."""
        last = torch.tensor(self.image.shape[1:], device=points.device).reshape(-1, *[1] * len(points)) - 1
        inside = ((points >= -1e-3) & (points <= last + 1e-3)).all(0)  # rounding is not outside
        if self.shown is not None:
            inside &= sample(self.shown[None].float(), points)[0] > 0.5
        return inside

    @classmethod
    def plain(cls, raw: Tensor, embedding: Embedding) -> View:
        """View of raw intensities `[C, *S]` without regions."""
        grey = raw.mean(0, keepdim=True)
        low, high = quantiles(grey, (0.005, 0.995))[:, 0]  # a speck of metal in a CT is no measure of contrast
        if high <= low:
            low, high = grey.amin(), grey.amax()
        return cls((grey - low) / (high - low).clamp(min=1e-8), embedding, grey.new_zeros(0, *grey.shape[1:]))


@dataclass(frozen=True)
class Scene:
    """Both images and what is known about their region pairs.

    Attributes:
        fixed, moving: the two views.
        confidence: `[K]` in [0, 1], how far each pair is trusted.
        to_moving: `[D+1, D+1]` from fixed to moving voxels before the fit; None for the identity.
        known: what terms work out of the embeddings once for all levels and fits, by name.
    """

    fixed: View
    moving: View
    confidence: Tensor = field(default_factory=lambda: torch.zeros(0))
    to_moving: Tensor | None = None
    known: dict[str, list[Any]] = field(default_factory=dict, compare=False)

    def coverage(self, points: Tensor) -> Callable[[Places], Tensor]:
        """Which places count: inside the moving image, and where both images show something.

        Args:
            points: `[D, *grid]` fixed voxels of a grid.

        Returns:
            a function from places on the moving image to `[*grid]` in {0, 1}, a constant for derivatives.
        """
        anchor = self.fixed.shows(points)

        @torch.no_grad()
        def covered(moved: Places) -> Tensor:
            return (anchor & self.moving.shows(moved.through())).to(points)

        return covered

    def swapped(self) -> Scene:
        """The same with the roles exchanged."""
        return replace(
            self,
            fixed=self.moving,
            moving=self.fixed,
            to_moving=None if self.to_moving is None else torch.linalg.inv(self.to_moving),
            known={name: both[::-1] for name, both in self.known.items()},
        )

    def moving_points(self, points: Tensor) -> Tensor:
        """Where fixed voxels `[D, *grid]` start on the moving image."""
        return points if self.to_moving is None else transform_points(self.to_moving, points)


class Pyramid:
    """Maps on an image, averaged down to the step at which they will be sampled, then sampled at image voxels.

    Args:
        maps: `[C, *S]`.
        points: `[D, *grid]` voxels of `maps` where the sampling starts; its steps set the resolution.
    """

    def __init__(self, maps: Tensor, points: Tensor) -> None:
        step = grid_steps(points).norm(dim=1).clamp(min=1)  # voxels of `maps` per voxel of the sampling grid, by axis
        shape = [max(2, round(n / s)) for n, s in zip(maps.shape[1:], step.tolist(), strict=True)]
        self.maps = resize_by_area(maps, shape)
        self.matrix = scaling_about_corner(maps.shape[1:], shape, device=maps.device)

    def at(self, places: Places) -> Tensor:
        """Values `[C, *grid]` at places on the original maps; beyond their border the border's."""
        return places.sample(self.maps, self.matrix)
