# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The pictures of a registered pair: every image, 2-D or 3-D, is shown as a list of planes (one or three).

All marks are placed in voxels of the image they belong to; a `Plane` alone knows which array axis runs across the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from nibabel.orientations import io_orientation
from torch import Tensor

from . import geometry
from .prompts import Prompts
from .registration import ImageInfo, Registration

# Okabe and Ito's colours first, then light tints that stay apart from them on grey images.
# fmt: off
PALETTE = (
    "#E69F00", "#56B4E9", "#F0E442", "#D55E00", "#CC79A7", "#009E73", "#3D8BFF", "#EE8866", "#BBCC33", "#99DDFF",
    "#FFAABB", "#44BB99", "#DDCC77", "#AA4499", "#EE3377", "#AAAA00", "#EEDD88", "#77AADD", "#CC6677", "#B59CFF",
)
# fmt: on
GREY = "#B4B4B4"
PIXELS = 600  # longest side of a displayed plane
FIGURE_WIDTH, FIGURE_HEIGHT = 12.0, 14.0  # inches, at most
HALO = [withStroke(linewidth=2.4, foreground="black", alpha=0.75)]


def colour_of(index: int) -> str:
    """Colour of pair `index` in every picture and table."""
    return PALETTE[index % len(PALETTE)]


@dataclass(frozen=True)
class Plane:
    """A 2-D cut through a grid.

    Attributes:
        shape, spacing: of the whole grid, along its array axes.
        rows, columns: array axes that run down and across the page.
        index: `[D]` a voxel the plane passes through.
        flipped: whether rows run upwards, and columns to the left.
        name: "axial", "coronal", "sagittal", or "" for a 2-D image.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    rows: int
    columns: int
    index: tuple[int, ...]
    flipped: tuple[bool, bool]
    name: str

    @property
    def in_plane(self) -> list[int]:
        """Array axes across and down the page."""
        return [self.columns, self.rows]

    @property
    def sides(self) -> list[float]:
        """Width and height in millimetres."""
        return [self.shape[a] * self.spacing[a] for a in self.in_plane]

    def slab(self, array: Tensor, margin: int = 0) -> Tensor:
        """The plane and `margin` voxels to each side, `[C, *S']` of `[C, *S]`."""
        ranges = [slice(max(at - margin, 0), at + margin + 1) for at in self.index]
        ranges[self.rows] = ranges[self.columns] = slice(None)
        return array[(slice(None), *ranges)]

    def flat(self, slab: Tensor) -> np.ndarray:
        """A slab one voxel thick as shown, `[C, rows, columns]`, at most `PIXELS` on a side."""
        picture = slab.detach().cpu().float().movedim((self.rows + 1, self.columns + 1), (1, 2))
        picture = picture.reshape(picture.shape[:3])
        if (scale := PIXELS / max(picture.shape[1:])) < 1:
            picture = geometry.resize_by_area(picture, [max(1, round(scale * size)) for size in picture.shape[1:]])
        return picture.numpy()

    def take(self, array: Tensor) -> np.ndarray:
        """The plane of `[C, *S]` as shown, `[C, rows, columns]`."""
        return self.flat(self.slab(array))

    def take_unregistered(self, moving: Tensor, to_moving: Tensor) -> np.ndarray:
        """The moving image on this plane of the fixed grid with no displacement, `[C, rows, columns]`."""
        shift = geometry.identity_matrix(len(self.shape), device=moving.device)
        sizes = list(self.shape)
        for axis in set(range(len(sizes))) - {self.rows, self.columns}:
            shift[axis, -1], sizes[axis] = self.index[axis], 1
        still = torch.zeros(len(sizes), *sizes, device=moving.device)
        return self.flat(geometry.warp(moving, still, to_moving.to(shift) @ shift))

    def take_jacobian(self, ddf: Tensor) -> np.ndarray:
        """Jacobian determinant and where it is not positive (share of a pixel), `[2, rows, columns]`."""
        slab = self.slab(ddf, margin=1)
        determinant = geometry.jacobian_determinant(slab)[None]
        thin = replace(self, shape=tuple(slab.shape[1:]), index=tuple(min(at, 1) for at in self.index))
        return thin.take(torch.cat([determinant, (determinant <= 0).float()]))

    def centres(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxel coordinates across and down of the pixels of a picture `[..., rows, columns]`."""
        (down, across), (height, width) = picture.shape[-2:], (self.shape[self.rows], self.shape[self.columns])
        return (np.arange(across) + 0.5) * width / across - 0.5, (np.arange(down) + 0.5) * height / down - 0.5

    def show(self, axes: Axes, picture: np.ndarray, **options: Any) -> AxesImage:
        """Draw `[rows, columns(, 3)]` with voxel coordinates on the axes, oriented for reading."""
        extent = (-0.5, self.shape[self.columns] - 0.5, self.shape[self.rows] - 0.5, -0.5)
        aspect = self.spacing[self.rows] / self.spacing[self.columns]
        artist = axes.imshow(picture, extent=extent, aspect=aspect, **options)
        axes.set_xlim(*(extent[1::-1] if self.flipped[1] else extent[:2]))
        axes.set_ylim(*(extent[:1:-1] if self.flipped[0] else extent[2:]))
        return artist


