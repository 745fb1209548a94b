# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A segmenter that counts what is asked of it, for the record of a run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..prompts import Prompts
from .embedding import Embedding
from .protocol import Decoded, Segmenter


class Metered:
    """A segmenter that counts its work.

    A derivative counts as one decode and one more per coordinate, two more where differences are taken.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.spec, self.cache = segmenter.spec, segmenter.cache
        self.counts = {"encodes": 0, "decodes": 0}

    def describe(self) -> dict[str, Any]:
        return self._segmenter.describe()

    def encode(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        self.counts["encodes"] += len(images)
        return self._segmenter.encode(images, affines)

    def embed(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        self.counts["encodes"] += len(images)
        return self._segmenter.embed(images, affines)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        self.counts["decodes"] += len(prompts)
        return self._segmenter.decode(embedding, prompts)

    def draft(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        return self.decode(embedding, prompts)

    def decode_jacobian(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        passes = prompts.coordinates[0].numel() * (1 if self.spec.differentiable else 2)
        self.counts["decodes"] += len(prompts) * (1 + passes)
        return self._segmenter.decode_jacobian(embedding, prompts)
