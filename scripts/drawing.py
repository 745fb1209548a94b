# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What the pictures of a registered pair are drawn with: colours, windows, panels, prompts, outlines.

Numbers go in as they are; which plane of an image is shown is decided elsewhere (`planes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from .planes import Plane
from .prompts import Prompts

# Okabe and Ito's colours first, then light tints that stay apart from them on grey images.
# fmt: off
PALETTE = (
    "#E69F00", "#56B4E9", "#F0E442", "#D55E00", "#CC79A7", "#009E73", "#3D8BFF", "#EE8866", "#BBCC33", "#99DDFF",
    "#FFAABB", "#44BB99", "#DDCC77", "#AA4499", "#EE3377", "#AAAA00", "#EEDD88", "#77AADD", "#CC6677", "#B59CFF",
)
# fmt: on
GREY = "#B4B4B4"
FIGURE_WIDTH, FIGURE_HEIGHT = 12.0, 14.0  # inches, at most
HALO = [withStroke(linewidth=2.4, foreground="black", alpha=0.75)]


def colour_of(index: int) -> str:
    """Colour of pair `index` in every picture and table."""
    return PALETTE[index % len(PALETTE)]


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


def overlay(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Fixed in green, moving in magenta, grey where they agree; all `[rows, columns, 3]` in [0, 1]."""
    return np.stack([moving.mean(-1), fixed.mean(-1), moving.mean(-1)], axis=-1)


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


def draw_prompt(
    panel: Axes, plane: Plane, prompts: Prompts, k: int, colour: str, name: str, *, reach: float = math.inf
) -> None:
    """Mark prompt k: stars for clicks inside, crosses for clicks outside, a dashed box with its centre.

    Marks away from a 3-D plane are drawn faint, at their nearest place on it; those more than `reach` voxels away, and
    boxes that end farther away, not at all. The name stands at the first mark drawn, in one of four directions by k,
    so that those of prompts at one place stay apart.
    """
    marks = prompts.coordinates[k].detach().cpu().float()
    labels = [1] if prompts.labels is None else prompts.labels[k].tolist()
    if prompts.kind == "box":
        first, last = marks.amin(0), marks.amax(0)
        beyond = torch.maximum(first - torch.tensor(plane.index), torch.tensor(plane.index) - last)
        beyond[plane.in_plane] = 0
        if beyond.max() > reach:
            return
        style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.0, "linestyle": (0, (5, 3))}
        left, top = first[plane.in_plane].tolist()
        panel.add_patch(Rectangle((left, top), *(last - first)[plane.in_plane].tolist(), path_effects=HALO, **style))
        marks = marks.mean(0, keepdim=True)
    away = (marks - torch.tensor(plane.index)).abs()
    away[:, plane.in_plane] = 0
    distances = away.amax(1).tolist()
    places = marks[:, plane.in_plane].tolist()
    for (across, down), label, distance in zip(places, labels, distances, strict=True):
        click: dict[str, Any] = {"color": colour, "alpha": _fading(distance), "zorder": 5}
        if label > 0 and distance <= reach:
            panel.scatter(across, down, s=130, marker="*", edgecolors="black", linewidths=0.7, **click)
        elif label == 0 and distance <= reach:
            panel.scatter(across, down, s=45, marker="x", linewidths=2, path_effects=HALO, **click)
    shown = [i for i, distance in enumerate(distances) if labels[i] >= 0 and distance <= reach]
    if shown:
        _draw_name(panel, places[shown[0]], k, name, colour, _fading(distances[shown[0]]))


def _draw_name(panel: Axes, place: Sequence[float], k: int, name: str, colour: str, alpha: float) -> None:
    (side, right), (level, up) = (("left", 5), ("right", -5))[k % 2], (("bottom", 2), ("top", -2))[k // 2 % 2]
    style: dict[str, Any] = {"color": colour, "alpha": alpha, "size": 11, "weight": "bold", "zorder": 6}
    offset: dict[str, Any] = {"xytext": (right, up), "textcoords": "offset points", "ha": side, "va": level}
    style["parse_math"] = False  # a name may hold a dollar sign
    panel.annotate(name, (place[0], place[1]), annotation_clip=True, path_effects=HALO, **offset, **style)


def _fading(distance: float) -> float:
    """Opacity of a mark so many voxels away from the plane."""
    return 0.45 if distance > 1.5 else 1.0


def draw_region(panel: Axes, plane: Plane, probability: Tensor, colour: str, *, dashed: bool = False) -> None:
    """Outline of a region `[*S]` at probability 0.5."""
    draw_outline(panel, plane, plane.take(probability[None])[0], colour, dashed=dashed)


def draw_outline(panel: Axes, plane: Plane, picture: np.ndarray, colour: str, *, dashed: bool = False) -> None:
    """Outline at 0.5 of a region as shown, `[rows, columns]`."""
    if min(picture.shape) > 1 and picture.min() < 0.5 < picture.max():
        style: dict[str, Any] = {"colors": [colour], "linewidths": 1.6, "linestyles": "dashed" if dashed else "solid"}
        panel.contour(*plane.centres(picture), picture, levels=[0.5], **style).set(path_effects=HALO)


def draw_colour_bar(figure: Figure, panel: Axes, artist: AxesImage, label: str) -> None:
    """A thin horizontal colour bar in the space under the last panel of a column."""
    place, inch = panel.get_position(original=True), 1 / figure.get_figheight()
    room = figure.add_axes((place.x0 + 0.1 * place.width, 0.45 * inch, 0.8 * place.width, 0.09 * inch))
    figure.colorbar(artist, cax=room, orientation="horizontal").outline.set_visible(False)
    room.tick_params(labelsize=9, length=2, colors="#555555")
    room.set_xlabel(label, fontsize=10, color="#555555")
