# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM-Med3D: SAM made three-dimensional, trained on medical volumes with clicks.

Wang et al., "SAM-Med3D", 2023 (uni-medical/SAM-Med3D, Apache-2.0; variant `vit_b_ori`, the released "turbo" weights).
Names and shapes are those of upstream's checkpoints; the code is our own. Input: axes towards right, anterior and
superior; 1.5 mm voxels; padded on all sides with 0, then normalised by the voxels above 0. Where 128 voxels do not hold
a volume, each prompt is asked in a crop around it (see `close_ups`), and features come from the whole with larger
voxels. A click always comes with a mask, at first of zeros, as training gave it.

Two slips of upstream's code are part of the trained weights and must not be put right: the position encoding of a place
(i, j, k) is that of a click at (j, i, k), while clicks go in as (i, j, k); and the relative positions are added along
other axes than meant (`TangledAttention`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..geometry import resize_by_area
from ..prompts import Prompts
from .close_ups import CloseUpSAM
from .embedding import Embedding
from .protocol import Decoded
from .sam_decoder import ImageTokens, decode_masks, image_tokens
from .upright import stability
from .vit import Attention, Block, ChannelNorm, ImageEncoder, ViTConfig

VOXEL = 1.5  # mm, of the training volumes


class TangledAttention(Attention):
    """Attention whose products with offsets land on the axes that upstream's indexing leads them to.

    With products D, H, W of a query at (d, h, w) and the tables of the three axes, each `[n, n, n, n]` over query and
    offset k, the score of query (d, h, w) and key (x, y, z) gets D[d, h, w, z] + H[d, h, x, z] + W[d, h, y, z].
    """

    def scores(self, queries: Tensor, tables: list[Tensor]) -> Tensor:
        """See `Attention.scores`."""
        by_depth = torch.einsum("ndhwc,dkc->ndhwk", queries, tables[0])[:, :, :, :, None, None]
        by_height = torch.einsum("ndhxc,hkc->ndhxk", queries, tables[1])[:, :, :, None, :, None]
        by_width = torch.einsum("ndhyc,ykc->ndhyk", queries, tables[2])[:, :, :, None, None]
        return by_depth + by_height + by_width


class VolumeBlock(Block):
    """A block with that attention."""

    attention = TangledAttention


class PositionEncoding(nn.Module):
    """Sine, cosine and once more sine of random frequencies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(3, channels // 3))
        self.positional_encoding_gaussian_matrix: Tensor

    def forward(self, places: Tensor) -> Tensor:
        """Encoding `[..., C]` of places `[..., 3]`, 0 to 1 across the input."""
        angles = 2 * torch.pi * (2 * places - 1) @ self.positional_encoding_gaussian_matrix
        return torch.cat([angles.sin(), angles.cos(), angles.sin()], dim=-1)

    def of_grid(self, n: int) -> Tensor:
        """Encoding `[C, n, n, n]` of a grid's voxels, first and second coordinate swapped (see the module)."""
        at = (torch.arange(n, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / n
        i, j, k = torch.meshgrid(at, at, at, indexing="ij")
        return self(torch.stack([j, i, k], dim=-1)).movedim(-1, 0)


class PromptEncoder3D(nn.Module):
    """Tokens of clicks, and the grid that a mask adds to the image's.

    Args:
        config: of the encoder.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.size, self.grid = config.size, config.grid
        self.pe_layer = PositionEncoding(config.channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, config.channels) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, config.channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, 4, 2, 2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv3d(4, 16, 2, 2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv3d(16, config.channels, 1),
        )
        self.no_mask_embed = nn.Embedding(1, config.channels)  # in the file; never used, as there always is a mask

    def tokens(self, points: Tensor, labels: Tensor) -> Tensor:
        """Tokens `[N, P + 1, C]` of points `[N, P, 3]` (voxels of the input), labels `[N, P]`; the last is padding."""
        outside, inside = (self.point_embeddings.get_parameter(f"{n}.weight") for n in (0, 1))
        kinds = torch.cat([self.not_a_point_embed.weight, outside, inside])  # of labels -1, 0, 1
        places = self.pe_layer((points + 0.5) / self.size) * (labels >= 0)[..., None]
        tokens = places + kinds[labels.long() + 1]
        return torch.cat([tokens, kinds[:1].expand(len(tokens), 1, -1)], dim=1)


class MaskDecoder3D(MaskDecoder):
    """SAM's decoder with transposed convolutions for volumes."""

    def __init__(self, channels: int) -> None:
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8)
        super().__init__(transformer_dim=channels, transformer=transformer)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(channels, channels // 4, 2, 2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            nn.ConvTranspose3d(channels // 4, channels // 8, 2, 2),
            nn.GELU(),
        )


class SAMMed3D(CloseUpSAM):
    """SAM for medical volumes; arguments as for `SAM`, of which `masks` and `intensity` have no meaning here, and:

    Args:
        close_ups: whether prompts of volumes larger than the input are asked in crops around them.

    The predicted quality is that of a mask's stability (how few voxels have a logit near 0), since training did not
    reach the head that predicts it.
    """

    family = "SAM-Med3D"
    variants = {"vit_b": ViTConfig(size=128, channels=384, dims=3)}  # noqa: RUF012  # nobody writes to it
    accepts = frozenset({"point", "mask"})
    trained_with = frozenset({"point"})
    prompt_encoder: PromptEncoder3D  # type: ignore[assignment]  # the same role, another signature

    def __init__(self, checkpoint: str | Path | None, *args: Any, close_ups: bool = True, **more: Any) -> None:
        super().__init__(checkpoint, *args, **more)
        self.close_ups = close_ups

    def describe(self) -> dict[str, Any]:
        """See `PromptableSegmenter.describe`."""
        return {**super().describe(), "close_ups": self.close_ups}

    def build(self) -> None:
        """See `SAM.build`."""
        self.image_encoder = ImageEncoder(self.config, VolumeBlock)
        self.prompt_encoder = PromptEncoder3D(self.config)
        self.mask_decoder = MaskDecoder3D(self.config.channels)

    def resampled(self, image: Tensor, spacing: tuple[float, ...]) -> Tensor:
        """A volume `[C, *S]` with voxels of 1.5 mm, or as large as needed to fit into the input."""
        shape = self.trained_shape(tuple(image.shape[1:]), spacing)
        shrink = min(1.0, self.config.size / max(shape))
        return resize_by_area(image, [max(1, round(n * shrink)) for n in shape])

    def trained_shape(self, shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[int]:
        """See `CloseUpSAM.trained_shape`."""
        return [max(1, round(n * step / VOXEL)) for n, step in zip(shape, spacing, strict=True)]

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`; the volume fits into the input."""
        size, shape = self.config.size, tuple(image.shape[1:])
        before = [(size - n) // 2 for n in shape]
        padding = [p for b, n in reversed(list(zip(before, shape, strict=True))) for p in (b, size - n - b)]
        to_model = torch.eye(4, device=image.device)
        to_model[:3, 3] = torch.tensor(before, device=image.device)
        return normalised(F.pad(image.mean(0, keepdim=True), padding)), to_model, shape

    def tokens(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, ImageTokens]:
        """See `SamHeads.tokens`."""
        encoder, grid = self.prompt_encoder, self.config.grid
        assert prompts.labels is not None  # boxes are refused before
        empty = prompts.coordinates.new_zeros(len(prompts), *[4 * grid] * 3)
        masks = empty if prompts.masks is None else prompts.masks
        with torch.autocast(prompts.coordinates.device.type, enabled=False):  # half precision would move the prompt
            sparse = encoder.tokens(prompts.coordinates, prompts.labels)
            dense = encoder.mask_downscaling((masks[:1] if prompts.masks is None else masks)[:, None])
            positions = encoder.pe_layer.of_grid(grid)
        return sparse, image_tokens(embedding.features, dense[0] if prompts.masks is None else dense, positions)

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        sparse, image = self.tokens(embedding, prompts)
        logits = decode_masks(self.mask_decoder, image, sparse, (0,))[0][:, 0]
        return Decoded(logits, stability(logits))


def normalised(volume: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the voxels above 0 (over all, if those are all alike)."""
    shown = volume[volume > 0]
    if len(shown) < 2 or shown.std() == 0:
        shown = volume.flatten()
    return (volume - shown.mean()) / shown.std().clamp(min=1e-8)
