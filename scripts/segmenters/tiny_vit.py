# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""TinyViT image encoder with the layout of LiteMedSAM's checkpoint.

A 256x256 image goes through a convolutional stage and three stages of windowed attention to one feature grid of 64x64
with 256 channels (the "neck"), the grid that SAM's mask decoder attends to. Parameter names are those of the upstream
checkpoint, so it loads strictly; the code is our own. Upstream: bowang-lab/MedSAM, branch LiteMedSAM (Apache-2.0),
after Wu et al., "TinyViT", ECCV 2022.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution without bias followed by batch normalisation, in one step where the statistics are fixed."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", convolution)
        self.add_module("bn", nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        conv, norm = self.c, self.bn
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - mean * scale
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups)


class PatchEmbedding(nn.Module):
    """Per-pixel embedding. LiteMedSAM keeps the full resolution here (upstream TinyViT strides by 4)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(channels_in, channels // 2), nn.GELU(), ConvNorm(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class InvertedBottleneck(nn.Module):
    """Expand, filter depth-wise, project, add (MBConv)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv1(x))
        y = F.gelu(self.conv2(y))
        return F.gelu(x + self.conv3(y))


class PatchMerging(nn.Module):
    """Change channels and reduce the grid by `stride`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel=3, stride=stride, groups=channels_out)
        self.conv3 = ConvNorm(channels_out, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


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

    def forward(self, x: Tensor) -> Tensor:
        windows, positions, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, positions, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        bias = self.attention_biases[:, self.bias_index]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(windows, -1, -1, -1))
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
    """Window attention, depth-wise convolution, perceptron. Works on [B, H, W, C]."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, kernel=3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend_in_windows(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        window = self.window
        # Zeros beyond the right and bottom edge take part in attention: the weights were trained so.
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, cols = x.shape[1] // window, x.shape[2] // window
        x = x.view(batch, rows, window, cols, window, channels).transpose(2, 3).reshape(-1, window * window, channels)
        x = self.attn(x).view(batch, rows, cols, window, window, channels).transpose(2, 3)
        return x.reshape(batch, rows * window, cols * window, channels)[:, :height, :width]


class ConvStage(nn.Module):
    """First stage: convolutional blocks at full resolution."""

    def __init__(self, channels: int, depth: int, channels_out: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InvertedBottleneck(channels) for _ in range(depth))
        self.downsample = PatchMerging(channels, channels_out, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class AttentionStage(nn.Module):
    """A stage of TinyViT blocks, then an optional merging of patches."""

    def __init__(self, channels: int, depth: int, heads: int, window: int, downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TinyViTBlock(channels, heads, window) for _ in range(depth))
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """Image encoder of LiteMedSAM.

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
        stages: list[nn.Module] = [ConvStage(channels[0], depths[0], channels[1])]
        for s in (1, 2, 3):
            # The last merging keeps the grid (upstream's rule: no stride where 320 channels come out).
            merging = PatchMerging(channels[s], channels[s + 1], stride=2 if s == 1 else 1) if s < 3 else None
            stages.append(AttentionStage(channels[s], depths[s], heads[s - 1], windows[s - 1], merging))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(channels[3], neck_channels, 1, bias=False),
            LayerNorm2d(neck_channels),
            nn.Conv2d(neck_channels, neck_channels, 3, padding=1, bias=False),
            LayerNorm2d(neck_channels),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        # Channels last: attention takes its tokens without a copy, and convolutions are faster too.
        x = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        levels = []
        for stage in self.layers:
            x = stage(x)
            levels.append(x)
        levels.append(self.neck(x))
        return [level.contiguous() for level in levels]
