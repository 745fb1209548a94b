# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM 2.1 as a segmenter of images, and MedSAM2, which is its smallest network trained further on medical volumes.

Ravi et al., "SAM 2: segment anything in images and videos", ICLR 2025 (facebookresearch/sam2, Apache-2.0); Ma et al.,
"MedSAM2", 2025 (bowang-lab/MedSAM2, Apache-2.0). The authors' files are read; what they hold for videos is not used.
The encoder (Hiera and its feature pyramid) is that of the package `transformers`, see `requirements-sam2.txt`. Prompt
encoder and mask decoder are SAM's with additions: two finer feature grids are added where masks are refined, one more
token, quality through a sigmoid. A box is asked as its authors' predictor does, with a padding token behind it.
Input: squashed to a square, so the two axes have scales of their own; mean and deviation of ImageNet taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import scaling_about_corner
from ..prompts import Prompts
from .checkpoints import load_strictly
from .embedding import Embedding
from .intensities import as_picture
from .protocol import Decoded
from .sam import SAM
from .sam2_layout import our_layout
from .sam_decoder import ImageTokens, attend, by_position, hyper_weights, masks_from, upscaled
from .sam_heads import best
from .vit import ViTConfig

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red green blue


@dataclass(frozen=True)
class HieraConfig(ViTConfig):
    """Sizes of a Hiera encoder; width and heads double from stage to stage, the grid halves.

    Attributes:
        width, heads: of the first stage, whose tokens are a quarter of `patch` wide; depth and window have no meaning.
        stages: blocks of each; windows: tokens along a side of its attention windows.
        background: tokens along a side of the position embedding that is stretched over the image.
    """

    width: int = 96
    heads: int = 1
    global_blocks: tuple[int, ...] = (5, 7, 9)
    stages: tuple[int, ...] = (1, 2, 7, 2)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    background: int = 7


VARIANTS = {
    "tiny": HieraConfig(),
    "small": HieraConfig(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base_plus": HieraConfig(width=112, heads=2, stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=14),
    "large": HieraConfig(width=144, heads=2, stages=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)),
}


def make_encoder(config: HieraConfig) -> nn.Module:
    """The encoder, without weights.

    Raises:
        InputError: when the package is not installed.
    """
    try:
        from transformers import Sam2HieraDetConfig, Sam2VisionConfig, Sam2VisionModel  # only here: no other needs it
    except ImportError as error:
        raise InputError(
            "network_def: SAM 2 and MedSAM2 need the package transformers (4.56 or newer), which is not installed; "
            "`pip install -r requirements-sam2.txt`"
        ) from error
    doubled = [2**n for n in range(len(config.stages))]
    widths = [config.width * n for n in doubled]
    backbone = Sam2HieraDetConfig(
        hidden_size=config.width,
        num_attention_heads=config.heads,
        image_size=[config.size, config.size],
        blocks_per_stage=list(config.stages),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[config.heads * n for n in doubled],
        window_size_per_stage=list(config.windows),
        global_attention_blocks=list(config.global_blocks),
        window_positional_embedding_background_size=[config.background, config.background],
    )
    return Sam2VisionModel(
        Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=widths[::-1],
            backbone_feature_sizes=[[n * config.grid, n * config.grid] for n in (4, 2, 1)],
            fpn_hidden_size=config.channels,
        )
    )


class MaskDecoder2(MaskDecoder):
    """SAM's decoder with what SAM 2 adds; the head that tells whether an object is visible serves videos."""

    def __init__(self, channels: int) -> None:
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8)
        super().__init__(transformer_dim=channels, transformer=transformer)
        self.obj_score_token = nn.Embedding(1, channels)
        self.pred_obj_score_head = MLP(channels, channels, 1, 3)
        self.conv_s0 = nn.Conv2d(channels, channels // 8, 1)
        self.conv_s1 = nn.Conv2d(channels, channels // 4, 1)
        self.iou_prediction_head = MLP(channels, 256, self.num_mask_tokens, 3, sigmoid_output=True)


class SAM2(SAM):
    """SAM 2.1; arguments as for `SAM`, variants "tiny", "small", "base_plus" and "large".

    An embedding's grids are those that decoding reads: two fine ones, then the one that the decoder attends to.
    """

    family = "SAM 2.1"
    variants = VARIANTS
    decoder_levels = (-3, -2, -1)
    shrinking = "bilinear"
    config: HieraConfig
    image_encoder: nn.Module  # type: ignore[assignment]  # the same role, another class
    mask_decoder: MaskDecoder2

    def __init__(
        self,
        checkpoint: str | Path | None,
        sha256: str | None = None,
        variant: str | ViTConfig = "tiny",
        masks: str = "single",
        intensity: str = "auto",
        chunk: int = 4,
        batch: int = 1,
        precision: str = "float32",
        cache_mb: float = 0,
    ) -> None:
        super().__init__(checkpoint, sha256, variant, masks, intensity, chunk, batch, precision, cache_mb)

    def build(self) -> None:
        """See `SAM.build`."""
        self.image_encoder = make_encoder(self.config)
        self.build_heads()

    def build_heads(self) -> None:
        """Make all but the encoder."""
        self.make_heads(self.config.size, self.config.grid, self.config.channels)
        self.mask_decoder = MaskDecoder2(self.config.channels)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, self.config.channels))

    def load(self, checkpoint: str | Path, sha256: str | None) -> None:
        """See `SAM.load`."""
        load_strictly(self, checkpoint, family=self.spec.name, sha256=sha256, layout=our_layout)

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`."""
        size = (self.config.size, self.config.size)
        picture = as_picture(image, self.intensity).expand(3, *image.shape[1:]) / 255
        squashed = F.interpolate(picture[None], size, mode=self.shrinking, antialias=True)[0].clamp(0, 1)
        mean, deviation = (torch.tensor(v, device=image.device).reshape(3, 1, 1) for v in (MEAN, DEVIATION))
        to_model = scaling_about_corner(image.shape[1:], size, device=image.device)
        return (squashed - mean) / deviation, to_model, size

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        finest, finer, deep = self.image_encoder(inputs).fpn_hidden_states
        decoder = self.mask_decoder
        return [decoder.conv_s0(finest), decoder.conv_s1(finer), deep + self.no_mem_embed[0, 0][:, None, None]]

    def tokens(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, ImageTokens]:
        """See `SamHeads.tokens`."""
        sparse, image = super().tokens(embedding, prompts)
        if prompts.labels is None:
            padding = self.prompt_encoder.not_a_point_embed.weight
            sparse = torch.cat([sparse, padding.expand(len(sparse), 1, -1)], dim=1)
        return sparse, image

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        decoder = self.mask_decoder
        sparse, image = self.tokens(embedding, prompts)
        tokens = torch.cat([decoder.mask_tokens.weight, decoder.obj_score_token.weight])
        queries, keys = attend(decoder, image, sparse, tokens)
        finest, finer, _ = embedding.levels[-3:]
        early = (by_position(finer, image.size), by_position(finest, image.size))
        logits = masks_from(upscaled(decoder, keys, early), hyper_weights(decoder, queries, self.outputs), image.size)
        return best(logits, decoder.iou_prediction_head(queries[:, 0])[:, list(self.outputs)])


class MedSAM2(SAM2):
    """SAM 2.1 tiny at 512 x 512, trained on medical volumes and videos with boxes and fewer clicks; arguments as for
    `SAM2`.
    """

    family = "MedSAM2"
    variants = {"tiny": HieraConfig(size=512)}  # noqa: RUF012  # nobody writes to it
    trained_with = frozenset({"point", "box"})
    shrinking = "bicubic"
