# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What is asked: two images, where they lie in space, and prompts on the moving one, all checked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import InputError
from .geometry import transform_points
from .prompts import GivenPrompt
from .registration import ImageInfo


@dataclass(frozen=True)
class PairRequest:
    """One pair to register.

    Attributes:
        fixed: `[C, *S]`, moving: `[C, *M]` raw intensities, C = 1 or 3.
        fixed_info, moving_info: origin and geometry.
        prompts: given prompts on the moving image; None lets the inferer sample some.
        moving_label: `[*M]` label map that sampling "inside" or "outside" needs.
    """

    fixed: Tensor
    moving: Tensor
    fixed_info: ImageInfo
    moving_info: ImageInfo
    prompts: list[GivenPrompt] | None = None
    moving_label: Tensor | None = None

    def image(self, side: str) -> Tensor:
        """The "fixed" or the "moving" image."""
        return self.fixed if side == "fixed" else self.moving

    def on(self, device: torch.device) -> PairRequest:
        """The same request with its images on a device."""
        label = None if self.moving_label is None else self.moving_label.to(device)
        return replace(self, fixed=self.fixed.to(device), moving=self.moving.to(device), moving_label=label)

    def to_moving(self, how: str) -> Tensor:
        """Matrix `[D+1, D+1]` from fixed to moving voxels before anything is fitted.

        Args:
            how: "world" trusts the headers (pictures: equal row and column); "centre" puts the image centres together
                and trusts directions and spacings only.

        Raises:
            InputError: for any other word.
        """
        if how not in ("world", "centre"):
            raise InputError(f"prealignment: unknown '{how}', expected 'world' or 'centre'")
        fixed, moving = self.fixed_info.affine.double(), self.moving_info.affine.double()
        matrix = torch.linalg.inv(moving) @ fixed
        if how == "centre":
            middles = [
                torch.tensor([(n - 1) / 2 for n in image.shape[1:]], dtype=torch.float64)
                for image in (self.fixed, self.moving)
            ]
            matrix[:-1, -1] += middles[1] - transform_points(matrix, middles[0])
        return matrix.float().to(self.fixed.device)
