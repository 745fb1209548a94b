# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A region as it grows from slice to slice: the prompts that follow from its masks, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import bounding_box
from ..prompts import Prompts
from ..prototypes import area_weights, prototype
from .embedding import Embedding
from .protocol import NOTHING


@dataclass(frozen=True)
class SliceWise:
    """How a 2-D model sees volumes.

    Attributes:
        plane: "axial", "coronal", "sagittal", or "auto" (across the coarsest axis of both volumes).
        step: every how many slices one is encoded; None: no denser than the model's feature cells within a slice.
        asked: slices of a region that are asked at most; the others are interpolated.
        margin: a mask's box, so much larger, is the prompt of the next slice.
        overlap: a region has ended where its mask and the last one overlap less (intersection over union).
        match: likewise where the cosine of their prototypes is below this.
        clip: percentiles of a volume's intensities beyond which they are cut, in all slices alike.
        masks: voxels along the longest side of a slice's mask, at most.
        storage: dtype in which features are kept; bfloat16 halves the memory.
    """

    plane: str = "auto"
    step: int | None = None
    asked: int = 3
    margin: float = 1.1
    overlap: float = 0.2
    match: float = 0.5
    clip: tuple[float, float] = (0.5, 99.5)
    masks: int = 128
    storage: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.plane not in ("auto", "axial", "coronal", "sagittal"):
            raise InputError(f"slices: plane is '{self.plane}', expected 'auto', 'axial', 'coronal' or 'sagittal'")
        if self.storage not in ("bfloat16", "float16", "float32"):
            raise InputError(f"slices: storage is '{self.storage}', expected 'bfloat16', 'float16' or 'float32'")
        if self.step is not None and (not isinstance(self.step, int) or self.step < 1):
            raise InputError(f"slices: step is {self.step!r}, expected a whole number from 1 on, or null")
        if not isinstance(self.asked, int) or self.asked < 1:
            raise InputError(f"slices: asked is {self.asked!r}, expected a whole number from 1 on")


