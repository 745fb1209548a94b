# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A 2-D model on volumes, slice by slice (the paper's way), behind the same protocol as a 3-D model.

Slices are encoded once, where they are thin no more densely than features lie within them; the feature grids, stacked,
are the volume's. A prompt is asked in the slice through its middle; the mask's box is the prompt of the next slice, and
so on until the region ends. Few slices are asked, however thick the region: between them logits are interpolated, which
also keeps the region smooth across slices.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..geometry import quantiles, resize_by_area, scaling_about_corner
from ..prompts import Prompts
from .cache import image_key
from .embedding import Embedding
from .growing import Growing, SliceWise, slice_of
from .protocol import Decoded, Segmenter
from .slices import SliceView


class SliceWiseSegmenter:
    """See the module.

    Args:
        segmenter: a 2-D model.
        how: settings.
        normal: world axis (0 right, 1 anterior, 2 superior) that the slices are stacked along.
    """

    def __init__(self, segmenter: Segmenter, how: SliceWise, normal: int) -> None:
        self.segmenter, self.how, self.normal = segmenter, how, normal
        self.spec, self.cache = replace(segmenter.spec, dims=3, drafts=True), segmenter.cache

    def describe(self) -> dict[str, Any]:
        """What a run records of the model, JSON-able."""
        plane = ("sagittal", "coronal", "axial")[self.normal]
        return {**self.segmenter.describe(), "slices": {**asdict(self.how), "plane": plane}}

    @torch.no_grad()
    def encode(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        """Embed volumes as `embed` does, or find them in the model's cache."""
        embeddings = []
        for image, affine in zip(images, affines or [torch.eye(4)] * len(images), strict=True):
            key = f"{image_key(image)} {affine.tolist()} {self.normal} {self.how}"
            embedding = self.cache.get(key)
            if embedding is None:
                embedding = self._embed(image, affine)
                self.cache.put(key, embedding, embedding.nbytes)
            embeddings.append(embedding)
        return embeddings

    @torch.no_grad()
    def embed(self, images: list[Tensor], affines: list[Tensor] | None = None) -> list[Embedding]:
        """Embed all slices of volumes `[C, *S]` with affines `[4, 4]` (voxels to RAS mm; None: identities)."""
        return [self._embed(*pair) for pair in zip(images, affines or [torch.eye(4)] * len(images), strict=True)]

    def _embed(self, image: Tensor, affine: Tensor) -> Embedding:
        view = SliceView.of(affine, self.normal)
        spacing = [float(size) for size in affine[:-1, :-1].norm(dim=0)]
        rows, columns, across = (spacing[axis] for axis in view.order)
        shown = view.apply(self._clipped(image))
        # Pixels as near to squares as the model knows them.
        fine = min(rows, columns)
        square = (max(1, round(shown.shape[1] * rows / fine)), max(1, round(shown.shape[2] * columns / fine)))

        def embed(slices: Tensor) -> list[Embedding]:
            pictures = [p if square == p.shape[1:] else resize_by_area(p, square) for p in slices.unbind(3)]
            return self.segmenter.embed(pictures)

        first = embed(shown[..., :1])[0]
        step = self._step(max(square) * fine / max(first.features.shape[1:]) / across)
        offset = (shown.shape[3] - 1) % step // 2
        taken = shown[..., offset::step]
        dtype = getattr(torch, self.how.storage)
        # What decoding reads, and the shallowest grid, whose detail the dense fit compares.
        kept = sorted({0, *(level % len(first.levels) for level in self.spec.decoder_levels)})
        levels: list[tuple[Tensor, ...]] = []
        for some in taken.split(8, dim=3):  # what encoding leaves behind is larger than what is kept
            for embedding in embed(some):
                levels.append(tuple(embedding.levels[level].to(dtype) for level in kept))
        device = first.to_model.device  # the model's, wherever the volume is
        to_model = torch.eye(4, device=device)
        to_model[:2, :2], to_model[:2, 3] = first.to_model[:2, :2], first.to_model[:2, 2]
        stretch = scaling_about_corner(shown.shape[1:], (*square, shown.shape[3]), device=device)
        stretch[2, 2], stretch[2, 3] = 1 / step, -offset / step
        return Embedding(
            # Stored slice after slice, which are read one at a time.
            levels=tuple(torch.stack(level).movedim(0, -1) for level in zip(*levels, strict=True)),
            image_shape=tuple(image.shape[1:]),
            to_model=to_model @ stretch @ view.matrix(image.shape[1:]).to(device),
            valid=(*first.valid, taken.shape[3]),
            input_size=(*first.input_size, taken.shape[3]),
            affine=affine,
            plane=view.order[:2],
        )

    def _step(self, cells: float) -> int:
        """Slices to go on by, where a feature cell is as long as so many slices are thick."""
        return max(1, int(cells + 0.01)) if self.how.step is None else self.how.step

    def _clipped(self, image: Tensor) -> Tensor:
        low, high = quantiles(image, [percent / 100 for percent in self.how.clip])
        high = torch.where(high > low, high, image.flatten(1).amax(1))
        shape = (-1, *[1] * (image.ndim - 1))
        return torch.minimum(torch.maximum(image, low.reshape(shape)), high.reshape(shape))

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        """Grow the regions of N prompts, given in voxels of the volume.

        A box bounds its region. Points are asked in their own slices; a region goes on until it ends.

        Returns:
            logits `[N, m, m, slices]` and the mean quality over the slices that were asked.
        """
        asked = on_model(prompts, embedding)
        growing = [Growing(asked[[n]], embedding.input_size[2], self.how.asked) for n in range(len(asked))]
        self._ask(embedding, [(g, g.centre, g.first_prompt()) for g in growing])
        for direction in (1, -1):
            active = growing
            while active:
                steps = [(g, *step) for g in active if (step := g.step(direction, embedding, self.how)) is not None]
                self._ask(embedding, steps)
                active = [g for g, at, _ in steps if g.goes_on(at, direction, embedding, self.how)]
        logits = torch.stack([g.filled() for g in growing])
        return Decoded(logits, torch.stack([torch.stack(list(g.quality.values())).mean() for g in growing]))

    @torch.no_grad()
    def draft(self, embedding: Embedding, prompts: Prompts) -> Decoded:
        """The mask of the slice through the middle of each prompt, in all slices that a box spans."""
        asked = on_model(prompts, embedding)
        growing = [Growing(asked[[n]], embedding.input_size[2], self.how.asked) for n in range(len(asked))]
        self._ask(embedding, [(g, g.centre, g.first_prompt()) for g in growing])
        logits = torch.stack([g.extruded() for g in growing])
        return Decoded(logits, torch.stack([g.quality[g.centre] for g in growing]))

    def _ask(self, embedding: Embedding, questions: list[tuple[Growing, int, Prompts]]) -> None:
        """Ask each region for its mask in one slice; what shares a slice is asked at once."""
        together: dict[tuple[int, tuple[int, ...]], list[tuple[Growing, Prompts]]] = {}
        for region, at, prompt in questions:
            key = (at, (*prompt.coordinates.shape[1:], prompt.labels is None))
            together.setdefault(key, []).append((region, prompt))
        size = min(self.how.masks, max(embedding.input_size[:2]))
        read = self.segmenter.spec.decoder_levels
        for (at, _), group in together.items():
            labels = [prompt.labels for _, prompt in group if prompt.labels is not None]
            batch = Prompts(torch.cat([p.coordinates for _, p in group]), torch.cat(labels) if labels else None)
            decoded = self.segmenter.decode(slice_of(embedding, at, read), batch)
            smaller = decoded.logits
            if max(smaller.shape[1:]) > size:
                scale = size / max(smaller.shape[1:])
                smaller = resize_by_area(smaller, [round(n * scale) for n in smaller.shape[1:]])
            for (region, _), logits, quality in zip(group, smaller, decoded.quality, strict=True):
                region.logits[at], region.quality[at] = logits, quality

    @torch.no_grad()
    def decode_jacobian(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Logits and, in the slice through each prompt's middle, their derivative by the coordinates in that slice.

        What a change of the prompt does to the other slices follows through masks and is not derived.

        Returns:
            logits `[N, m, m, slices]` and derivatives `[N, P * 3, m, m, slices]` per voxel of the volume.
        """
        decoded = self.decode(embedding, prompts)
        asked, linear = on_model(prompts, embedding), embedding.to_model[:-1, :-1]
        slopes = decoded.logits.new_zeros(len(prompts), prompts.coordinates[0].numel(), *decoded.logits.shape[1:])
        for n in range(len(prompts)):
            region = Growing(asked[[n]], embedding.input_size[2], self.how.asked)
            flat = Prompts(asked.coordinates[[n], :, :2], None if asked.labels is None else asked.labels[[n]])
            seen = slice_of(embedding, region.centre, self.segmenter.spec.decoder_levels)
            _, slope = self.segmenter.decode_jacobian(seen, flat)
            slope = resize_by_area(slope[0], decoded.logits.shape[1:3]).reshape(-1, 2, *decoded.logits.shape[1:3])
            if prompts.labels is None:  # a corner of the box is first or last on the image's axis, not the model's
                moved = prompts.to(linear.device).transformed(embedding.to_model).coordinates[n]
                slope = torch.stack([slope[moved[:, a].argsort().argsort(), a] for a in range(2)], dim=1)
            slopes[n, ..., region.centre] = torch.einsum("pa...,ad->pd...", slope, linear[:2]).flatten(0, 1)
        return decoded.logits, slopes


def on_model(prompts: Prompts, embedding: Embedding) -> Prompts:
    """Prompts in voxels of the model input; the corners of boxes sorted along its axes."""
    moved = prompts.to(embedding.to_model.device).transformed(embedding.to_model)
    if prompts.labels is not None:
        return moved
    return moved.at(torch.stack([moved.coordinates.amin(1), moved.coordinates.amax(1)], dim=1))
