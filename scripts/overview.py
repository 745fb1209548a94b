# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A small picture of one registered pair: fixed, before, after, with what is known to be true drawn in.

Made for every pair and method of an evaluation, so it is painted without a plotting library (`figures` draws the
pictures of a report).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import findfont
from nibabel.orientations import io_orientation
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .atomic import written_atomically
from .drawing import in_colour, window_of

WIDTH, LOWEST, HIGHEST, GAP, HEAD = 300, 150, 420, 6, 28  # pixels of a panel, between panels, and of a title
FIXED, CARRIED = (86, 180, 233), (255, 158, 0)
FINER = 2  # outlines are drawn on a finer raster and averaged, which smooths them


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), 18)


class _View:
    """Which slice of an array is shown, and how it lies on the page."""

    def __init__(self, shape: Sequence[int], spacing: Sequence[float], affine: Tensor | None, through: Tensor) -> None:
        dims = len(shape)
        orientation = np.array([(axis, -1.0) for axis in range(dims)])
        if affine is not None:
            orientation = io_orientation(np.asarray(affine, dtype=float))
        across_slices = max(range(dims), key=lambda axis: (round(spacing[axis], 3), orientation[axis, 0]))
        axes = [axis for axis in range(dims) if dims == 2 or axis != across_slices]
        if affine is not None:
            axes.sort(key=lambda axis: -orientation[axis, 0])  # as radiologists look: superior or anterior up
        self.axes = axes  # down and across the page
        self.flipped = [bool(orientation[axis, 1] > 0) for axis in axes]
        self.slice_axis = across_slices if dims == 3 else None
        self.index = int(through[across_slices]) if dims == 3 else 0
        height, width = (shape[axis] * spacing[axis] for axis in axes)
        tall = min(max(WIDTH * height / width, LOWEST), HIGHEST)
        scale = min(WIDTH / width, tall / height)
        self.size = (max(1, round(width * scale)), max(1, round(height * scale)))
        self.box = (WIDTH, max(round(tall), self.size[1]))
        self.shape = [shape[axis] for axis in axes]

    def take(self, array: Tensor) -> np.ndarray:
        """`[rows, columns, C]` of `[C, *S]` as it lies on the page."""
        if self.slice_axis is not None:
            array = array.select(self.slice_axis + 1, self.index)
        array = array if self.axes == sorted(self.axes) else array.transpose(1, 2)
        turned = array.flip([k + 1 for k in range(2) if self.flipped[k]])
        return turned.detach().cpu().permute(1, 2, 0).numpy()

    def place(self, points: Tensor) -> np.ndarray:
        """Pixels `[N, 2]` across and down of points `[D, N]`, in a panel."""
        found = []
        for k in (1, 0):
            place = (points[self.axes[k]].detach().cpu().double().numpy() + 0.5) / self.shape[k]
            found.append((1 - place if self.flipped[k] else place) * self.size[1 - k])
        return np.stack(found, axis=1)

    def depth(self, points: Tensor) -> np.ndarray:
        """Slices between points `[D, N]` and the slice shown, `[N]`."""
        if self.slice_axis is None:
            return np.zeros(points.shape[1])
        return (points[self.slice_axis].detach().cpu() - self.index).abs().numpy()