class Growing:
    """The region of one prompt as it grows: masks of the slices asked so far.

    Args:
        prompt: one prompt in voxels of the model input; slices: of the volume; asked: at most so many slices.
    """

    def __init__(self, prompt: Prompts, slices: int, asked: int) -> None:
        self.prompt = prompt
        self.logits: dict[int, Tensor] = {}
        self.quality: dict[int, Tensor] = {}
        self._prototypes: dict[int, Tensor] = {}
        self.slices = slices
        along = prompt.coordinates[0, :, 2]
        if prompt.labels is None:
            low, high = along.tolist()
            self.first, self.last = max(0, ceil(low - 1e-3)), min(slices - 1, int(high + 1e-3))
            self.centre = min(max(round((low + high) / 2), 0), slices - 1)
            self.first, self.last = min(self.first, self.centre), max(self.last, self.centre)
        else:
            self.first, self.last = 0, slices - 1
            self.centre = min(max(round(along[prompt.labels[0] == 1][0].item()), 0), slices - 1)
        self.stride = max(1, ceil((self.last - self.first) / max(1, asked - 1)))
        self.ended: set[int] = set()

    def first_prompt(self) -> Prompts:
        """The prompt in the slice through the middle."""
        return self._own_points(self.centre) or Prompts(self.prompt.coordinates[:, :, :2], self.prompt.labels)

    def _own_points(self, at: int) -> Prompts | None:
        if self.prompt.labels is None:
            return None
        here = (self.prompt.coordinates[0, :, 2] - at).abs() < 0.5 * self.stride + 1e-3
        labels = self.prompt.labels[:, here]
        return Prompts(self.prompt.coordinates[:, here, :2], labels) if (labels == 1).any() else None

    def step(self, direction: int, embedding: Embedding, how: SliceWise) -> tuple[int, Prompts] | None:
        """The next slice in a direction and its prompt; None where the region must end."""
        last = (max if direction > 0 else min)(at for at in self.logits if at not in self.ended)
        at = last + direction * self.stride
        at = min(at, self.last) if direction > 0 else max(at, self.first)
        if at == last:
            return None
        own = self._own_points(at)
        if own is not None:
            return at, own
        mask = self.logits[last] > 0
        box = bounding_box(mask)
        if box is None:
            return None
        box = box + box.new_tensor([[-0.5], [0.5]])  # a box spans voxels, not their centres
        scale = torch.tensor([n / m for n, m in zip(embedding.input_size, mask.shape, strict=False)]).to(box)
        box = (box + 0.5) * scale - 0.5
        middle = box.mean(0)
        box = middle + (box - middle) * how.margin
        if self.prompt.labels is None:
            box = torch.minimum(
                torch.maximum(box, self.prompt.coordinates[0, :1, :2]), self.prompt.coordinates[0, 1:, :2]
            )
            return at, Prompts(box[None])
        centre = (mask.nonzero().float().mean(0) + 0.5) * scale - 0.5
        return at, Prompts(centre[None, None], self.prompt.labels.new_ones(1, 1))

    def goes_on(self, at: int, direction: int, embedding: Embedding, how: SliceWise) -> bool:
        """Whether the region in a slice still belongs to the one in the slice before."""
        before = (max if direction > 0 else min)(s for s in self.logits if s not in self.ended and s != at)
        new, old = (self.logits[s] > 0 for s in (at, before))
        united = (new | old).sum()
        same = new.any() and (new & old).sum() / united >= how.overlap
        if same:
            mean, last = (self._prototype(embedding, s) for s in (at, before))
            same = torch.cosine_similarity(mean, last, dim=0) >= how.match
        if not same:
            self.ended.add(at)
        return bool(same)

    def _prototype(self, embedding: Embedding, at: int) -> Tensor:
        """That of the region in a slice `[C]`, from features centred within the slice."""
        if at not in self._prototypes:
            features = embedding.features[..., at].float()
            weights = area_weights(self.logits[at].sigmoid()[None], tuple(features.shape[1:]))
            self._prototypes[at] = (prototype(features, weights) - features.flatten(1).mean(1))[0]
        return self._prototypes[at]

    def extruded(self) -> Tensor:
        """Logits `[m, m, slices]`: those of the middle in every slice of a box."""
        logits = torch.full(
            (*self.logits[self.centre].shape, self.slices), NOTHING, device=self.prompt.coordinates.device
        )
        spans = slice(self.first, self.last + 1) if self.prompt.labels is None else [self.centre]
        logits[..., spans] = self.logits[self.centre][..., None]
        return logits

    def filled(self) -> Tensor:
        """Logits `[m, m, slices]`: those asked, between them interpolated, beyond them nothing."""
        empty = torch.full_like(self.logits[self.centre], NOTHING)
        known = {at: empty if at in self.ended else logits for at, logits in self.logits.items()}
        for beyond in (min(known) - 1, max(known) + 1):
            known[beyond] = empty
        places = torch.tensor(sorted(known), dtype=torch.float32, device=empty.device)
        at = torch.arange(self.slices, device=empty.device, dtype=torch.float32).clamp(
            places[0].item(), places[-1].item()
        )
        right = torch.searchsorted(places, at).clamp(min=1)
        share = (at - places[right - 1]) / (places[right] - places[right - 1])
        weights = torch.zeros(self.slices, len(places), device=empty.device)
        weights.scatter_(1, right[:, None], share[:, None]).scatter_add_(1, right[:, None] - 1, 1 - share[:, None])
        stack = torch.stack([known[int(place)] for place in places], dim=-1)
        return stack @ weights.T


def slice_of(embedding: Embedding, at: int, read: tuple[int, ...]) -> Embedding:
    """One slice of an embedded volume, with the grids from the first one that is `read` on.

    Its voxels are those of the model's input.
    """
    first = min(level % len(embedding.levels) for level in read)
    return Embedding(
        levels=tuple(level[..., at].float() for level in embedding.levels[first:]),
        image_shape=embedding.input_size[:2],
        to_model=torch.eye(3, device=embedding.to_model.device),
        valid=embedding.valid[:2],
        input_size=embedding.input_size[:2],
    )
