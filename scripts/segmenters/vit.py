# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM's image encoder: a plain vision transformer with windows and decomposed relative positions.

Kirillov et al., "Segment Anything", ICCV 2023, after Li et al., "Exploring plain vision transformer backbones for
object detection", ECCV 2022. Parameter names and shapes are those of upstream's checkpoints
(facebookresearch/segment-anything, Apache-2.0), so these load strictly; the code is our own. Attention goes through
PyTorch's fused kernel with the relative positions as its additive mask, a few heads at a time: for all 16 heads of SAM
ViT-L at once the mask alone would be 1 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

MASK_ELEMENTS = 2**24  # of the additive mask at once: 64 MB in float32, one head of SAM's global attention


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of an encoder.

    Attributes:
        size: voxels of the (square) input; patch: of a token.
        width, depth, heads: of the transformer.
        global_blocks: blocks that attend to the whole image; the others attend in windows of `window` tokens.
        channels: of the feature grid that the mask decoder attends to.
    """

    size: int = 1024
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    channels: int = 256

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.size // self.patch


VARIANTS = {
    "vit_b": ViTConfig(),
    "vit_l": ViTConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViTConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}


class Attention(nn.Module):
    """Self-attention on a grid of tokens; each query adds a learned product with the row and the column offset.

    Args:
        width, heads: of the transformer.
        size: tokens along a side of the grid (or window) it is used on.
    """

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, width // heads))
        # The tables are in order of query minus key; a plain tensor index keeps the encoder free of other state.
        offsets = torch.arange(size)[:, None] - torch.arange(size)[None] + size - 1
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` to the same."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        rows, columns = self.rel_pos_h[self.offsets], self.rel_pos_w[self.offsets]  # [H, H, d], [W, W, d]
        at_once = max(1, MASK_ELEMENTS // (height * width) ** 2)
        parts = []
        for q, k, v in zip(*(part.split(at_once) for part in qkv), strict=True):
            asked = q.view(-1, height, width, q.shape[-1])
            by_row = torch.einsum("nhwd,hkd->nhwk", asked, rows.to(q.dtype))
            by_column = torch.einsum("nhwd,wkd->nhwk", asked, columns.to(q.dtype))
            mask = (by_row[..., :, None] + by_column[..., None, :]).reshape(-1, 1, height * width, height * width)
            parts.append(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)[:, 0])
        y = torch.cat(parts).view(batch, self.heads, height, width, -1)
        return self.proj(y.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels))


class Mlp(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Attention, then a perceptron, each behind a norm and added; on `[B, H, W, C]`.

    Args:
        config: of the encoder.
        window: tokens along a side of an attention window; 0 attends to the whole grid.
    """

    def __init__(self, config: ViTConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads, window or config.grid)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width)

    def attend(self, x: Tensor) -> Tensor:
        """The attention half of the block."""
        y = self.norm1(x)
        return x + (self._attend_in_windows(y) if self.window else self.attn(y))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x)
        return x + self.mlp(self.norm2(x))

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        window = self.window
        # Zeros beyond the edges take part in attention, also where a window exceeds the grid: the weights were trained
        # so.
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = x.shape[1] // window, x.shape[2] // window
        x = x.view(batch, rows, window, columns, window, channels).transpose(2, 3).flatten(0, 2)
        x = self.attn(x).view(batch, rows, columns, window, window, channels).transpose(2, 3)
        return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


class PatchEmbedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Images `[B, 3, size, size]` to feature grids, shallow to deep.

    They are the tokens after the first global block, `[B, width, grid, grid]`, and the neck's `[B, channels, grid,
    grid]`, the one that the mask decoder attends to.

    Args:
        config: sizes.
        block: class of the transformer's blocks.
    """

    def __init__(self, config: ViTConfig, block: type[Block] = Block) -> None:
        super().__init__()
        self.first_global = min(config.global_blocks)
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.width))
        self.blocks = nn.ModuleList(
            block(config, 0 if n in config.global_blocks else config.window) for n in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.channels, 1, bias=False),
            LayerNorm2d(config.channels),
            nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=False),
            LayerNorm2d(config.channels),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images) + self.pos_embed
        levels = []
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n == self.first_global:
                levels.append(x.permute(0, 3, 1, 2))
        return [*levels, self.neck(x.permute(0, 3, 1, 2))]
