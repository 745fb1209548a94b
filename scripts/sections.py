# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Section areas of corresponding regions through a volume: where one breaks off or jumps, its counterpart does not.

A region found slice by slice can be right in most slices and lost in one; its volume and its centroid hide that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .drawing import FIGURE_WIDTH, colour_of
from .registration import RegionPairs, Registration
from .scroller import slices_of

COLUMNS, HEIGHT = 4, 1.75  # most plots in a row, and inches of one
BACK, LINES = "#2b333c", "#48525d"  # dark, as the images are on which the pairs' colours are told apart


def section_areas(registration: Registration) -> Tensor:
    """Areas of each pair's two regions in each slice of the fixed volume, `[2, K, slices]` float32 on the CPU, mm².

    First the fixed region, then the moving region carried to the fixed grid by the map; a voxel counts where its
    probability exceeds 1/2.
    """
    planes, pairs = slices_of(registration), registration.pairs
    moving_regions = pairs.moving_regions.to(registration.ddf)
    areas = torch.zeros(2, len(pairs), len(planes))
    for at, plane in enumerate(planes if len(pairs) else ()):
        pixel = math.prod(plane.spacing[axis] for axis in plane.in_plane)
        carried = plane.pulled_back(moving_regions, registration.ddf, registration.to_moving)
        for side, regions in enumerate((plane.slab(pairs.fixed_regions), carried)):
            areas[side, :, at] = pixel * (regions > 0.5).flatten(1).sum(1).cpu()
    return areas


def sections_figure(areas: Tensor, pairs: RegionPairs, step: float) -> Figure | None:
    """A plot per pair that was found: section areas along the slices, fixed solid, carried moving dashed.

    Args:
        areas: `[2, K, slices]`, mm².
        pairs: their names and which were found.
        step: from slice to slice, mm.

    Returns:
        None where no pair was found.
    """
    found = pairs.found.nonzero()[:, 0].tolist()
    if not found:
        return None
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(FIGURE_WIDTH, HEIGHT * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    millimetres = step * np.arange(areas.shape[-1])
    for panel, k in zip(axes.flat, found, strict=False):
        colour, (fixed, carried) = colour_of(k), areas[:, k].numpy()
        first, last = _extent(areas[:, k])
        marker = "o" if last - first <= 40 else ""
        panel.set_facecolor(BACK)
        panel.grid(color=LINES, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.fill_between(millimetres, fixed, carried, color=colour, alpha=0.25, linewidth=0)
        panel.plot(millimetres, fixed, color=colour, linewidth=1.6, marker=marker, markersize=3)
        panel.plot(millimetres, carried, color=colour, linewidth=1.6, linestyle=(0, (4, 2)))
        panel.set_xlim(step * (first - 0.3), step * (last + 0.3))
        panel.set_ylim(0, 1.08 * (float(areas[:, k].max()) or 1.0))
        panel.set_title(pairs.ids[k], fontsize=10, color="#333333", pad=4, parse_math=False)
        panel.tick_params(labelsize=8, length=2, colors="#555555")
        panel.spines[:].set_visible(False)
    for panel in axes.flat[len(found) :]:
        panel.set_axis_off()
    figure.supxlabel("distance from slice 0 [mm]", fontsize=10, color="#555555")
    figure.supylabel("section area [mm²]", fontsize=10, color="#555555")
    return figure


def _extent(areas: Tensor) -> tuple[int, int]:
    """Slices to show of `[2, slices]`: those that hold either region and one more to each side, which holds none."""
    held = areas.amax(0).nonzero()[:, 0].tolist() or [0, areas.shape[-1] - 1]
    return max(held[0] - 1, 0), min(held[-1] + 1, areas.shape[-1] - 1)
