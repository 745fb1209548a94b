# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A promptable model by formula, in 2-D and 3-D: smooth in its prompts, deterministic, without weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.geometry import identity_points, resize_by_area, scaling_about_corner
from scripts.prompts import Prompts
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.promptable import PromptableSegmenter
from scripts.segmenters.protocol import Decoded, SegmenterSpec


def disc(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Tensor:
    """Disc or ball `[*shape]` with an edge of about one voxel."""
    offset = identity_points(shape) - torch.tensor(centre).reshape(-1, *[1] * len(shape))
    return torch.sigmoid(4 * (radius - offset.norm(dim=0)))


def box_around(centre: tuple[float, ...], radius: float) -> Tensor:
    """The disc's box `[2, D]`."""
    middle = torch.tensor(centre)
    return torch.stack([middle - radius, middle + radius])


class DiscSegmenter(PromptableSegmenter):
    """Regions of one intensity.

    A box selects its ellipse where the intensity is that around the box's centre; points select the
    intensities at positive points, near these, less those at negative points.

    Args:
        dims: 2 or 3.
        size: voxels along each axis of the model's input.
        differentiable: what the spec says.
        by_intensity: False lets a box select the inscribed ellipse whatever it shows; True half as large again.
        chunk: prompts decoded at once.
    """

    def __init__(
        self,
        dims: int = 2,
        size: int = 64,
        *,
        differentiable: bool = True,
        by_intensity: bool = True,
        chunk: int = 8,
    ) -> None:
        super().__init__(chunk)
        kinds = frozenset({"point", "box"})
        self.spec = SegmenterSpec("toy", dims, (size,) * dims, kinds, kinds, differentiable, (0, -1))
        self.by_intensity = by_intensity
        self.dummy = nn.Parameter(torch.zeros(1))

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        size = self.spec.input_size[0]
        valid = tuple(max(1, round(n * size / max(image.shape[1:]))) for n in image.shape[1:])
        small = resize_by_area(image.mean(0, keepdim=True), valid)
        low, high = small.amin(), small.amax()
        padding = [p for n in reversed(valid) for p in (0, size - n)]
        inputs = F.pad((small - low) / (high - low).clamp(min=1e-8), padding)
        return inputs, scaling_about_corner(image.shape[1:], valid, device=image.device), valid

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        pool = F.avg_pool2d if self.spec.dims == 2 else F.avg_pool3d
        tones = torch.cat([torch.exp(-(((inputs - tone) / 0.15) ** 2)) for tone in (0, 0.2, 0.4, 0.6, 0.8, 1)], dim=1)
        blurred = pool(inputs, 5, stride=1, padding=2)
        return [inputs, pool(torch.cat([tones, inputs, 0.5 * blurred], dim=1), 2)]

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        image = embedding.levels[0][0]
        logits = self._of_boxes(image, prompts) if prompts.labels is None else self._of_points(image, prompts)
        p = logits.sigmoid().flatten(1)
        return Decoded(logits, p.square().sum(1) / p.sum(1).clamp(min=1e-6))

    def _offsets(self, points: Tensor, shape: torch.Size) -> Tensor:
        """`[N, P, D, *shape]` from points `[N, P, D]`."""
        return identity_points(shape, device=points.device) - points.reshape(*points.shape, *[1] * len(shape))

    def _of_boxes(self, image: Tensor, prompts: Prompts) -> Tensor:
        first, last = prompts.coordinates.unbind(1)
        centre, half = (first + last) / 2, (last - first) / 2
        offset = self._offsets(centre[:, None], image.shape)[:, 0]
        half = half.reshape(*half.shape, *[1] * image.ndim)
        radius2 = (offset / half).square().sum(1)
        ellipse = half.mean(1) / 2 * ((2.25 if self.by_intensity else 1.0) - radius2)  # about one logit per voxel
        if not self.by_intensity:
            return ellipse
        near = torch.exp(-radius2 / 0.2**2).flatten(1)
        tone = (near * image.flatten()).sum(1) / near.sum(1)
        alike = 16 * torch.exp(-(((image - tone.reshape(-1, *[1] * image.ndim)) / 0.3) ** 2)) - 8
        return -torch.logsumexp(torch.stack([-ellipse, -alike]), dim=0)

    def _of_points(self, image: Tensor, prompts: Prompts) -> Tensor:
        distance = self._offsets(prompts.coordinates, image.shape).square().sum(2)  # [N, P, *S]
        near = torch.exp(-distance / (2 * 1.5**2)).flatten(2)
        tone = (near * image.flatten()).sum(2) / near.sum(2)
        alike = torch.exp(-(((image - tone.reshape(*tone.shape, *[1] * image.ndim)) / 0.3) ** 2))
        reach = (0.3 * image.shape[0]) ** 2
        chosen = alike * torch.exp(-((distance / reach) ** 2))
        labels = prompts.labels.reshape(*tone.shape, *[1] * image.ndim)
        positive = 1 - (1 - chosen * (labels == 1)).prod(1)
        negative = 1 - (1 - alike * torch.exp(-distance / (reach / 9)) * (labels == 0)).prod(1)
        return 12 * (positive - negative - 0.5)
