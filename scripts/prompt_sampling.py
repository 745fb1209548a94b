# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prompts that nobody gave: sampled on the moving image, and clicks turned into boxes for models that know only boxes.

The paper samples points uniformly. Random clicks on texture ask for regions that mean nothing; the default prefers
prompts whose region is stable: the box around the region gives the same region again, and its contour is sharp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from .errors import InputError
from .geometry import bounding_box
from .prompt_inversion import clamp_to_image, scaled_boxes
from .prompts import GivenPrompt, Prompts
from .segmenters.embedding import Embedding
from .segmenters.protocol import Segmenter

WAYS = ("stable", "uniform", "grid", "inside", "outside")


@dataclass(frozen=True)
class Sampling:
    """How prompts are sampled.

    Attributes:
        how: "stable" boxes (see above), or clicks: "uniform" over the foreground, on a "grid", "inside" or "outside"
            the labels of the moving label map.
        count: K, prompts wanted (paper: 4; its Table 4 shows that more is better).
        candidates: boxes tried per stable prompt wanted.
        sizes: range of box sides relative to the image's longest side, drawn log-uniformly.
        margin: the model is asked with boxes this much larger than they are drawn, or than the region they came from:
            it was trained with boxes somewhat larger than the object, and tight ones make it shrink.
        overlap: two prompts whose regions overlap by more than this (intersection over union) count as one.
        click_sizes: sides of the boxes tried around a click, relative to the image's longest side.
    """

    how: str = "stable"
    count: int = 16
    candidates: float = 2.0
    sizes: tuple[float, float] = (0.08, 0.5)
    margin: float = 1.1
    overlap: float = 0.6
    click_sizes: tuple[float, ...] = (0.06, 0.1, 0.16, 0.25, 0.4)

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise InputError(f"sampling: unknown way '{self.how}', expected one of {list(WAYS)}")
        if not isinstance(self.count, int) or self.count < 1:
            raise InputError(f"sampling: count is {self.count}, expected at least 1")

    def check_label(self, label: Tensor | None) -> None:
        """Raise `InputError` when this way of sampling needs a label map and there is none, or an empty one."""
        if self.how in ("inside", "outside") and (label is None or not (label > 0).any()):
            raise InputError(
                f"sampling: '{self.how}' needs a moving label map with at least one label; give moving_label"
            )