def _through(shape: Sequence[int], label: Tensor | None, points: Tensor | None) -> Tensor:
    """The middle of what is marked: of each axis the slice with half of the label (or landmarks) to each side."""
    middle = torch.tensor([(size - 1) // 2 for size in shape])
    if label is not None and bool((label != 0).any()):
        for axis in range(len(shape)):
            counts = (label != 0).sum([other for other in range(len(shape)) if other != axis]).cumsum(0)
            middle[axis] = int((2 * counts >= counts[-1]).nonzero()[0])
    elif points is not None and points.shape[1]:
        middle = points.detach().cpu().float().median(dim=1).values.round().long()
    return torch.minimum(middle.clamp(min=0), torch.tensor(shape) - 1)


def _painted(view: _View, image: Tensor, window: tuple[float, float]) -> Image.Image:
    colours = in_colour(view.take(torch.nan_to_num(image.float())).transpose(2, 0, 1), window)
    return Image.fromarray((255 * colours + 0.5).astype(np.uint8)).resize(view.size, Image.Resampling.BILINEAR)


def _thickened(marked: np.ndarray) -> np.ndarray:
    """A mask `[rows, columns]` grown by one pixel to each side."""
    wide = marked.copy()
    wide[1:] |= marked[:-1]
    wide[:-1] |= marked[1:]
    thick = wide.copy()
    thick[:, 1:] |= wide[:, :-1]
    thick[:, :-1] |= wide[:, 1:]
    return thick


def _outline(view: _View, label: Tensor) -> tuple[Image.Image, Image.Image]:
    """Opacity of the lines where a label map changes, and of the dark rim that sets them off from the image."""
    plane = Image.fromarray(view.take(label[None])[..., 0].astype(np.int32))
    values = np.asarray(plane.resize([FINER * size for size in view.size], Image.Resampling.NEAREST))
    edge = np.zeros(values.shape, dtype=bool)
    edge[1:] |= values[1:] != values[:-1]
    edge[:, 1:] |= values[:, 1:] != values[:, :-1]
    line = _thickened(edge)
    masks = [Image.fromarray(mask * np.uint8(strength)) for mask, strength in ((line, 255), (_thickened(line), 140))]
    return masks[0].reduce(FINER), masks[1].reduce(FINER)


def _draw_outline(outline: tuple[Image.Image, Image.Image], colour: tuple[int, int, int], picture: Image.Image) -> None:
    line, rim = outline
    picture.paste((0, 0, 0), mask=rim)
    picture.paste(colour, mask=line)


def _draw_errors(view: _View, points: Tensor, errors: Tensor, picture: Image.Image) -> None:
    """A dot at each landmark and a line to where it should have gone; faint away from the slice."""
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    ends = view.place(points + errors)
    for start, end, depth in zip(view.place(points), ends, view.depth(points), strict=True):
        alpha = 255 if depth <= 1.5 else 110
        x, y = start.tolist()
        draw.line((x, y, *end.tolist()), fill=(0, 0, 0, alpha // 2), width=4)
        draw.line((x, y, *end.tolist()), fill=(*CARRIED, alpha), width=2)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(*FIXED, alpha), outline=(0, 0, 0, alpha))
    picture.paste(layer, mask=layer)


def write_overview(
    path: str | Path,
    fixed: Tensor,
    moving: Tensor,
    moved: Tensor,
    *,
    fixed_label: Tensor | None = None,
    moved_label: Tensor | None = None,
    moving_label: Tensor | None = None,
    landmarks: tuple[Tensor, Tensor, Tensor] | None = None,
    spacing: Sequence[float] | None = None,
    affine: Tensor | None = None,
) -> None:
    """Write a PNG of three panels, about 900 x 300 pixels: fixed, before, after.

    Everything lies on the fixed grid `S`. Outlines: the fixed label in blue, the moving one in orange. Volumes are
    shown by one slice across the axis of the largest spacing (of equal ones the axis nearest to superior).

    Args:
        path: file to write; its folder is made.
        fixed: `[C, *S]`, grey, or colour with C = 3; also `[*S]` where anything below tells how many axes S has.
        moving: the moving image aligned as it is in the world, no registration; moved: after registration. As `fixed`.
        fixed_label, moving_label, moved_label: `[*S]` integer maps, 0 = background, on the grid likewise.
        landmarks: fixed points `[D, N]` and, before and after, the vectors from each to where it should have been,
            `[D, N]`; all in voxels of the fixed grid.
        spacing: voxel size along the axes of `S`; 1 if not given.
        affine: `[D+1, D+1]` from voxels to RAS millimetres, to turn medical slices for reading; without it (pictures)
            rows and columns are shown as stored.
    """
    told = [len(spacing or ()), 0 if affine is None else len(affine) - 1, 0 if landmarks is None else len(landmarks[0])]
    told += [label.ndim for label in (fixed_label, moving_label, moved_label) if label is not None]
    dims = max(told) or fixed.ndim - 1
    images = [image if image.ndim > dims else image[None] for image in (fixed, moving, moved)]
    shape = images[0].shape[1:]
    points = None if landmarks is None else landmarks[0]
    view = _View(shape, spacing or (1.0,) * len(shape), affine, _through(shape, fixed_label, points))
    windows = [window_of(images[0]), *[window_of(images[1])] * 2]
    outline = None if fixed_label is None else _outline(view, fixed_label)
    page = Image.new("RGB", (3 * view.box[0] + 2 * GAP, view.box[1] + HEAD), "white")
    draw = ImageDraw.Draw(page)
    for k, (title, label) in enumerate((("fixed", None), ("before", moving_label), ("after", moved_label))):
        picture = _painted(view, images[k], windows[k])
        if outline is not None:
            _draw_outline(outline, FIXED, picture)
        if label is not None:
            _draw_outline(_outline(view, label), CARRIED, picture)
        if landmarks is not None:
            _draw_errors(view, landmarks[0], landmarks[k] if k else torch.zeros_like(landmarks[0]), picture)
        left = k * (view.box[0] + GAP)
        page.paste(picture, (left + (view.box[0] - view.size[0]) // 2, HEAD))
        draw.text((left + view.box[0] // 2, HEAD // 2), title, fill=(51, 51, 51), font=_font(), anchor="mm")
    with written_atomically(path) as unfinished:
        page.save(unfinished, format="PNG", compress_level=4)