def planes_of(info: ImageInfo, shape: Sequence[int], through: Tensor) -> list[Plane]:
    """Planes of a grid through a voxel `[D]`: axial, coronal, sagittal in 3-D, the image itself in 2-D.

    Volumes are shown as radiologists read them: superior or anterior up, the patient's right (or front) on the left.
    """
    dims = len(shape)
    if info.kind == "picture":
        order, flipped = [1, 0, 2][:dims], [False] * dims
    else:
        orientation = io_orientation(np.asarray(info.affine, dtype=float))
        order = np.argsort(orientation[:, 0]).tolist()  # array axis nearest to each world axis
        flipped = (orientation[:, 1] > 0).tolist()
    index = tuple(int(min(max(round(float(at)), 0), size - 1)) for at, size in zip(through, shape, strict=True))
    names = ("axial", "coronal", "sagittal") if dims == 3 else ("",)
    return [
        Plane(tuple(shape), info.spacing, down, across, index, (flipped[down], flipped[across]), name)
        for (across, down), name in zip(combinations(order, 2), names, strict=True)
    ]


def planes_of_pair(registration: Registration) -> tuple[list[Plane], list[Plane]]:
    """Planes of the moving and of the fixed image, through the regions found and the place that corresponds to it."""
    weights = registration.pairs.fixed_regions[registration.pairs.found].sum(0)
    shape = registration.fixed.shape[1:]
    middle = (torch.tensor(shape) - 1) / 2
    fixed = geometry.centroid(weights).cpu() if len(registration.pairs) and weights.sum() > 0 else middle
    start = geometry.displace_points(fixed[:, None].to(registration.ddf), registration.ddf)
    moving = geometry.transform_points(registration.to_moving, start)[:, 0]
    moving_planes = planes_of(registration.moving_info, registration.moving.shape[1:], moving)
    return moving_planes, planes_of(registration.fixed_info, shape, fixed)


