# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM-HQ: SAM with one more output token, whose mask sees early features of the encoder and follows thin structures.

Ke et al., "Segment anything in high quality", NeurIPS 2023 (SysCV/sam-hq, Apache-2.0). Names and shapes are those of
upstream's checkpoints; the code is our own. The mask is the sum of SAM's and the new one's logits, upstream's default.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from ..prompts import Prompts
from .embedding import Embedding
from .protocol import Decoded
from .sam import SAM
from .sam_decoder import as_grid, attend, hyper_weights, masks_from, upscaled
from .sam_heads import best


def finer_by_four(channels_in: int, hidden: int, channels: int) -> nn.Sequential:
    """Two transposed convolutions, each doubling the grid."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, hidden, 2, 2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, channels, 2, 2),
    )


class MaskDecoderHQ(MaskDecoder):
    """SAM's decoder with the parts of the additional mask.

    Args:
        channels: of the feature grid; width: of the encoder's tokens.
    """

    def __init__(self, channels: int, width: int) -> None:
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8)
        super().__init__(transformer_dim=channels, transformer=transformer)
        self.hf_token = nn.Embedding(1, channels)
        self.hf_mlp = MLP(channels, channels, channels // 8, 3)
        self.compress_vit_feat = finer_by_four(width, channels, channels // 8)
        self.embedding_encoder = finer_by_four(channels, channels // 4, channels // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(channels // 8, channels // 4, 3, padding=1),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 8, 3, padding=1),
        )


class SAMHQ(SAM):
    """SAM in high quality; arguments as for `SAM`. An embedding has one more grid, that of the additional mask."""

    family = "SAM-HQ"
    decoder_levels = (-2, -1)
    mask_decoder: MaskDecoderHQ

    def build(self) -> None:
        """See `SAM.build`."""
        super().build()
        self.mask_decoder = MaskDecoderHQ(self.config.channels, self.config.width)

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        early, deep = super()._encode(inputs)
        decoder = self.mask_decoder
        return [early, decoder.embedding_encoder(deep) + decoder.compress_vit_feat(early), deep]

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        decoder = self.mask_decoder
        sparse, image = self.tokens(embedding, prompts)
        tokens = torch.cat([decoder.mask_tokens.weight, decoder.hf_token.weight])
        queries, keys = attend(decoder, image, sparse, tokens)
        finer = upscaled(decoder, keys)
        logits = masks_from(finer, hyper_weights(decoder, queries, self.outputs), image.size)
        quality = decoder.iou_prediction_head(queries[:, 0])[:, list(self.outputs)]
        seen = decoder.embedding_maskfeature(as_grid(finer, image.size)) + embedding.levels[-2]
        weights = decoder.hf_mlp(queries[:, len(tokens)])
        usual = best(logits, quality)
        return Decoded(usual.logits + torch.einsum("nc,nchw->nhw", weights, seen), usual.quality)
