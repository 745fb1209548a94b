# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Medical SAM Adapter in its 3-D form: SAM ViT-B on the slices of a volume, with adapters in every block, one of which
lets slices see each other.

Wu et al., "Medical SAM Adapter", Medical Image Analysis 2025. Names and shapes are those of upstream's training states
(ImprintLab/Medical-SAM-Adapter 4dcdc63, GPL-3.0, of which only facts are used); the code is our own. Input, as its
training on CT: axes towards right, anterior and superior; voxels of 1.5 x 1.5 x 2 mm, or larger ones where a volume
would not fit into the crop; a window of intensities mapped to 0..1; padded on all sides with 0; slices enlarged.

What upstream's code does otherwise than one would expect is part of the trained weights and must not be put right:

- those of the encoder, see `slice_encoder`;
- in the decoder, tokens that attend to themselves keep their residual and their places (`TwoWayBlock`);
- a click is given as row, column, in voxels of the crop, to the encoder of SAM, which takes it for column, row, in
  voxels of the enlarged slice; each slice gets the clicks of all slices.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import resize_by_area, scaling_about_corner
from ..prompts import Prompts
from .embedding import Embedding
from .intensities import unit_range
from .protocol import Decoded
from .sam_decoder import ImageTokens, decode_masks
from .slice_encoder import SliceEncoder
from .upright import UprightSAM, stability
from .vit import ViTConfig

VOXEL = (1.5, 1.5, 2.0)  # mm, of the training volumes
CLICKS = ("training", "image")
AT_ONCE = 16  # slices decoded at once


