# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a promptable segmentation model must offer to be used for registration: all that the method sees of one.

Prompts and images are in the project's convention (array order, voxels of the image). To add a model, subclass
`PromptableSegmenter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..prompts import Prompts
from .cache import BoundedCache
from .embedding import Embedding

NOTHING = -10.0  # logit where no region is


@dataclass(frozen=True)
class SegmenterSpec:
    """What a model is, without its weights.

    Attributes:
        name: for messages and reports.
        dims: 2 or 3, the number of spatial axes it segments at once.
        input_size: voxels of the model's input along each axis.
        accepts: prompt types the model can take, out of "point", "box", "mask".
        trained_with: prompt types it was trained with; others are promoted to one of these.
        differentiable: whether logits can be differentiated by prompt coordinates in forward mode.
        decoder_levels: which feature grids decoding reads (see `Embedding.levels`).
        drafts: whether a draft is cheaper than a mask.
    """

    name: str
    dims: int
    input_size: tuple[int, ...]
    accepts: frozenset[str]
    trained_with: frozenset[str]
    differentiable: bool
    decoder_levels: tuple[int, ...] = (-1,)
    drafts: bool = False


@dataclass(frozen=True)
class Decoded:
    """Masks of N prompts.

    Attributes:
        logits: `[N, *mask]` over the model input; a voxel belongs to the region where the logit is positive.
        quality: `[N]` overlap with the truth as the model itself predicts it.
    """

    logits: Tensor
    quality: Tensor


class Segmenter(Protocol):
    """What the method uses; see `PromptableSegmenter` for what each does."""

    @property
    def spec(self) -> SegmenterSpec: ...

    @property
    def cache(self) -> BoundedCache[Embedding]: ...

    def describe(self) -> dict[str, Any]: ...

    def encode(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]: ...

    def embed(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]: ...

    def decode(self, embedding: Embedding, prompts: Prompts) -> Decoded: ...

    def draft(self, embedding: Embedding, prompts: Prompts) -> Decoded: ...

    def decode_jacobian(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]: ...
