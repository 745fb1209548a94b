# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Terms that compare grey values and their edges."""

from __future__ import annotations

from math import inf

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor

from .geometry import apply_along_axes, grid_steps, transform_points
from .places import Places
from .scene import Pyramid, Scene
from .structure import oriented_gradients
from .terms import Loss, Term
from .weighing import Weight, check_weight, weight_for


class LnccTerm(Term):
    """1 - squared local correlation of the grey values, over windows that both images fill.

    Not MONAI's loss, which cannot leave out what the moving image does not show: a window that the map has emptied
    would count as perfect or as hopeless.

    Args:
        weight, controls: see `Term`.
        kernel: window side in voxels of the sampling grid along its finest axis, or [in pictures, in volumes]; as long
            in mm along the others. Neighbouring windows say nearly the same; in volumes one is taken every quarter of
            its side.
        floor: standard deviation of grey values in [0, 1] below which a window is flat.
    """

    def __init__(
        self, weight: Weight = 1.0, controls: tuple[float, float] = (0, inf), kernel: Weight = 9, floor: float = 1e-3
    ) -> None:
        super().__init__(weight, controls)
        check_weight(kernel, "objective: kernel of lncc")
        self.kernel, self.floor = kernel, floor

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        sides = self._window(scene, points)
        steps = [max(1, (side + 1) // 4) if len(sides) == 3 else 1 for side in sides]
        boxes = [_box(*along).to(points.device) for along in zip(points.shape[1:], sides, steps, strict=True)]

        def mean(maps: Tensor) -> Tensor:
            return apply_along_axes(boxes, maps)  # on a CPU ten times as fast as pooling

        def moments(grey: Tensor) -> tuple[Tensor, Tensor]:
            average, square = mean(torch.cat([grey, grey.square()]))
            return average, (square - average.square()).clamp(min=0) + self.floor**2

        fixed = Pyramid(scene.fixed.image, points).at(Places(points))
        moving = Pyramid(scene.moving.image, scene.moving_points(points))
        covered = scene.coverage(points)
        fixed_mean, fixed_variance = moments(fixed)

        def loss(moved: Places) -> Tensor:
            inside = (mean(covered(moved)[None])[0] > 0.99).to(points)
            warped = moving.at(moved)
            average, variance = moments(warped)
            covariance = mean(warped * fixed)[0] - average * fixed_mean
            squared = covariance.square() / (variance * fixed_variance)
            return 1 - (squared * inside).sum() / inside.sum().clamp(min=1)

        return loss

    def _window(self, scene: Scene, points: Tensor) -> list[int]:
        """Voxels along each axis of the sampling grid, odd: a cube in mm, though slices be thick or few."""
        spacing = torch.tensor(scene.fixed.embedding.spacing, device=points.device)
        steps = (grid_steps(points) * spacing[:, None]).norm(dim=0).tolist()
        kernel = weight_for(self.kernel, len(points))
        return [
            min(1 + 2 * round((kernel * min(steps) / step - 1) / 2), (n - 1) // 2 * 2 + 1)
            for step, n in zip(steps, points.shape[1:], strict=True)
        ]


def _box(size: int, side: int, step: int) -> Tensor:
    """Matrix `[about size / step, size]` of means over so many neighbours along an axis, fewer at its ends."""
    places = torch.arange(size)
    near = ((places[(size - 1) % step // 2 :: step, None] - places).abs() <= side // 2).float()
    return near / near.sum(1, keepdim=True)


class StructureTerm(Term):
    """1 - correlation of oriented gradients (see `structure`) where both images show something.

    Blind to contrast: the term for images of one scene from different sensors, stains or seasons.

    Args:
        weight, controls: see `Term`.
        sigma: smoothing before gradients are taken, voxels of the sampling grid.
        local: neighbourhood that gradients are relative to, likewise.
    """

    def __init__(
        self,
        weight: Weight = 1.0,
        controls: tuple[float, float] = (0, inf),
        sigma: float = 1.0,
        local: float = 3.0,
    ) -> None:
        super().__init__(weight, controls)
        self.sigma, self.local = sigma, local

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        start = scene.moving_points(points)
        moving = Pyramid(scene.moving.image, start)
        # Directions of the sampling grid as directions of the moving maps: a turned image's edges are turned too.
        frame = grid_steps(transform_points(moving.matrix, start))
        seen = Pyramid(scene.fixed.image, points).at(Places(points))
        fixed = _centred(oriented_gradients(seen, sigma=self.sigma, local=self.local))
        maps = _centred(oriented_gradients(moving.maps, sigma=self.sigma, local=self.local, frame=frame))
        covered, strength = scene.coverage(points), fixed.square().sum(0)

        def loss(moved: Places) -> Tensor:
            inside = covered(moved)
            warped = moved.sample(maps, moving.matrix)
            product, power = ((fixed * warped).sum(0) * inside).sum(), (warped.square().sum(0) * inside).sum()
            return 1 - product / ((strength * inside).sum() * power).clamp(min=1e-9).sqrt()

        return loss


def _centred(maps: Tensor) -> Tensor:
    return maps - maps.flatten(1).mean(1).reshape(-1, *[1] * (maps.ndim - 1))


class MutualInformationTerm(Term):
    """1 - global mutual information of the grey values in units of log(bins) (MONAI's loss).

    Args:
        weight, controls: see `Term`.
        bins: number of histogram bins.
    """

    def __init__(self, weight: Weight = 1.0, controls: tuple[float, float] = (0, inf), bins: int = 32) -> None:
        super().__init__(weight, controls)
        self.bins = bins

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        measure = GlobalMutualInformationLoss(num_bins=self.bins)
        fixed = Pyramid(scene.fixed.image.clamp(0, 1), points).at(Places(points))[None]
        moving = Pyramid(scene.moving.image.clamp(0, 1), scene.moving_points(points))
        scale = 1.0 / torch.log(torch.tensor(float(self.bins)))
        return lambda moved: 1 + scale * measure(moving.at(moved)[None], fixed)
