# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM with its ViT encoders B, L and H, trained on pictures with points, boxes and masks as prompts.

Kirillov et al., "Segment Anything", ICCV 2023 (Apache-2.0). Input: longest side to 1024 by antialiased bilinear
interpolation, mean and deviation of the training pictures taken out, then padded at the far ends with zeros. A point
maps by pixel edges, `(p + 1/2) r - 1/2`, which is where it is seen; upstream's predictor maps it by `p r`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import scaling_about_corner
from .checkpoints import load_strictly
from .intensities import as_picture, check_rule, standardised
from .protocol import SegmenterSpec
from .sam_heads import SamHeads
from .vit import VARIANTS, ImageEncoder, ViTConfig


class SAM(SamHeads):
    """Segment Anything.

    Args:
        checkpoint: file of weights, upstream's or one trained further with its keys.
        sha256: expected hash of `checkpoint`, if it is to be verified.
        variant: "vit_b", "vit_l", "vit_h", or sizes of another encoder.
        masks: "single" takes the mask meant for one answer, "best" that of the best predicted quality of three.
        intensity: "auto", "picture" or "stretch", see `intensities.as_picture`.
        chunk, batch, precision, cache_mb: see `PromptableSegmenter`.
    """

    family = "SAM"
    variants: Mapping[str, ViTConfig] = VARIANTS
    accepts = frozenset({"point", "box", "mask"})
    trained_with = frozenset({"point", "box", "mask"})
    decoder_levels: tuple[int, ...] = (-1,)

    def __init__(
        self,
        checkpoint: str | Path | None,
        sha256: str | None = None,
        variant: str | ViTConfig = "vit_b",
        masks: str = "single",
        intensity: str = "auto",
        chunk: int = 4,
        batch: int = 1,
        precision: str = "float32",
        cache_mb: float = 0,
    ) -> None:
        super().__init__(chunk, batch, precision, cache_mb)
        self.variant, self.config = self.sizes_of(variant)
        self.intensity = check_rule(intensity)
        self.choose_outputs(masks)
        self.masks = masks
        self.spec = SegmenterSpec(
            name=f"{self.family} {self.variant}",
            dims=self.config.dims,
            input_size=(self.config.size,) * self.config.dims,
            accepts=self.accepts,
            trained_with=self.trained_with,
            differentiable=True,
            decoder_levels=self.decoder_levels,
        )
        self.checkpoint = needed(checkpoint, self.spec.name)
        self.build()
        self.load(self.checkpoint, sha256)
        self.eval().requires_grad_(False)

    @classmethod
    def sizes_of(cls, variant: str | ViTConfig) -> tuple[str, ViTConfig]:
        """Name and sizes of an encoder.

        Raises:
            InputError: unknown name.
        """
        if isinstance(variant, ViTConfig):
            return "custom", variant
        if variant not in cls.variants:
            raise InputError(f"variant: unknown '{variant}', expected one of {sorted(cls.variants)}")
        return variant, cls.variants[variant]

    def build(self) -> None:
        """Make the networks."""
        self.image_encoder = ImageEncoder(self.config)
        self.make_heads(self.config.size, self.config.grid, self.config.channels)

    def load(self, checkpoint: str | Path, sha256: str | None) -> None:
        """Fill the networks from a file."""
        load_strictly(self, checkpoint, family=self.spec.name, sha256=sha256)

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`."""
        size = self.config.size
        ratio = size / max(image.shape[1:])
        valid = tuple(max(1, int(n * ratio + 0.5)) for n in image.shape[1:])
        picture = as_picture(image, self.intensity)
        small = F.interpolate(picture[None], valid, mode="bilinear", antialias=True)[0]
        inputs = F.pad(standardised(small), (0, size - valid[1], 0, size - valid[0]))
        return inputs, scaling_about_corner(image.shape[1:], valid, device=image.device), valid

    def describe(self) -> dict[str, Any]:
        """See `PromptableSegmenter.describe`."""
        return {**super().describe(), "masks": self.masks, "intensity": self.intensity}

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        return self.image_encoder(inputs)


def needed(checkpoint: str | Path | None, name: str) -> str | Path:
    """The file.

    Raises:
        InputError: when none is given.
    """
    if not checkpoint:
        raise InputError(
            f"checkpoint: {name} needs a file of weights, none is given; fetch one with `python -m monai.bundle run "
            "get_weights --config_file configs/weights.yaml --name NAME` and give it with --checkpoint FILE"
        )
    return checkpoint
