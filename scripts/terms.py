# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Terms of the objective: what one is, and the paper's own.

A term compares the two images at one sampling grid: `prepare` gathers on that grid what does not change during the fit,
and the function it returns maps the places of the grid's voxels on the moving image to a scalar, 0 at best and of
order one. Other terms: `feature_term`, `intensity_terms`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from .errors import InputError
from .places import Places
from .scene import Pyramid, Scene
from .weighing import Weight, check_weight, weight_for

Loss = Callable[[Places], Tensor]  # where the grid's voxels lie on the moving image -> scalar


class Term(ABC):
    """One weighted part of the objective.

    Args:
        weight: factor in the sum, or [in pictures, in volumes].
        controls: fewest and most control intervals of the levels where the term takes part (0 is the affine alone).
            Regions say little about detail and intensities mislead before things are near.
    """

    def __init__(self, weight: Weight = 1.0, controls: tuple[float, float] = (0, inf)) -> None:
        check_weight(weight, "objective: weight")
        self.weight, self.controls = weight, tuple(controls)

    def takes_part(self, controls: int, dims: Sequence[int] = (2, 3)) -> bool:
        """Whether a level with so many control intervals uses the term, in images of any of these dimensions."""
        weighs = any(weight_for(self.weight, d) for d in dims)
        return weighs and self.controls[0] <= controls <= self.controls[1]

    @abstractmethod
    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        """Loss on a grid whose voxels lie at `points` `[D, *grid]` (voxels of the fixed image)."""


class RoiTerm(Term):
    """Disagreement of paired regions, weighted by confidence: sum_k c_k L(R^y_k, T(R^x_k)) / sum_k c_k (Sec. 2).

    Args:
        weight, controls: see `Term`.
        loss: "dice" (1 - soft Dice, as the paper) or "squared" (mean squared error over the union).
    """

    def __init__(self, weight: Weight = 1.0, controls: tuple[float, float] = (0, inf), loss: str = "dice") -> None:
        super().__init__(weight, controls)
        if loss not in ("dice", "squared"):
            raise InputError(f"objective: the roi term has no loss '{loss}', expected 'dice' or 'squared'")
        self.loss = loss

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        keep = scene.confidence > 0
        if not keep.any():
            return lambda moved: moved.carried.sum() * 0.0
        confidence = scene.confidence[keep] / scene.confidence[keep].sum()
        fixed = Pyramid(scene.fixed.regions[keep], points).at(Places(points)).flatten(1)
        moving = Pyramid(scene.moving.regions[keep], scene.moving_points(points))

        def loss(moved: Places) -> Tensor:
            warped = moving.at(moved).flatten(1)
            if self.loss == "dice":
                overlap = 2 * (fixed * warped).sum(1) + 1e-3
                return (confidence * (1 - overlap / (fixed.square() + warped.square()).sum(1).add(1e-3))).sum()
            union = torch.maximum(fixed, warped).sum(1).clamp(min=1e-3)
            return (confidence * (fixed - warped).square().sum(1) / union).sum()

        return loss