def foreground(image: Tensor) -> Tensor:
    """`[*S]` bool: what is brighter than Otsu's threshold of the image's mean channel, halved to keep dark tissue."""
    grey = image.float().mean(0)
    low = grey.amin()
    return grey > low + 0.5 * (threshold_otsu(grey.cpu().numpy()) - low)


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """IoU of paired boolean masks `[N, *S]`: `[N]`."""

    def one(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.flatten().float(), y.flatten().float()  # floats add up far faster than truth values
        common = x @ y
        return common / (x.sum() + y.sum() - common).clamp(min=1)

    return torch.stack([one(x, y) for x, y in zip(a, b, strict=True)])  # one by one: masks of volumes are large


def sharpness(logits: Tensor, offset: float = 1.0) -> Tensor:
    """SAM's stability score: IoU of the masks at logit thresholds +offset and -offset, `[N, *mask]` -> `[N]`."""
    smaller, larger = ((logits > at).flatten(1).sum(1) for at in (offset, -offset))  # one inside the other
    return smaller / larger.clamp(min=1)


def _draw(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` voxels `[count, D]` drawn uniformly from the allowed ones `[*S]`, with repetition."""
    voxels = allowed.nonzero().cpu()
    return voxels[torch.randint(len(voxels), (count,), generator=generator)].float()


def _grid_points(allowed: Tensor, count: int) -> Tensor:
    """The coarsest regular grid with at least `count` points on allowed voxels `[*S]`, evenly thinned to `count`."""
    per_side = max(1, round(count ** (1 / allowed.ndim)))
    while True:
        axes = [((torch.arange(per_side) + 0.5) * n / per_side).long() for n in allowed.shape]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, allowed.ndim)
        points = points[allowed.cpu()[tuple(points.T)]]
        if len(points) >= count or per_side >= min(allowed.shape):
            return points[torch.linspace(0, len(points) - 1, min(count, len(points))).round().long()].float()
        per_side += 1


def sample_prompts(
    segmenter: Segmenter,
    embedding: Embedding,
    image: Tensor,
    how: Sampling,
    generator: torch.Generator,
    label: Tensor | None = None,
) -> list[GivenPrompt]:
    """Prompts on an image; boxes are tight around their regions (see `Sampling.margin`).

    Args:
        segmenter: the model (used by "stable" only); embedding: of the image.
        image: `[C, *S]` raw intensities; label: `[*S]` label map for "inside" and "outside".
        how: settings.
        generator: source of randomness.

    Raises:
        InputError: when a label map is needed and absent or empty.
    """
    if how.how == "stable":
        return stable_boxes(segmenter, embedding, image, how, generator)
    allowed = foreground(image)
    how.check_label(label)
    if label is not None and how.how in ("inside", "outside"):
        allowed = label > 0 if how.how == "inside" else allowed & (label == 0)
    if not allowed.any():
        raise InputError(f"sampling: '{how.how}' leaves no voxel of the moving image to sample from; use another way")
    points = _grid_points(allowed, how.count) if how.how == "grid" else _draw(allowed, how.count, generator)
    return [
        GivenPrompt(str(n), point[None], torch.ones(1, dtype=torch.long)) for n, point in enumerate(points, start=1)
    ]


def stable_boxes(
    segmenter: Segmenter, embedding: Embedding, image: Tensor, how: Sampling, generator: torch.Generator
) -> list[GivenPrompt]:
    """Boxes around regions that prompt for themselves and together cover the image, best first; at most `how.count`."""
    device = image.device
    spacing = torch.tensor(embedding.spacing)
    n = max(1, int(how.count * how.candidates))
    centres = _draw(foreground(image), n, generator)
    draws = torch.rand(n, 2, generator=generator)
    side = embedding.extent.amax() * how.sizes[0] * (how.sizes[1] / how.sizes[0]) ** draws[:, :1]
    aspect = 2 ** (2 * draws[:, 1:] - 1)  # up to 1:2 either way, for the first two axes
    sides = torch.cat([side * aspect.sqrt(), side / aspect.sqrt(), side.expand(-1, len(spacing) - 2)], dim=1)
    half = 0.5 * sides / spacing
    boxes = clamp_to_image(
        Prompts(torch.stack([centres - half, centres + half], dim=1)).to(device), embedding.image_shape
    )

    first = embedding.to_image(segmenter.draft(embedding, boxes).logits) > 0
    again = boxes_of(first, boxes, how.margin, embedding.image_shape)
    decoded = segmenter.decode(embedding, again)
    second = embedding.to_image(decoded.logits) > 0
    stability = intersection_over_union(first, second) * sharpness(decoded.logits) * decoded.quality.clamp(0, 1)

    flat = second.flatten(1).float()
    areas = flat.sum(1)
    share = areas / flat.shape[1]
    # Neither specks (a quarter of the smallest box) nor the background.
    plausible = (share > 0.25 * how.sizes[0] ** len(spacing)) & (share < 0.6)
    final = boxes_of(second, again, 1.0, embedding.image_shape).coordinates
    kept: list[int] = []
    covered = torch.zeros_like(flat[0])
    remaining = plausible.nonzero().flatten()
    while len(remaining) and len(kept) < how.count:
        # What a region adds to the cover counts beside its stability, so prompts spread over the image.
        gain = (stability * (flat @ (1 / (1 + covered))) / areas)[remaining]
        best = remaining[gain.argmax()]
        kept.append(int(best))
        covered += flat[best]
        common = (flat @ flat[best])[remaining]
        same = common / (areas[remaining] + areas[best] - common)
        remaining = remaining[same < how.overlap]
    if not kept:
        raise InputError(
            "sampling: no stable region found on the moving image; give prompts, or set sampling#how to 'grid'"
        )
    return [GivenPrompt(str(rank), final[k].cpu(), None) for rank, k in enumerate(kept, start=1)]


def boxes_of(masks: Tensor, fallback: Prompts, margin: float, shape: tuple[int, ...]) -> Prompts:
    """Boxes around masks `[N, *S]`, enlarged by `margin`; the fallback's where a mask is (nearly) empty."""
    corners = fallback.coordinates.clone()
    for k, mask in enumerate(masks):
        box = bounding_box(mask)
        if box is not None and (box[1] > box[0]).all():
            corners[k] = scaled_boxes(box[None], margin)[0]
    return clamp_to_image(fallback.at(corners), shape)


def promote_clicks(segmenter: Segmenter, embedding: Embedding, clicks: list[GivenPrompt], how: Sampling) -> Prompts:
    """Turn prompts into boxes: each click becomes the most stable region's box among boxes around it.

    A candidate must contain all positive and no negative points. Boxes become larger by `how.margin`.

    Args:
        segmenter: the model; embedding: of the image that was clicked.
        clicks: N prompts, boxes among them.
        how: `click_sizes` and `margin` are used.

    Returns:
        N boxes.
    """
    longest = embedding.extent.amax() / torch.tensor(embedding.spacing)  # in voxels of every axis
    boxes = []
    for click in clicks:
        if click.labels is None:
            boxes.append(scaled_boxes(click.points[None], how.margin)[0])
            continue
        inside = click.points[click.labels == 1]
        low, high = inside.amin(0), inside.amax(0)
        halves = torch.tensor(how.click_sizes)[:, None] * longest / 2
        tried = clamp_to_image(Prompts(torch.stack([low - halves, high + halves], dim=1)), embedding.image_shape)
        tried = tried.to(embedding.features.device)
        decoded = segmenter.decode(embedding, tried)
        masks = embedding.to_image(decoded.logits) > 0
        tight = boxes_of(masks, tried, how.margin, embedding.image_shape)
        last = torch.tensor(masks.shape[1:]) - 1
        voxels = torch.minimum(click.points.round().long().clamp(min=0), last)
        hits = masks[(slice(None), *voxels.T.to(masks.device))].cpu()
        right = (hits == (click.labels == 1)).float().mean(1).to(masks.device)
        score = right**4 * sharpness(decoded.logits) * decoded.quality.clamp(0, 1) * _box_agreement(tried, tight).sqrt()
        best = int(score.argmax())
        boxes.append((tight if right[best] == 1 else tried).coordinates[best].cpu())
    return clamp_to_image(Prompts(torch.stack(boxes).to(embedding.features.device)), embedding.image_shape)


def _box_agreement(a: Prompts, b: Prompts) -> Tensor:
    """IoU of paired boxes `[N]`."""
    low = torch.maximum(a.coordinates[:, 0], b.coordinates[:, 0])
    high = torch.minimum(a.coordinates[:, 1], b.coordinates[:, 1])
    common = (high - low).clamp(min=0).prod(1)
    volumes = [(p.coordinates[:, 1] - p.coordinates[:, 0]).prod(1) for p in (a, b)]
    return common / (volumes[0] + volumes[1] - common).clamp(min=1e-6)
