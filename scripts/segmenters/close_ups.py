# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Volumes larger than a model's input: seen whole, coarsely, for features, and around each prompt, finely, for masks.

A 3-D model is trained on crops at one voxel size around what is segmented. So each prompt is decoded in such a crop, as
its training did; crops are encoded when first asked for and kept with the volume's embedding. Beyond a crop there is no
region. A volume that fits into the input is the crop itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import identity_points, resize_by_area, sample, scaling_about_corner, transform_points
from ..prompts import Prompts
from .cache import BoundedCache
from .embedding import Embedding
from .protocol import NOTHING, Decoded
from .upright import UprightSAM, canonical

STEP = 16  # voxels that crops are apart, so that prompts near each other share one; the side of a token
KEPT = 64 * 2**20  # bytes of crops kept with a volume, 80 of SAM-Med3D


@dataclass(frozen=True)
class WholeVolume(Embedding):
    """A volume seen whole, with what a closer look needs.

    Attributes:
        volume: `[C, *S]` upright, with voxels as in the training.
        to_volume: `[4, 4]` from image voxels to those of `volume`.
        crops: embeddings of crops, by their first corner, as if each were an image of its own.
    """

    volume: Tensor = field(kw_only=True)
    to_volume: Tensor = field(kw_only=True)
    crops: BoundedCache[Embedding] = field(kw_only=True, default_factory=lambda: BoundedCache(KEPT))

    def on_grid(self, shape: tuple[int, ...], back: Tensor) -> Self:
        """See `Embedding.on_grid`; crops are shared."""
        return replace(super().on_grid(shape, back), to_volume=self.to_volume @ back.to(self.to_volume))

    @property
    def nbytes(self) -> int:
        """Memory of the grids, the volume and the crops."""
        return super().nbytes + self.volume.numel() * self.volume.element_size() + self.crops.limit

    def masks_like(self, mask: int) -> tuple[int, ...]:
        """Shape of masks over the whole with voxels as small as those of a crop's, which has `mask` along a side."""
        shrink = self.to_model[:-1, :-1].norm() / self.to_volume[:-1, :-1].norm()
        return (round(float(mask / shrink)),) * 3


