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
        dims: 2 for pictures, 3 for volumes.
    """

    size: int = 1024
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    channels: int = 256
    dims: int = 2

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
    """Self-attention on a grid of tokens; each query adds a learned product with the offset to the key, axis by axis.

    Args:
        config: of the encoder; size: tokens along a side of the grid (or window) it is used on.
    """

    prefix = "rel_pos_"

    def __init__(self, config: ViTConfig, size: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.tables = [f"{self.prefix}{axis}" for axis in "dhw"[-config.dims :]]
        for name in self.tables:
            self.register_parameter(name, nn.Parameter(torch.zeros(2 * size - 1, config.width // config.heads)))
        offsets = torch.arange(size)[:, None] - torch.arange(size)[None] + size - 1  # query minus key
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *grid, C]` to the same."""
        batch, *grid, channels = x.shape
        tokens = x.flatten(1, -2).shape[1]
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        tables = [self.table(name, n).to(qkv.dtype) for name, n in zip(self.tables, grid, strict=True)]
        at_once = max(1, MASK_ELEMENTS // tokens**2)
        parts = []
        for q, k, v in zip(*(part.split(at_once) for part in qkv), strict=True):
            mask = self.scores(q.view(-1, *grid, q.shape[-1]), tables).reshape(-1, 1, tokens, tokens)
            parts.append(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)[:, 0])
        y = torch.cat(parts).view(batch, self.heads, tokens, -1)
        return self.proj(y.transpose(1, 2).reshape(batch, *grid, channels))

    def table(self, name: str, n: int) -> Tensor:
        """What a query multiplies with for each key, `[query, key, d]`, along an axis of `n` tokens."""
        return self.get_parameter(name)[self.offsets]

    def scores(self, queries: Tensor, tables: list[Tensor]) -> Tensor:
        """What offsets add, `[N, *grid, *grid]`, of queries `[N, *grid, d]` with tables `[n, n, d]`, one per axis."""
        dims = len(tables)
        scores = []
        for axis, table in enumerate(tables):
            along = torch.einsum("nq...d,qkd->nq...k", queries.movedim(1 + axis, 1), table).movedim(1, 1 + axis)
            scores.append(along.reshape(*along.shape[:-1], *[-1 if a == axis else 1 for a in range(dims)]))
        return sum(scores[1:], scores[0])


class Mlp(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Attention, then a perceptron, each behind a norm and added; on `[B, *grid, C]`.

    Args:
        config: of the encoder.
        window: tokens along a side of an attention window; 0 attends to the whole grid.
    """

    attention: type[Attention] = Attention

    def __init__(self, config: ViTConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = self.attention(config, window or config.grid)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width)

    def inside(self, x: Tensor) -> Tensor:
        """What a window, or the whole grid, makes of its tokens `[B, *grid, C]`."""
        return self.attn(x)

    def attend(self, x: Tensor) -> Tensor:
        """The attention half of the block."""
        return x + self.everywhere(self.norm1(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x)
        return x + self.mlp(self.norm2(x))

    def everywhere(self, x: Tensor) -> Tensor:
        """`inside` of the whole grid, or of each window."""
        if not self.window:
            return self.inside(x)
        batch, *grid, channels = x.shape
        window, dims = self.window, len(grid)
        # Zeros beyond the edges take part in attention, also where a window exceeds the grid: the weights were trained
        # so.
        x = F.pad(x, (0, 0, *(pad for n in reversed(grid) for pad in (0, -n % window))))
        counts = [n // window for n in x.shape[1:-1]]
        x = x.reshape(batch, *(n for count in counts for n in (count, window)), channels)
        inside = [window] * dims
        x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), -1).reshape(-1, *inside, channels)
        x = self.inside(x).view(batch, *counts, *inside, channels)
        x = x.permute(0, *(a for axis in range(dims) for a in (1 + axis, 1 + dims + axis)), -1)
        x = x.reshape(batch, *(n * window for n in counts), channels)
        for axis, n in enumerate(grid):
            x = x.narrow(1 + axis, 0, n)
        return x


class PatchEmbedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        convolution, channels = (nn.Conv2d, 3) if config.dims == 2 else (nn.Conv3d, 1)
        self.proj = convolution(channels, config.width, config.patch, config.patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).movedim(1, -1)


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels of each place of `[B, C, *grid]`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ImageEncoder(nn.Module):
    """Images `[B, 3, size, size]` (volumes: `[B, 1, size, size, size]`) to feature grids, shallow to deep.

    They are the tokens after the first global block, `[B, width, *grid]`, and the neck's `[B, channels, *grid]`, the
    one that the mask decoder attends to.

    Args:
        config: sizes.
        block: class of the transformer's blocks.
    """

    def __init__(self, config: ViTConfig, block: type[Block] = Block) -> None:
        super().__init__()
        self.first_global = min(config.global_blocks)
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, *[config.grid] * config.dims, config.width))
        self.blocks = nn.ModuleList(
            block(config, 0 if n in config.global_blocks else config.window) for n in range(config.depth)
        )
        convolution = nn.Conv2d if config.dims == 2 else nn.Conv3d
        self.neck = nn.Sequential(
            convolution(config.width, config.channels, 1, bias=False),
            ChannelNorm(config.channels),
            convolution(config.channels, config.channels, 3, padding=1, bias=False),
            ChannelNorm(config.channels),
        )

    def positions(self) -> Tensor:
        """What is added to each token for its place, `[1, *grid, width]`."""
        return self.pos_embed

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images) + self.positions()
        levels = []
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n == self.first_global:
                levels.append(x.movedim(-1, 1))
        return [*levels, self.neck(x.movedim(-1, 1))]
