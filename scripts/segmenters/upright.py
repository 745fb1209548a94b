# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Volumes for models that see them whole: turned by the header to right, anterior, superior and brought to the voxel
size of the training, so that "up" and "thick" mean what they meant there.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from nibabel.orientations import io_orientation
from torch import Tensor

from ..geometry import scaling_about_corner
from .embedding import Embedding
from .sam import SAM

STABLE = 1.0  # logits within which a stable mask has few voxels


class UprightSAM(SAM):
    """A model of SAM's family for volumes; `prepare` gets them upright and resampled."""

    @abstractmethod
    def resampled(self, image: Tensor, spacing: tuple[float, ...]) -> Tensor:
        """An upright volume `[C, *S]` with voxels of `spacing` mm, at the resolution of the model over the same
        extent.
        """

    @torch.no_grad()
    def embed(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        """See `PromptableSegmenter.embed`; volumes are turned and resampled first, as their affines say."""
        affines = affines or [torch.eye(4) for _ in images]
        turned = [canonical(image, affine) for image, affine in zip(images, affines, strict=True)]
        fitted = [self.resampled(image, spacing) for image, spacing, _ in turned]
        embeddings = []
        for image, affine, small, (upright, _, turn), embedding in zip(
            images, affines, fitted, turned, super().embed(fitted), strict=True
        ):
            shrink = scaling_about_corner(upright.shape[1:], small.shape[1:], device=self.device)
            to_model = embedding.to_model @ shrink @ turn.to(self.device)
            whole = tuple(image.shape[1:])
            plane = tuple(range(3))
            embeddings.append(replace(embedding, image_shape=whole, to_model=to_model, affine=affine, plane=plane))
        return embeddings


def stability(logits: Tensor) -> Tensor:
    """How few voxels of masks `[N, *mask]` have a logit near 0, `[N]` in 0..1: for models whose head of quality was not
    trained.
    """
    flat = logits.flatten(1)
    return (flat > STABLE).sum(1) / (flat > -STABLE).sum(1).clamp(min=1)


def canonical(image: Tensor, affine: Tensor) -> tuple[Tensor, tuple[float, ...], Tensor]:
    """A volume with its axes nearest to right, anterior and superior.

    Args:
        image: `[C, *S]`; affine: `[4, 4]`, voxels to RAS mm.

    Returns:
        the volume, its voxel size along each new axis, and the matrix `[4, 4]` from old to new voxels.
    """
    axes = io_orientation(affine.cpu().double().numpy())  # for each axis: the world's, and whether it runs along
    order = [int(axes[:, 0].tolist().index(world)) for world in range(3)]
    turn = torch.zeros(4, 4)
    turn[3, 3] = 1
    for new, old in enumerate(order):
        along = axes[old, 1] > 0
        turn[new, old], turn[new, 3] = (1, 0) if along else (-1, image.shape[1 + old] - 1)
    against = [1 + new for new, old in enumerate(order) if turn[new, old] < 0]
    upright = image.permute(0, *(1 + old for old in order)).flip(against)
    steps = affine[:3, :3].norm(dim=0).tolist()
    return upright, tuple(steps[old] for old in order), turn
