# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM's prompt encoder and mask decoder, which every model of its family shares.

Weights and prompt encoder are those of the package `segment-anything`; the decoder's arithmetic is `sam_decoder`.
Coordinates stay differentiable: both are called directly, never through upstream's predictor, which detaches them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from ..errors import InputError
from ..geometry import bounding_box
from ..prompts import Prompts
from .embedding import Embedding
from .promptable import PromptableSegmenter
from .protocol import Decoded
from .sam_decoder import ImageTokens, decode_masks, image_tokens

OUTPUTS = {"single": (0,), "best": (1, 2, 3)}


class SamHeads(PromptableSegmenter):
    """A segmenter whose prompts and masks go through SAM's heads.

    Attributes:
        outputs: the decoder's masks that are asked for; of several, each prompt gets the one of the best predicted
            quality.
    """

    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder
    outputs: Sequence[int] = OUTPUTS["single"]

    def make_heads(self, size: int, grid: int, channels: int = 256) -> None:
        """Build both heads.

        Args:
            size: voxels of the square model input; grid, channels: of the feature grid.
        """
        self.prompt_encoder = PromptEncoder(
            embed_dim=channels, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8),
        )

    def choose_outputs(self, masks: str) -> None:
        """Ask for the mask meant for one answer ("single") or the best of the three for ambiguous prompts ("best").

        Raises:
            InputError: for anything else.
        """
        if masks not in OUTPUTS:
            raise InputError(f"masks: unknown '{masks}', expected one of {sorted(OUTPUTS)}")
        self.outputs = OUTPUTS[masks]

    def tokens(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, ImageTokens]:
        """Prompt tokens `[N, T', C]` and the image's tokens, for prompts in voxels of the model input."""
        xy = prompts.coordinates.flip(-1)  # SAM counts columns first; the encoder adds the half pixel itself
        points = None if prompts.labels is None else (xy, prompts.labels)
        boxes = xy.flatten(1) if prompts.labels is None else None
        masks = None if prompts.masks is None else self.mask_input(prompts.masks)[:, None]
        with torch.autocast(xy.device.type, enabled=False):  # half precision would move the prompt
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
            positions = self.prompt_encoder.get_dense_pe()
        return sparse, image_tokens(embedding.features, dense[0] if masks is None else dense, positions[0])

    def mask_input(self, logits: Tensor) -> Tensor:
        """What the prompt encoder takes of a mask given as logits `[N, *mask]`."""
        return logits

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        sparse, image = self.tokens(embedding, prompts)
        return best(*decode_masks(self.mask_decoder, image, sparse, self.outputs))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Segment in one call, the form that MONAI's `verify_net_in_out` checks.

        Args:
            x: `[B, 4, H, W]`: three image channels and a prompt channel whose positive voxels span the box.

        Returns:
            Logits `[B, 1, H, W]`.
        """
        masks = []
        for image, prompt in zip(x[:, :3], x[:, 3], strict=True):
            box = bounding_box(prompt > 0)
            if box is None:
                raise ValueError("the prompt channel (index 3) has no positive voxel, so there is nothing to segment")
            embedding = self.encode([image])[0]
            masks.append(embedding.to_image(self.decode(embedding, Prompts(box[None])).logits))
        return torch.stack(masks).to(x.dtype)


def best(logits: Tensor, quality: Tensor) -> Decoded:
    """Of masks `[N, M, *mask]` with quality `[N, M]`, each prompt's best: `[N, *mask]` and `[N]`."""
    choice = quality.argmax(1)
    one = torch.arange(len(choice), device=choice.device)
    return Decoded(logits[one, choice], quality[one, choice])
