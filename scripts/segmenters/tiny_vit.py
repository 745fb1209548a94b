# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""TinyViT image encoder with the layout of LiteMedSAM's checkpoint.

A 256x256 image goes through a convolutional stage and three stages of windowed attention to one feature grid of 64x64
with 256 channels (the "neck"), the grid that SAM's mask decoder attends to. Parameter names are those of the upstream
checkpoint, so it loads strictly; the code is our own. Upstream: bowang-lab/MedSAM, branch LiteMedSAM (Apache-2.0),
after Wu et al., "TinyViT", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .strips import by_strips
from .vit import ChannelNorm

Layer = Callable[[Tensor], Tensor]


class ConvNorm(nn.Module):
    """Convolution without bias followed by batch normalisation with fixed statistics."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def folded(self) -> Layer:
        """Both in one step."""
        conv, norm = self.c, self.bn
        scale = norm.weight * torch.rsqrt(norm.get_buffer("running_var") + norm.eps)
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - norm.get_buffer("running_mean") * scale
        if conv.kernel_size == (1, 1):
            return lambda x: F.linear(x, weight.flatten(1), bias)

        def convolved(x: Tensor) -> Tensor:
            channels_first = x.permute(0, 3, 1, 2)  # in name: the memory stays as it is
            return F.conv2d(channels_first, weight, bias, conv.stride, conv.padding, groups=conv.groups).movedim(1, -1)

        return convolved


class PatchEmbedding(nn.Module):
    """Per-pixel embedding. LiteMedSAM keeps the full resolution here (upstream TinyViT strides by 4)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.seq = nn.Sequential(ConvNorm(channels_in, channels // 2), nn.GELU(), ConvNorm(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (layer.folded() for layer in self.seq if isinstance(layer, ConvNorm))
        return by_strips(lambda strip: second(F.gelu(first(strip))), x, self.channels)


class Bottleneck(nn.Module):
    """Change channels, filter each one for itself, change channels."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.hidden, self.stride = hidden, stride
        self.conv1 = ConvNorm(channels_in, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        conv1, conv2, conv3 = (conv.folded() for conv in (self.conv1, self.conv2, self.conv3))
        return by_strips(
            lambda strip: self.joined(strip, conv3(F.gelu(conv2(F.gelu(conv1(strip)))))),
            x,
            self.hidden,
            reach=1,
            stride=self.stride,
        )

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        """The output, from what came in and what the convolutions made of it."""
        return y


class InvertedBottleneck(Bottleneck):
    """Expand, filter depth-wise, project, add (MBConv)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__(channels, channels * expansion, channels)

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        return F.gelu(x + y)


class PatchMerging(Bottleneck):
    """Change channels and reduce the grid by `stride`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, channels_out, stride)


class WindowAttention(nn.Module):
    """Self-attention inside one window, with a learned bias per absolute offset of the two positions."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        # Offsets are numbered in the order in which they first appear, which for row-major positions is row * window +
        # col.
        rows, cols = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        positions = torch.stack([rows.flatten(), cols.flatten()], dim=1)
        offsets = (positions[:, None] - positions[None]).abs()
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("bias_index", offsets[..., 0] * window + offsets[..., 1], persistent=False)
        self.bias_index: Tensor

    def biases(self) -> Tensor:
        """What each pair of positions adds to its score, `[heads, P, P]`."""
        return self.attention_biases[:, self.bias_index]

    def forward(self, x: Tensor, biases: Tensor) -> Tensor:
        windows, positions, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, positions, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=biases.expand(windows, -1, -1, -1))
        return self.proj(y.transpose(1, 2).reshape(windows, positions, channels))


class Mlp(nn.Module):
    """Two-layer perceptron behind a layer norm."""

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Window attention, depth-wise convolution, perceptron."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, kernel=3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        channels, biases, conv = x.shape[-1], self.attn.biases(), self.local_conv.folded()
        x = by_strips(lambda strip: strip + self.among_windows(strip, biases), x, 3 * channels, multiple=self.window)
        return by_strips(lambda strip: self.refined(conv(strip)), x, 4 * channels, reach=1)

    def refined(self, x: Tensor) -> Tensor:
        """What the perceptron makes of each token, added."""
        return x + self.mlp(x)

    def among_windows(self, x: Tensor, biases: Tensor) -> Tensor:
        """Attention inside each window, of whose grid a row is `window` rows of `x`."""
        batch, height, width, channels = x.shape
        window = self.window
        # Zeros beyond the right and bottom edge take part in attention: the weights were trained so.
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, cols = x.shape[1] // window, x.shape[2] // window
        x = x.view(batch, rows, window, cols, window, channels).transpose(2, 3).reshape(-1, window * window, channels)
        x = self.attn(x, biases).view(batch, rows, cols, window, window, channels).transpose(2, 3)
        return x.reshape(batch, rows * window, cols * window, channels)[:, :height, :width]


class Stage(nn.Module):
    """Blocks, then an optional merging of patches."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """Image encoder of LiteMedSAM; its parts work on grids `[B, H, W, C]`.

    `forward` takes images [B, 3, 256, 256] in [0, 1] and returns a list of feature grids, shallow to deep:
    128 channels at 128x128, 160 at 64x64, 320 at 64x64 (twice) and the neck's 256 at 64x64, which is the last.
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = (64, 128, 160, 320),
        depths: tuple[int, int, int, int] = (2, 2, 6, 2),
        heads: tuple[int, int, int] = (4, 5, 10),
        windows: tuple[int, int, int] = (7, 14, 7),
        neck_channels: int = 256,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(3, channels[0])
        blocks: list[list[nn.Module]] = [[InvertedBottleneck(channels[0]) for _ in range(depths[0])]]
        for width, depth, head_count, window in zip(channels[1:], depths[1:], heads, windows, strict=True):
            blocks.append([TinyViTBlock(width, head_count, window) for _ in range(depth)])
        # The last merging keeps the grid (upstream's rule: no stride where 320 channels come out).
        merging = [PatchMerging(channels[s], channels[s + 1], stride=1 if s == 2 else 2) for s in range(3)]
        self.layers = nn.ModuleList(map(Stage, blocks, [*merging, None]))
        self.neck = nn.Sequential(
            nn.Conv2d(channels[3], neck_channels, 1, bias=False),
            ChannelNorm(neck_channels),
            nn.Conv2d(neck_channels, neck_channels, 3, padding=1, bias=False),
            ChannelNorm(neck_channels),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images.movedim(1, -1))
        levels = []
        for stage in self.layers:
            x = stage(x)
            levels.append(x.movedim(-1, 1))
        levels.append(self.neck(levels[-1]))
        return [level.contiguous() for level in levels]
