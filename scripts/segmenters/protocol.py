# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a promptable segmentation model must offer to be used for registration.

The method only ever sees this protocol. An adapter owns whatever is particular to its model: intensity rule, resizing
and padding, coordinate order, which prompts it takes. Prompts and images outside the adapter are in the project's
convention (array order, voxels of the image). To add a model, subclass `PromptableSegmenter` and fill in the abstract
methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..geometry import identity_points, sample, scaling_about_corner, transform_points
from ..prompts import Prompts
from .cache import BoundedCache, image_key

PRECISIONS = ("float32", "bfloat16", "float16")
Logits = Callable[[Tensor], Tensor]


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
class Embedding:
    """An encoded image, shared by all prompts.

    Attributes:
        levels: feature grids `[C, *g]`, shallow to deep; the last is the one the mask decoder attends to.
        image_shape: size of the image it was made from.
        to_model: matrix from image voxels to voxels of the model input.
        valid: size of the part of the model input that shows the image (the rest is padding); it begins where
            `to_model` leads the image's edges.
        input_size: size of the model input.
        affine: `[D+1, D+1]` from image voxels to RAS mm; identity for pictures.
        plane: image axes in which the model sees the image at once.
    """

    levels: tuple[Tensor, ...]
    image_shape: tuple[int, ...]
    to_model: Tensor
    valid: tuple[int, ...]
    input_size: tuple[int, ...]
    affine: Tensor = field(default_factory=lambda: torch.eye(3))
    plane: tuple[int, ...] = (0, 1)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each axis, mm (1 for pictures)."""
        return tuple(self.affine[:-1, :-1].norm(dim=0).tolist())

    @property
    def extent(self) -> Tensor:
        """Size of the image along each axis, `[D]` in units of the spacing."""
        return torch.tensor(self.image_shape) * torch.tensor(self.spacing)

    @property
    def nbytes(self) -> int:
        """Memory of the grids."""
        return sum(level.numel() * level.element_size() for level in self.levels)

    @property
    def features(self) -> Tensor:
        """The deepest grid `[C, *g]`: prototypes and similarity live here."""
        return self.levels[-1]

    def to_grid(self, shape: tuple[int, ...]) -> Tensor:
        """Matrix from image voxels to voxels of a grid of `shape` over the whole model input."""
        return scaling_about_corner(self.input_size, shape, device=self.to_model.device) @ self.to_model

    def inside(self, shape: tuple[int, ...]) -> Tensor:
        """`[*shape]` bool: which voxels of a grid over the model input show the image rather than padding."""
        inside = torch.ones(shape, dtype=torch.bool, device=self.to_model.device)
        size_of_image = torch.tensor(self.image_shape, device=inside.device)
        edges = torch.stack([torch.full_like(size_of_image, -0.5, dtype=torch.float32), size_of_image - 0.5], dim=1)
        first = transform_points(self.to_model, edges).amin(1) + 0.5  # volumes may be turned and flipped for the model
        for axis, (size, valid, full) in enumerate(zip(shape, self.valid, self.input_size, strict=True)):
            centres = (torch.arange(size, device=inside.device) + 0.5) * full / size - first[axis].round()
            nearest = centres - valid / 2  # from the middle of what is shown
            shown = (centres >= 0) & (centres < valid)
            shown[nearest.abs().argmin()] = True  # some voxel shows an image however thin
            inside &= shown.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        return inside

    def to_image(self, maps: Tensor) -> Tensor:
        """Resample maps `[N, *mask]` over the model input onto the image's own voxels: `[N, *image_shape]`."""
        points = identity_points(self.image_shape, device=maps.device)
        return sample(maps, transform_points(self.to_grid(tuple(maps.shape[1:])), points), padding="border")


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
    """The part of `PromptableSegmenter` that the method uses."""

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
        return {"name": self.spec.name, **weights, "device": str(self.device), "chunk": self.chunk, "batch": self.batch}

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

        Forward mode where the model allows it (one primal pass, then one tangent pass per coordinate: about `1 + P * D`
        decodes per prompt), else central differences (`1 + 2 * P * D`) with steps of a tenth of a voxel of the model
        input.

        Returns:
            logits `[N, *mask]` and derivatives `[N, P * D, *mask]` per voxel of the image.

        Raises:
            InputError: for a type of prompt that the model cannot take.
        """
        self.check(prompts)
        prompts = prompts.to(self.device)
        directions = torch.eye(prompts.coordinates[0].numel(), device=self.device)
        directions = directions.reshape(-1, *prompts.coordinates.shape[1:])
        step = 0.1 / embedding.to_model[:-1, :-1].norm(dim=0)  # image voxels, by axis
        parts = []
        for n in range(0, len(prompts), self.chunk):
            chunk = prompts[n : n + self.chunk]

            def logits(coordinates: Tensor, chunk: Prompts = chunk) -> Tensor:
                return self._decode(embedding, chunk.at(coordinates).transformed(embedding.to_model)).logits

            def along(direction: Tensor, chunk: Prompts = chunk, logits: Logits = logits) -> tuple[Tensor, Tensor]:
                tangent = direction.expand_as(chunk.coordinates)
                if self.spec.differentiable:
                    value, slope = torch.func.jvp(logits, (chunk.coordinates,), (tangent,))[:2]
                    return value, slope
                ahead, behind = (logits(chunk.coordinates + s * step * tangent) for s in (1, -1))
                return logits(chunk.coordinates), (ahead - behind) / (2 * (step * direction).sum())

            if self.spec.differentiable:
                value, slope = torch.func.vmap(along, out_dims=(None, 1))(directions)  # type: ignore[arg-type]  # None: not mapped
            else:
                results = [along(direction) for direction in directions]
                value, slope = results[0][0], torch.stack([r[1] for r in results], dim=1)
            parts.append((value, slope))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _autocast(self) -> torch.autocast:
        lower = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=self.precision if lower else None, enabled=lower)
