# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prompts: clicks and boxes that say what to segment.

A prompt is a set of points with labels (1 inside, 0 outside) or a box, in voxels of the image it was given on, array order.
Several prompts of one kind are kept together in `Prompts`, which every stage passes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .geometry import transform_points


@dataclass(frozen=True)
class Prompts:
    """N prompts of one kind on one image.

    Attributes:
        coordinates: `[N, P, D]` voxels: P labelled points, or P = 2 for the first and last corner of boxes.
        labels: `[N, P]` int, 1 = inside the structure, 0 = outside, -1 = padding; None for boxes.
    """

    coordinates: Tensor
    labels: Tensor | None = None

    @property
    def kind(self) -> str:
        """ "box" or "point"."""
        return "box" if self.labels is None else "point"

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Prompts:
        return Prompts(self.coordinates[index], None if self.labels is None else self.labels[index])

    def at(self, coordinates: Tensor) -> Prompts:
        """The same prompts at other coordinates `[N, P, D]`."""
        return replace(self, coordinates=coordinates)

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Prompts(self.coordinates.to(device), labels)

    def transformed(self, matrix: Tensor) -> Prompts:
        """The same prompts in the coordinates that a homogeneous matrix `[D+1, D+1]` leads to."""
        return self.at(transform_points(matrix, self.coordinates.movedim(-1, 0)).movedim(0, -1))
