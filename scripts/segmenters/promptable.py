# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The base of the adapters: chunks, batches, precision, embeddings kept, derivatives.

An adapter adds whatever is particular to its model: intensity rule, resizing and padding, coordinate order, which
prompts it takes. To add a model, subclass `PromptableSegmenter` and fill in the abstract methods.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..prompts import Prompts
from .cache import BoundedCache, image_key
from .derivatives import central_differences, forward_mode
from .embedding import Embedding
from .protocol import Decoded, SegmenterSpec

logger = logging.getLogger(__name__)
PRECISIONS = ("float32", "bfloat16", "float16")


class PromptableSegmenter(nn.Module, ABC):
    """A segmentation model conditioned on prompts: `encode` once per image, `decode` per prompt.

    Args:
        chunk: prompts decoded at once; bounds memory. Four are fastest on one CPU core, a GPU wants more.
        batch: images encoded at once, likewise (one on a CPU).
        precision: dtype of the encoder's and decoder's arithmetic, e.g. "float32", "bfloat16", "float16".
        cache_mb: embeddings of the images encoded last are kept up to this many megabytes; 0 keeps none.
    """

    spec: SegmenterSpec
    checkpoint: str | Path = ""
    _told: bool = False  # that differences are taken

    def __init__(self, chunk: int = 4, batch: int = 1, precision: str = "float32", cache_mb: float = 0) -> None:
        super().__init__()
        self.cache: BoundedCache[Embedding] = BoundedCache(int(cache_mb * 2**20))
        if precision not in PRECISIONS:
            raise InputError(f"precision: unknown '{precision}', expected one of {list(PRECISIONS)}")
        if chunk < 1 or batch < 1:
            raise InputError(f"chunk, batch: {chunk} prompts and {batch} images at once, expected at least 1")
        self.chunk, self.batch = chunk, batch
        self.precision: torch.dtype = getattr(torch, precision)

    @abstractmethod
    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Bring an image to the model's input.

        Args:
            image: `[C, *S]`, raw intensities, C = 1 (grey) or 3 (colour).

        Returns:
            the input `[channels, *input_size]`, the matrix from image voxels to input voxels (a scale and a shift per
            axis), the size of the part of the input that is not padding.
        """

    @abstractmethod
    def _encode(self, inputs: Tensor) -> list[Tensor]:
        """Feature grids `[B, C, *g]`, shallow to deep, of prepared images `[B, channels, *input_size]`."""

    @abstractmethod
    def _decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        """Masks of prompts given in voxels of the model input (array order)."""

    def describe(self) -> dict[str, Any]:
        """What a run records of the model, JSON-able."""
        weights = {"checkpoint": str(self.checkpoint), "precision": str(self.precision).removeprefix("torch.")}
        return {"name": self.spec.name, **weights, "device": self.device.type, "chunk": self.chunk, "batch": self.batch}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        """Embed images as `embed` does; those in the cache are not encoded again."""
        affines = affines or [torch.eye(image.ndim) for image in images]
        keys = [f"{image_key(image)} {affine.tolist()}" for image, affine in zip(images, affines, strict=True)]
        found = {key: self.cache.get(key) for key in keys}
        new = {key: pair for key, *pair in zip(keys, images, affines, strict=True) if found[key] is None}
        embedded = dict(zip(new, self.embed(*map(list, zip(*new.values(), strict=True))), strict=True)) if new else {}
        for key, embedding in embedded.items():
            self.cache.put(key, embedding, embedding.nbytes)
        return [embedded.get(key) or found[key] for key in keys]  # type: ignore[misc]  # one of the two is there

    @torch.no_grad()
    def embed(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        """Embed images, `batch` at a time, past the cache.

        Args:
            images: `[C, *S]`, sizes may differ.
            affines: `[D+1, D+1]` of each, voxels to RAS mm; None: identities.
        """
        affines = affines or [torch.eye(image.ndim) for image in images]
        prepared = [self.prepare(image.to(self.device)) for image in images]
        inputs = torch.stack([inputs for inputs, _, _ in prepared])
        with self._autocast():
            parts = [self._encode(part) for part in inputs.split(self.batch)]
        levels = [torch.cat(level) for level in zip(*parts, strict=True)]
        return [
            Embedding(
                levels=tuple(level[n].float().clone() for level in levels),  # a view would keep the whole batch
                image_shape=tuple(image.shape[1:]),
                to_model=to_model,
                valid=valid,
                input_size=self.spec.input_size,
                affine=affine,
                plane=tuple(range(self.spec.dims)),
            )
            for n, (image, affine, (_, to_model, valid)) in enumerate(zip(images, affines, prepared, strict=True))
        ]

    def check(self, prompts: Prompts) -> None:
        """Raise `InputError` for prompts of a type that the model cannot take."""
        given = {prompts.kind, *(() if prompts.masks is None else ("mask",))}
        if not given <= self.spec.accepts:
            raise InputError(
                f"prompts: {self.spec.name} cannot take the type {sorted(given - self.spec.accepts)}; "
                f"it takes {sorted(self.spec.accepts)}"
            )

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        """Segment the image at N prompts given in its voxels; decoded in chunks with the embedding shared.

        Raises:
            InputError: for a type of prompt that the model cannot take.
        """
        self.check(prompts)
        inside = prompts.to(self.device).transformed(embedding.to_model)
        with self._autocast():
            parts = [self._decode(embedding, inside[n : n + self.chunk]) for n in range(0, len(inside), self.chunk)]
        return Decoded(torch.cat([p.logits.float() for p in parts]), torch.cat([p.quality.float() for p in parts]))

    def draft(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        """What to choose among prompts by, before the chosen ones are decoded: here the masks themselves."""
        return self.decode(embedding, prompts)

    @torch.no_grad()
    def decode_jacobian(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Logits and their derivative by every prompt coordinate.

        Forward mode where the model allows it (one primal pass and one tangent pass per coordinate, each of which takes
        two to three decodes: together 6 for a click of LiteMedSAM, 11 for a box). Else, with a notice, central
        differences (`1 + 2 * P * D` decodes, some percent off) with steps of a tenth of a voxel of the model input.

        Returns:
            logits `[N, *mask]` and derivatives `[N, P * D, *mask]` per voxel of the image.

        Raises:
            InputError: for a type of prompt that the model cannot take.
        """
        self.check(prompts)
        if not self.spec.differentiable and not self._told:
            logger.warning("%s has no derivative by prompts; central differences stand in", self.spec.name)
            self._told = True
        prompts = prompts.to(self.device)
        step = 0.1 / embedding.to_model[:-1, :-1].norm(dim=0)  # image voxels, by axis
        parts = []
        for n in range(0, len(prompts), self.chunk):
            chunk = prompts[n : n + self.chunk]

            def logits(coordinates: Tensor, chunk: Prompts = chunk) -> Tensor:
                return self._decode(embedding, chunk.at(coordinates).transformed(embedding.to_model)).logits

            parts.append(
                forward_mode(logits, chunk.coordinates)
                if self.spec.differentiable
                else central_differences(logits, chunk.coordinates, step)
            )
        return torch.cat([value for value, _ in parts]), torch.cat([slope for _, slope in parts])

    def _autocast(self) -> torch.autocast:
        lower = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=self.precision if lower else None, enabled=lower)
