# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM-Med2D: SAM ViT-B at 256 x 256 with an adapter in every block, trained on medical images with every prompt type.

Cheng et al., "SAM-Med2D", 2023 (OpenGVLab/SAM-Med2D, Apache-2.0). Names and shapes are those of upstream's checkpoints;
the code is our own. Input: SAM's mean and deviation taken out; then, as its training did, an image smaller than
256 x 256 is padded with zeros on all sides, any other squashed to 256 x 256 by nearest neighbour. Training read
pictures as blue, green, red but took the statistics of red, green, blue: so does this.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import scaling_about_corner
from .intensities import as_picture, standardised
from .sam import SAM
from .vit import Block, ImageEncoder, ViTConfig

GEOMETRIES = ("loader", "squash")


class Adapter(nn.Module):
    """Weights each channel by its mean, adds what a coarser grid says; on `[B, H, W, C]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, width // 4, bias=False), nn.ReLU(), nn.Linear(width // 4, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        weighted = x * self.channel(x.mean(dim=(1, 2), keepdim=True))
        coarse = self.spatial(weighted.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x + coarse)


class AdaptedBlock(Block):
    """A block with an adapter beside its perceptron."""

    def __init__(self, config: ViTConfig, window: int) -> None:
        super().__init__(config, window)
        self.Adapter = Adapter(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x)
        normed = self.norm2(x)
        return x + self.mlp(normed) + self.Adapter(normed)


class SAMMed2D(SAM):
    """SAM for medical images of 256 x 256.

    Args:
        checkpoint, sha256, variant, intensity, chunk, batch, precision, cache_mb: see `SAM`.
        masks: as for `SAM`; its training and tests took "best".
        geometry: "loader" pads images smaller than the input, as training did; "squash" never pads, as upstream's
            predictor does.
    """

    family = "SAM-Med2D"
    variants = {"vit_b": ViTConfig(size=256)}  # noqa: RUF012  # nobody writes to it

    def __init__(
        self,
        checkpoint: str | Path | None,
        sha256: str | None = None,
        variant: str | ViTConfig = "vit_b",
        masks: str = "best",
        intensity: str = "auto",
        geometry: str = "loader",
        chunk: int = 4,
        batch: int = 1,
        precision: str = "float32",
        cache_mb: float = 0,
    ) -> None:
        if geometry not in GEOMETRIES:
            raise InputError(f"geometry: unknown '{geometry}', expected one of {list(GEOMETRIES)}")
        super().__init__(checkpoint, sha256, variant, masks, intensity, chunk, batch, precision, cache_mb)
        self.geometry = geometry

    def build(self) -> None:
        """See `SAM.build`."""
        self.image_encoder = ImageEncoder(self.config, AdaptedBlock)
        self.make_heads(self.config.size, self.config.grid, self.config.channels)

    def mask_input(self, logits: Tensor) -> Tensor:
        """Training fed probabilities back, not logits."""
        return logits.sigmoid()

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`."""
        size, shape = self.config.size, tuple(image.shape[1:])
        normalised = standardised(as_picture(image, self.intensity).flip(0))
        if self.geometry == "squash" or max(shape) >= size:
            rows, columns = (torch.arange(size, device=image.device) * n // size for n in shape)
            to_model = scaling_about_corner(shape, (size, size), device=image.device)
            return normalised[:, rows][:, :, columns], to_model, (size, size)
        top, left = ((size - n) // 2 for n in shape)
        to_model = torch.eye(3, device=image.device)
        to_model[:2, 2] = torch.tensor([top, left], device=image.device)
        return F.pad(normalised, (left, size - shape[1] - left, top, size - shape[0] - top)), to_model, shape