class TokenMlp(nn.Module):
    """Two-layer perceptron of the decoder's tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(width, hidden), nn.ReLU())])
        self.fc = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers[0](x))


class TwoWayBlock(TwoWayAttentionBlock):
    """A decoder's layer whose tokens keep what they were, and where they are, when they attend to themselves."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__(width, num_heads=8, mlp_dim=2048, skip_first_layer_pe=first)
        self.mlp = TokenMlp(width, 2048)

    def among_tokens(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """See `sam_decoder`; SAM's first layer drops the queries, its second adds places for the weights alone."""
        placed = queries if self.skip_first_layer_pe else queries + prompts
        return placed + self.self_attn(q=placed, k=placed, v=placed)


class MedicalSAMAdapter(UprightSAM):
    """SAM adapted to volumes; takes clicks.

    A click's place within its slice is asked in all slices; its depth is not seen by the network. The predicted quality
    is the stability of the mask, since training did not reach the head that predicts it.

    Args:
        checkpoint, sha256, chunk, batch, precision, cache_mb: see `SAM`.
        variant: "vit_b" (slices enlarged to 1024 x 1024), "vit_b_256", or sizes of another encoder; as in the training.
        slices: of a volume, which see each other; as in the training (upstream's `chunk`).
        crop: voxels of a slice along a side before it is enlarged; as in the training (`roi_size`).
        window: intensities mapped to 0 and 1; None: least and greatest value.
        clicks: "training" gives them as upstream's training did (see the module), "image" as SAM expects them.
    """

    family = "Medical SAM Adapter"
    variants = {"vit_b": ViTConfig(), "vit_b_256": ViTConfig(size=256)}  # noqa: RUF012  # nobody writes to it
    accepts = frozenset({"point"})
    trained_with = frozenset({"point"})

    def __init__(
        self,
        checkpoint: str | Path | None,
        sha256: str | None = None,
        variant: str | ViTConfig = "vit_b",
        slices: int = 96,
        crop: int = 96,
        window: tuple[float, float] | None = (-175.0, 250.0),
        clicks: str = "training",
        chunk: int = 4,
        batch: int = 1,
        precision: str = "float32",
        cache_mb: float = 0,
    ) -> None:
        if clicks not in CLICKS:
            raise InputError(f"clicks: unknown '{clicks}', expected one of {list(CLICKS)}")
        if slices < 2 or crop < 1:
            raise InputError(f"slices, crop: {slices} slices of {crop} voxels a side, expected at least 2 and 1")
        self.slices, self.crop, self.window, self.clicks = slices, crop, window, clicks
        super().__init__(checkpoint, sha256, variant, chunk=chunk, batch=batch, precision=precision, cache_mb=cache_mb)
        self.spec = replace(self.spec, dims=3, input_size=(self.config.size, self.config.size, slices))

    def build(self) -> None:
        """See `SAM.build`."""
        self.image_encoder = SliceEncoder(self.config, self.slices)
        self.make_heads(self.config.size, self.config.grid, self.config.channels)
        layers = [TwoWayBlock(self.config.channels, first) for first in (True, False)]
        self.mask_decoder.transformer.layers = nn.ModuleList(layers)

    def resampled(self, image: Tensor, spacing: tuple[float, ...]) -> Tensor:
        """See `UprightSAM.resampled`; voxels are as large as needed to fit into the crop."""
        extents = [n * step / voxel for n, step, voxel in zip(image.shape[1:], spacing, VOXEL, strict=True)]
        room = (self.crop, self.crop, self.slices)
        shrink = min(1.0, *(most / extent for most, extent in zip(room, extents, strict=True)))
        return resize_by_area(image, [max(1, round(extent * shrink)) for extent in extents])

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`; the volume fits into the crop."""
        size, room, shape = self.config.size, (self.crop, self.crop, self.slices), tuple(image.shape[1:])
        before = [(most - n) // 2 for most, n in zip(room, shape, strict=True)]
        padding = [p for b, n, most in reversed(list(zip(before, shape, room, strict=True))) for p in (b, most - n - b)]
        crop = F.pad(self.in_window(image.float().mean(0, keepdim=True)), padding)
        enlarged = F.interpolate(crop.movedim(-1, 0), (size, size), mode="bilinear", antialias=True).movedim(0, -1)
        shift = torch.eye(4, device=image.device)
        shift[:3, 3] = torch.tensor(before, device=image.device)
        ratio = size / self.crop
        to_model = scaling_about_corner(room, (size, size, self.slices), device=image.device) @ shift
        return enlarged.expand(3, -1, -1, -1), to_model, (round(shape[0] * ratio), round(shape[1] * ratio), shape[2])

    def in_window(self, image: Tensor) -> Tensor:
        """Intensities as 0 to 1."""
        if self.window is None:
            return unit_range(image)
        low, high = self.window
        return ((image - low) / (high - low)).clamp(0, 1)

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        # The deepest grid alone: the tokens would take three times as much memory, a gigabyte a volume.
        deep = [self.image_encoder(volume.movedim(-1, 0))[-1] for volume in inputs]
        return [torch.stack([grid.movedim(0, -1) for grid in deep])]

    def sparse(self, prompts: Prompts) -> Tensor:
        """Prompt tokens `[N, T, C]` of clicks `[N, P, 3]` in voxels of the model input.

        Training gave a click per slice, all of them to every slice: so the clicks are repeated until they are as many.
        """
        assert prompts.labels is not None  # boxes are refused before
        places = prompts.coordinates[..., :2]
        asked = (places + 0.5) * self.crop / self.config.size - 0.5 if self.clicks == "training" else places.flip(-1)
        times = max(1, self.slices // places.shape[1])
        points = (asked.repeat_interleave(times, dim=1), prompts.labels.repeat_interleave(times, dim=1))
        with torch.autocast(asked.device.type, enabled=False):  # half precision would move the prompt
            return self.prompt_encoder(points=points, boxes=None, masks=None)[0]

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        sparse, grid = self.sparse(prompts), self.config.grid
        position = self.prompt_encoder.get_dense_pe()[0].flatten(1).T
        keys = embedding.features.permute(3, 1, 2, 0).flatten(1, 2) + self.prompt_encoder.no_mask_embed.weight
        volumes = []
        for tokens in sparse:
            parts = [
                decode_masks(
                    self.mask_decoder, ImageTokens(some, position, (grid, grid)), tokens.expand(len(some), -1, -1)
                )[0][:, 0]
                for some in keys.split(AT_ONCE)
            ]
            volumes.append(torch.cat(parts).movedim(0, -1))
        logits = torch.stack(volumes)
        return Decoded(logits, stability(logits))