class CloseUpSAM(UprightSAM):
    """A model that looks closely at each prompt of a volume larger than its input."""

    close_ups = True

    @abstractmethod
    def trained_shape(self, shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[int]:
        """Voxels, as in the training, along each axis of an upright volume of `shape` with voxels of `spacing` mm."""

    @torch.no_grad()
    def embed(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        """See `PromptableSegmenter.embed`."""
        affines = affines or [torch.eye(4) for _ in images]
        return list(map(self._with_volume, super().embed(images, affines), images, affines))

    def _with_volume(self, whole: Embedding, image: Tensor, affine: Tensor) -> Embedding:
        upright, spacing, turn = canonical(image.to(self.device), affine)
        shape = self.trained_shape(tuple(upright.shape[1:]), spacing)
        if not self.close_ups or max(shape) <= self.config.size:
            return whole
        to_volume = scaling_about_corner(upright.shape[1:], shape, device=self.device) @ turn.to(self.device)
        given = {f.name: getattr(whole, f.name) for f in fields(whole) if f.init}
        return WholeVolume(**given, volume=resize_by_area(upright, shape), to_volume=to_volume)

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        """See `PromptableSegmenter.decode`."""
        if not isinstance(embedding, WholeVolume):
            return super().decode(embedding, prompts)
        logits, quality = [], []
        for crop, prompt in self._looks(embedding, prompts):
            decoded = super().decode(crop, prompt)
            logits.append(self._on_whole(decoded.logits, crop, embedding, NOTHING))
            quality.append(decoded.quality)
        return Decoded(torch.cat(logits), torch.cat(quality))

    @torch.no_grad()
    def decode_jacobian(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """See `PromptableSegmenter.decode_jacobian`; a crop stays where it is while its prompt moves."""
        if not isinstance(embedding, WholeVolume):
            return super().decode_jacobian(embedding, prompts)
        logits, slopes = [], []
        for crop, prompt in self._looks(embedding, prompts):
            value, slope = super().decode_jacobian(crop, prompt)
            logits.append(self._on_whole(value, crop, embedding, NOTHING))
            slopes.append(self._on_whole(slope[0], crop, embedding, 0.0))
        return torch.cat(logits), torch.stack(slopes)

    def _looks(self, whole: WholeVolume, prompts: Prompts) -> Iterator[tuple[Embedding, Prompts]]:
        """Each prompt with the crop around its first click inside; its mask brought there."""
        self.check(prompts)
        prompts = prompts.to(self.device)
        assert prompts.labels is not None  # boxes are refused
        first = (prompts.labels == 1).int().argmax(1)
        for n, click in enumerate(first):
            place = transform_points(whole.to_volume, prompts.coordinates[n, click])
            crop = self._crop(whole, corner_around(place, self.config.size))
            prompt = prompts[[n]]
            if prompt.masks is not None:
                grid = (4 * self.config.grid,) * 3
                to_masks = whole.to_grid(tuple(prompt.masks.shape[1:])) @ torch.linalg.inv(crop.to_grid(grid))
                prompt = replace(prompt, masks=carried(prompt.masks, to_masks, grid))
            yield crop, prompt

    def _crop(self, whole: WholeVolume, corner: tuple[int, ...]) -> Embedding:
        made = whole.crops.get(str(corner))
        if made is None:
            (made,) = super(UprightSAM, self).embed([cut(whole.volume, corner, self.config.size)])
            made = replace(made, levels=made.levels[-1:])
            whole.crops.put(str(corner), made, made.nbytes)
        shift = torch.eye(4, device=self.device)
        shift[:3, 3] = -torch.tensor(corner, device=self.device)
        return replace(made, image_shape=whole.image_shape, to_model=shift @ whole.to_volume, affine=whole.affine)

    def _on_whole(self, maps: Tensor, crop: Embedding, whole: WholeVolume, beyond: float) -> Tensor:
        shape = whole.masks_like(4 * self.config.grid)
        to_crop = crop.to_grid(tuple(maps.shape[1:])) @ torch.linalg.inv(whole.to_grid(shape))
        return carried(maps, to_crop, shape, beyond)


def corner_around(place: Tensor, size: int) -> tuple[int, ...]:
    """First voxel of the crop of `size` voxels a side whose middle is near a place `[3]`; may lie outside."""
    return tuple(STEP * round((float(p) + 0.5 - size / 2) / STEP) for p in place)


def cut(volume: Tensor, corner: tuple[int, ...], size: int) -> Tensor:
    """`[C, size, size, size]` of a volume `[C, *S]` from a corner on; 0 beyond the volume."""
    for axis, (first, n) in enumerate(zip(corner, volume.shape[1:], strict=True), start=1):
        begin, end = min(max(first, 0), n), min(max(first + size, 0), n)
        pads = [0, 0] * (volume.ndim - 1 - axis) + [begin - first, first + size - end]
        volume = F.pad(volume.narrow(axis, begin, end - begin), pads)
    return volume


def carried(maps: Tensor, to_maps: Tensor, shape: tuple[int, ...], beyond: float | None = None) -> Tensor:
    """Maps `[N, *m]` on another grid.

    Args:
        maps: what to carry.
        to_maps: `[4, 4]` from voxels of the new grid to those of the maps.
        shape: of the new grid.
        beyond: value where the maps do not reach; None: that at their edge.
    """
    points = transform_points(to_maps, identity_points(shape, device=maps.device))
    values = sample(maps, points, padding="border")
    if beyond is None:
        return values
    sizes = torch.tensor(maps.shape[1:], device=maps.device).reshape(-1, *[1] * len(shape))
    return torch.where(((points > -0.5) & (points < sizes - 0.5)).all(0), values, beyond)
