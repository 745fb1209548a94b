# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The encoder of Medical SAM Adapter in its 3-D form: SAM's on the slices of a volume, with three adapters in every
block, one of which lets slices see each other.

What upstream's code (see `medical_sam_adapter`) does otherwise than one would expect is part of the trained weights and
must not be put right:

- relative positions have names of their own, so SAM's never reach them, and they are stretched to the axis they are
  used on (`StretchedAttention`), such as the near-square grid that the slices are laid out on (`near_square`);
- a window is padded before its norm, so that the padding attends as the norm's bias;
- in blocks with windows the "slices" that see each other are consecutive windows, mostly of one slice (`across`).
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vit import Attention, Block, ImageEncoder, ViTConfig

STORED_GRID = 64  # tokens along a side of SAM's position embedding, stored so whatever the input's size


class Adapter(nn.Module):
    """A narrow perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(width, width // 4)
        self.D_fc2 = nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.D_fc2(F.gelu(self.D_fc1(x)))


class StretchedAttention(Attention):
    """Attention whose relative positions are interpolated to the axis they are used on."""

    prefix = "rel_"

    def table(self, name: str, n: int) -> Tensor:
        """See `Attention.table`."""
        stored: Tensor = self.get_parameter(name)
        if len(stored) != 2 * n - 1:
            stored = F.interpolate(stored.T[None], 2 * n - 1, mode="linear")[0].T
        at = torch.arange(n, device=stored.device)
        return stored[at[:, None] - at + n - 1]


class SliceBlock(Block):
    """A block with adapters behind attention, beside the perceptron, and across slices.

    Attributes:
        slices: of a volume; the batch `[B, h, w, C]` is a whole number of volumes.
    """

    attention = StretchedAttention
    slices: int = 0

    def __init__(self, config: ViTConfig, window: int) -> None:
        super().__init__(config, window)
        self.Space_Adapter, self.Depth_Adapter, self.MLP_Adapter = (Adapter(config.width) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        """See `Block.attend`."""
        return x + self.everywhere(x)

    def inside(self, x: Tensor) -> Tensor:
        """See `Block.inside`."""
        normed = self.norm1(x)
        y = self.attn(normed)
        return y + self.Space_Adapter(y) + self.across(normed)

    def across(self, x: Tensor) -> Tensor:
        """The same attention over `slices` consecutive entries of the batch, place by place, as if laid out on a grid.

        The batch of a block with windows counts a slice's windows first: its consecutive entries are windows rather
        than slices.
        """
        places = x.flatten(1, 2).unflatten(0, (-1, self.slices)).transpose(1, 2)  # [B / slices, h w, slices, C]
        laid_out = places.flatten(0, 1).unflatten(1, near_square(self.slices))
        y = self.Depth_Adapter(self.attn(laid_out)).view(places.shape)
        return y.transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x)
        normed = self.norm2(x)
        return x + self.mlp(normed) + 0.5 * self.MLP_Adapter(normed)


class SliceEncoder(ImageEncoder):
    """SAM's encoder with these blocks; slices `[D, 3, size, size]` of one volume are its batch."""

    def __init__(self, config: ViTConfig, slices: int) -> None:
        super().__init__(config, SliceBlock)
        self.grid = config.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, STORED_GRID, STORED_GRID, config.width))
        for block in self.blocks:
            setattr(block, "slices", slices)  # noqa: B010  # a plain number, which modules are not typed for

    def positions(self) -> Tensor:
        """See `ImageEncoder.positions`."""
        stored = self.pos_embed.permute(0, 3, 1, 2)
        return F.interpolate(stored, (self.grid, self.grid), mode="bicubic").permute(0, 2, 3, 1)


def near_square(n: int) -> tuple[int, int]:
    """Rows and columns that `n` slices are laid out on: the most rows that are fewer than columns (a prime: 1)."""
    rows = max(a for a in range(1, isqrt(n - 1) + 1) if n % a == 0)
    return rows, n // rows
