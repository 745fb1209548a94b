# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a segmenter keeps of an image for all its prompts: how image, model input and feature grid lie on each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..geometry import resampled, scaling_about_corner, transform_points


@dataclass(frozen=True)
class Embedding:
    """An encoded image, shared by all prompts.

    Attributes:
        levels: feature grids `[C, *g]`, shallow to deep; the last is the one the mask decoder attends to.
        image_shape: size of the image it was made from.
        to_model: matrix from image voxels to voxels of the model input.
        valid: size of the part of the model input that shows the image (the rest is padding); it begins where
            `to_model` leads the image's edges.
        input_size: size of the model input.
        affine: `[D+1, D+1]` from image voxels to RAS mm; identity for pictures.
        plane: image axes in which the model sees the image at once.
        shown: what `inside` has answered, by shape.
    """

    levels: tuple[Tensor, ...]
    image_shape: tuple[int, ...]
    to_model: Tensor
    valid: tuple[int, ...]
    input_size: tuple[int, ...]
    affine: Tensor = field(default_factory=lambda: torch.eye(3))
    plane: tuple[int, ...] = (0, 1)
    shown: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each axis, mm (1 for pictures)."""
        return tuple(self.affine[:-1, :-1].norm(dim=0).tolist())

    @property
    def extent(self) -> Tensor:
        """Size of the image along each axis, `[D]` in units of the spacing."""
        return torch.tensor(self.image_shape) * torch.tensor(self.spacing)

    @property
    def nbytes(self) -> int:
        """Memory of the grids."""
        return sum(level.numel() * level.element_size() for level in self.levels)

    @property
    def features(self) -> Tensor:
        """The deepest grid `[C, *g]`: prototypes and similarity live here."""
        return self.levels[-1]

    def to_grid(self, shape: tuple[int, ...]) -> Tensor:
        """Matrix from image voxels to voxels of a grid of `shape` over the whole model input."""
        return scaling_about_corner(self.input_size, shape, device=self.to_model.device) @ self.to_model

    def inside(self, shape: tuple[int, ...]) -> Tensor:
        """`[*shape]` bool: which voxels of a grid over the model input show the image rather than padding."""
        if shape not in self.shown:
            self.shown[shape] = self._inside(shape)
        return self.shown[shape]

    def _inside(self, shape: tuple[int, ...]) -> Tensor:
        inside = torch.ones(shape, dtype=torch.bool, device=self.to_model.device)
        size_of_image = torch.tensor(self.image_shape, device=inside.device)
        edges = torch.stack([torch.full_like(size_of_image, -0.5, dtype=torch.float32), size_of_image - 0.5], dim=1)
        first = transform_points(self.to_model, edges).amin(1) + 0.5  # volumes may be turned and flipped for the model
        for axis, (size, valid, full) in enumerate(zip(shape, self.valid, self.input_size, strict=True)):
            centres = (torch.arange(size, device=inside.device) + 0.5) * full / size - first[axis].round()
            nearest = centres - valid / 2  # from the middle of what is shown
            seen = (centres >= 0) & (centres < valid)
            seen[nearest.abs().argmin()] = True  # some voxel shows an image however thin
            inside &= seen.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        return inside

    def on_grid(self, shape: tuple[int, ...], back: Tensor) -> Self:
        """The same of the image on a grid of `shape`, from whose voxels the matrix `back` leads to the present ones."""
        to_model, affine = self.to_model @ back.to(self.to_model), self.affine @ back.to(self.affine)
        return replace(self, image_shape=shape, to_model=to_model, affine=affine)

    def to_image(self, maps: Tensor) -> Tensor:
        """Resample maps `[N, *mask]` over the model input onto the image's own voxels: `[N, *image_shape]`."""
        return resampled(maps, self.to_grid(tuple(maps.shape[1:])), self.image_shape, padding="border")