def percentiles(values: Tensor, *percent: float) -> list[float]:
    """Percentiles of a tensor, from at most about a million of its values."""
    flat = values.detach().flatten()
    return np.percentile(flat[:: max(1, len(flat) // 1_000_000)].float().cpu().numpy(), percent).tolist()


def window_of(image: Tensor) -> tuple[float, float]:
    """Intensities shown black and white: 1st and 99th percentile in grey images, 0 and the maximum in colour."""
    low, high = (0.0, float(image.max())) if image.shape[0] == 3 else percentiles(image[0], 1, 99)
    return low, high if high > low else low + 1.0


def in_colour(picture: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """`[C, rows, columns]` as `[rows, columns, 3]` in [0, 1]; the first channel unless there are three."""
    channels = picture if len(picture) == 3 else picture[:1].repeat(3, axis=0)
    return ((channels - window[0]) / (window[1] - window[0])).clip(0, 1).transpose(1, 2, 0)


def panels(columns: Sequence[list[Plane]], titles: Sequence[str], *, below: float = 0) -> tuple[Figure, np.ndarray]:
    """An empty figure with a row per plane and a column per title, and `below` inches for colour bars under the
    last.
    """
    width = FIGURE_WIDTH / len(columns)
    heights = [width * min(max(p.sides[1] / p.sides[0] for p in row), 1.25) for row in zip(*columns, strict=True)]
    scale = min(1.0, FIGURE_HEIGHT / sum(heights))
    left, top = 0.25 if len(heights) > 1 else 0.0, 0.32  # inches for the names of the rows and columns
    across, down = scale * FIGURE_WIDTH + left, scale * sum(heights) + top + below
    figure = Figure(figsize=(across, down))
    bounds = {"left": left / across, "right": 1, "bottom": below / down, "top": 1 - top / down}
    spaces = {"height_ratios": heights, "wspace": 0.03, "hspace": 0.05}
    axes = figure.subplots(len(heights), len(columns), squeeze=False, gridspec_kw=bounds | spaces)
    for (row, column), panel in np.ndenumerate(axes):
        panel.set(xticks=[], yticks=[], anchor="N")
        panel.spines[:].set_visible(False)
        if row == 0:
            panel.set_title(titles[column], fontsize=12, color="#333333", pad=6)
        if column == 0:
            panel.set_ylabel(columns[0][row].name, fontsize=10, color="#666666")
    return figure, axes


def draw_prompt(panel: Axes, plane: Plane, prompts: Prompts, k: int, colour: str, name: str) -> None:
    """Mark prompt k: stars for clicks inside, crosses for clicks outside, a dashed box with its centre.

    Marks away from a 3-D plane are drawn faint, at their nearest place on it. Names go in one of four directions by k,
    so that those of prompts at one place stay apart.
    """
    marks = prompts.coordinates[k].detach().cpu().float()
    labels = [1] if prompts.labels is None else prompts.labels[k].tolist()
    if prompts.kind == "box":
        corner, size = marks.amin(0)[plane.in_plane], (marks[1] - marks[0]).abs()[plane.in_plane]
        box: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.0, "linestyle": (0, (5, 3))}
        left, top = corner.tolist()
        panel.add_patch(Rectangle((left, top), *size.tolist(), path_effects=HALO, **box))
        marks = marks.mean(0, keepdim=True)
    away = (marks - torch.tensor(plane.index)).abs()
    away[:, plane.in_plane] = 0
    alphas = [0.45 if far else 1.0 for far in (away > 1.5).any(1)]
    for (across, down), label, alpha in zip(marks[:, plane.in_plane].tolist(), labels, alphas, strict=True):
        click: dict[str, Any] = {"color": colour, "alpha": alpha, "zorder": 5}
        if label > 0:
            panel.scatter(across, down, s=130, marker="*", edgecolors="black", linewidths=0.7, **click)
        elif label == 0:
            panel.scatter(across, down, s=45, marker="x", linewidths=2, path_effects=HALO, **click)
    (side, right), (level, up) = (("left", 5), ("right", -5))[k % 2], (("bottom", 2), ("top", -2))[k // 2 % 2]
    style: dict[str, Any] = {"color": colour, "alpha": alphas[0], "size": 11, "weight": "bold", "zorder": 6}
    place: dict[str, Any] = {"xytext": (right, up), "textcoords": "offset points", "ha": side, "va": level}
    across, down = marks[0, plane.in_plane].tolist()
    panel.annotate(name, (across, down), annotation_clip=True, path_effects=HALO, **place, **style)


def draw_region(panel: Axes, plane: Plane, probability: Tensor, colour: str, *, dashed: bool = False) -> None:
    """Outline of a region `[*S]` at probability 0.5."""
    picture = plane.take(probability[None])[0]
    if min(picture.shape) > 1 and picture.min() < 0.5 < picture.max():
        style: dict[str, Any] = {"colors": [colour], "linewidths": 1.6, "linestyles": "dashed" if dashed else "solid"}
        panel.contour(*plane.centres(picture), picture, levels=[0.5], **style).set(path_effects=HALO)


def prompts_figure(registration: Registration, moving_planes: list[Plane], fixed_planes: list[Plane]) -> Figure:
    """Both images with the prompts and regions of each pair in one colour."""
    pairs = registration.pairs
    figure, axes = panels([moving_planes, fixed_planes], ["Moving image", "Fixed image"])
    sides = (
        (moving_planes, registration.moving, pairs.moving_prompts, pairs.moving_regions),
        (fixed_planes, registration.fixed, pairs.fixed_prompts, pairs.fixed_regions),
    )
    for side, (planes, image, prompts, regions) in enumerate(sides):
        for plane, panel in zip(planes, axes[:, side], strict=True):
            plane.show(panel, in_colour(plane.take(image), window_of(image)))
            for k, (name, found) in enumerate(zip(pairs.ids, pairs.found.tolist(), strict=True)):
                if found or side == 0:
                    colour = colour_of(k) if found else GREY
                    draw_region(panel, plane, regions[k], colour, dashed=not found)
                    draw_prompt(panel, plane, prompts, k, colour, name)
    return figure


def comparison_figures(registration: Registration, planes: list[Plane]) -> tuple[Figure, Figure]:
    """The images before and after on the fixed grid, and how well they agree (colour overlays, checkerboard)."""
    images, panels_images = panels([planes] * 3, ["Fixed", "Moving, before", "Moving, after (moved)"])
    agreement, panels_agreement = panels([planes] * 3, ["Overlay before", "Overlay after", "Checkerboard after"])
    windows = window_of(registration.fixed), window_of(registration.moving)
    for plane, top, bottom in zip(planes, panels_images, panels_agreement, strict=True):
        fixed = in_colour(plane.take(registration.fixed), windows[0])
        before = in_colour(plane.take_unregistered(registration.moving, registration.to_moving), windows[1])
        after = in_colour(plane.take(registration.moved), windows[1])
        tile = max(plane.sides) / 8
        places = zip(plane.centres(fixed[..., 0]), plane.in_plane, strict=True)
        across, down = ((at + 0.5) * plane.spacing[a] // tile for at, a in places)
        checkerboard = np.where(np.add.outer(down, across)[..., None] % 2 == 0, fixed, after)
        overlays = [np.stack([m.mean(-1), fixed.mean(-1), m.mean(-1)], axis=-1) for m in (before, after)]
        for panel, picture in zip([*top, *bottom], [fixed, before, after, *overlays, checkerboard], strict=True):
            plane.show(panel, picture)
    return images, agreement


def draw_colour_bar(figure: Figure, panel: Axes, artist: AxesImage, label: str) -> None:
    """A thin horizontal colour bar in the space under the last panel of a column."""
    place, inch = panel.get_position(original=True), 1 / figure.get_figheight()
    room = figure.add_axes((place.x0 + 0.1 * place.width, 0.45 * inch, 0.8 * place.width, 0.09 * inch))
    figure.colorbar(artist, cax=room, orientation="horizontal").outline.set_visible(False)
    room.tick_params(labelsize=9, length=2, colors="#555555")
    room.set_xlabel(label, fontsize=10, color="#555555")


def deformation_figure(registration: Registration, planes: list[Plane], unit: str) -> Figure:
    """The displacement as a warped grid, its length, and the local change of volume; folded places in yellow."""
    figure, axes = panels([planes] * 3, ["Warped grid", "Displacement", "Jacobian determinant"], below=0.62)
    ddf, window = registration.ddf, window_of(registration.fixed)
    spacing = np.asarray(registration.fixed_info.spacing)[:, None, None]
    fields = [plane.take(ddf) for plane in planes]
    lengths = [np.linalg.norm(field * spacing, axis=0) for field in fields]
    jacobians = [plane.take_jacobian(ddf) for plane in planes]
    longest = max(np.percentile(length, 99.5) for length in lengths)
    change = max(0.1, *(np.percentile(abs(jacobian[0] - 1), 99).clip(max=1) for jacobian in jacobians))
    for plane, panel, field, length, (local, folded) in zip(planes, axes, fields, lengths, jacobians, strict=True):
        plane.show(panel[0], in_colour(plane.take(registration.fixed), window) * 0.55)
        grid = np.stack(np.meshgrid(*plane.centres(field)), axis=-1) + field[plane.in_plane].transpose(1, 2, 0)
        down, across = (max(1, round(size / 24)) for size in grid.shape[:2])
        lines = [*grid[down // 2 :: down], *grid[:, across // 2 :: across].transpose(1, 0, 2)]
        panel[0].add_collection(LineCollection(lines, colors="#F0E442", linewidths=0.7), autolim=False)
        moves = plane.show(panel[1], length, cmap="viridis", vmin=0, vmax=longest or 1)
        scales = plane.show(panel[2], local, cmap="RdBu_r", vmin=1 - change, vmax=1 + change)
        marks = np.zeros((*folded.shape, 4)) + np.array([0.94, 0.89, 0.26, 1.0]) * (folded > 0)[..., None]
        plane.show(panel[2], marks, interpolation="nearest")
    draw_colour_bar(figure, axes[-1, 1], moves, f"displacement [{unit}]")
    draw_colour_bar(figure, axes[-1, 2], scales, "below 1: stretched   ·   above 1: compressed")
    return figure
