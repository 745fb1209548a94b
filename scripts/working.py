# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Large images are worked on in grids of bounded size; what is found is told in the images' own voxels.

The model sees the images themselves. Its masks and features are coarser than a large volume, and so is the finest
level of a fit, so regions and maps lose nothing on a grid averaged down to as much, and take less time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import resampled, resize_by_area, scaling_about_corner
from .grid import Grid
from .prior import Prior
from .prompts import GivenPrompt, Prompts
from .registration import ImageInfo, RegionPairs
from .request import PairRequest
from .segmenters.embedding import Embedding


@dataclass(frozen=True)
class WorkingPair:
    """A pair on its own grids and on those it is worked on.

    Attributes:
        own: the pair; request: the same on working grids, prompts as well.
        ahead: `[D+1, D+1]` from an image's own voxels to its working ones, by side ("fixed", "moving").
    """

    own: PairRequest
    request: PairRequest
    ahead: dict[str, Tensor]

    @classmethod
    def of(cls, own: PairRequest, most: int) -> WorkingPair:
        """A pair whose images are averaged down to `most` voxels where they have more."""
        images, infos = {"fixed": own.fixed, "moving": own.moving}, {"fixed": own.fixed_info, "moving": own.moving_info}
        ahead = {}
        for side, image in images.items():
            grid = Grid(tuple(image.shape[1:]), infos[side].spacing)
            finest = round(grid.unit / min(grid.spacing)) + 1  # along the longest side
            shape = grid.shape if image[0].numel() <= most else grid.coarsened(finest, most).shape
            ahead[side] = scaling_about_corner(grid.shape, shape, device=image.device)
            if shape != grid.shape:
                images[side], infos[side] = resize_by_area(image, shape), _scaled(infos[side], ahead[side])
        label = own.moving_label
        if label is not None and label.shape != images["moving"].shape[1:]:
            label = F.interpolate(label[None, None].float(), images["moving"].shape[1:], mode="nearest-exact")
            label = label[0, 0].to(own.moving_label)
        request = replace(
            own, fixed=images["fixed"], moving=images["moving"], fixed_info=infos["fixed"], moving_info=infos["moving"],
            prompts=own.prompts and led(own.prompts, ahead["moving"]), moving_label=label,
        )  # fmt: skip
        return cls(own, request, ahead)

    def embedding(self, own: Embedding, side: str) -> Embedding:
        """What the model says of an image itself, on the working grid."""
        shape = tuple(self.request.image(side).shape[1:])
        return own if shape == own.image_shape else own.on_grid(shape, torch.linalg.inv(self.ahead[side]))

    def given(self, prompts: list[GivenPrompt], side: str) -> list[GivenPrompt]:
        """Prompts given on an image, in working voxels."""
        return led(prompts, self.ahead[side])

    def regions(self, pairs: RegionPairs) -> tuple[Tensor, Tensor]:
        """Moving and fixed regions of pairs on the images' own grids."""
        return self._maps(pairs.moving_regions, "moving"), self._maps(pairs.fixed_regions, "fixed")

    def told(self, pairs: RegionPairs, regions: tuple[Tensor, Tensor] | None = None) -> RegionPairs:
        """Pairs found in working voxels, in the images' own; their `regions`, where they are known already."""
        moving_regions, fixed_regions = regions or self.regions(pairs)
        return replace(
            pairs,
            moving_prompts=self._prompts(pairs.moving_prompts, "moving"),
            fixed_prompts=self._prompts(pairs.fixed_prompts, "fixed"),
            moving_regions=moving_regions,
            fixed_regions=fixed_regions,
        )

    def map(self, found: Prior) -> Prior:
        """A map between the working grids as one between the images' own."""
        ahead = self.ahead["fixed"].to(found.ddf)
        size = ahead.diagonal()[:-1].reshape(-1, *[1] * len(found.ddf))
        to_moving = torch.linalg.inv(self.ahead["moving"]).to(found.to_moving) @ found.to_moving @ ahead
        return Prior(self._maps(found.ddf, "fixed") / size, self._maps(found.inverse, "fixed") / size, to_moving)

    def _prompts(self, prompts: Prompts, side: str) -> Prompts:
        return prompts.transformed(torch.linalg.inv(self.ahead[side]).to(prompts.coordinates))

    def _maps(self, maps: Tensor, side: str) -> Tensor:
        shape = tuple(self.own.image(side).shape[1:])
        return maps if maps.shape[1:] == shape else resampled(maps, self.ahead[side], shape, padding="border")


def led(prompts: list[GivenPrompt], matrix: Tensor) -> list[GivenPrompt]:
    """Prompts in the coordinates that a matrix leads to."""
    linear, shift = matrix[:-1, :-1].cpu(), matrix[:-1, -1].cpu()
    return [replace(p, points=p.points @ linear.T + shift) for p in prompts]


def _scaled(info: ImageInfo, ahead: Tensor) -> ImageInfo:
    affine = info.affine @ torch.linalg.inv(ahead).to(info.affine)
    spacing = [size / ratio for size, ratio in zip(info.spacing, ahead.diagonal()[:-1].tolist(), strict=True)]
    return replace(info, affine=affine, spacing=tuple(spacing))
