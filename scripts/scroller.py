# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A volume slice by slice: its through-plane axis, and a picture of each slice of a registered pair.

Three planes show a structure where it is largest; whether its outline holds from one slice to the next, and where a
region ends, is seen only in the slices themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from .drawing import colour_of, draw_outline, draw_prompt, draw_region, in_colour, overlay, panels, window_of
from .planes import Plane, planes_of
from .registration import Registration

MOST_FRAMES = 40  # a page of a few megabytes
TITLES = ("Fixed", "Moving, after (moved)", "Overlay after")


@dataclass(frozen=True)
class Frame:
    """One slice of the fixed grid.

    Attributes:
        slice: its array index along the through-plane axis, 0-based.
        millimetres: its distance from slice 0.
        figure: fixed with regions and prompts, moved with the regions carried along, overlay.
    """

    slice: int
    millimetres: float
    figure: Figure


def through_plane_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """The axis across a volume's slices: of the largest spacing, then of the fewest voxels, then the last."""
    widest = max(spacing)
    thick = [axis for axis, step in enumerate(spacing) if step > 0.999 * widest]  # headers round
    return min(thick, key=lambda axis: (shape[axis], -axis))


def slices_of(registration: Registration) -> list[Plane]:
    """Every slice of the fixed volume, in the order of its array; none of a 2-D image."""
    info, shape, through = registration.fixed_info, registration.fixed.shape[1:], registration.ddf.new_zeros(3)
    if len(shape) < 3:
        return []
    axis = through_plane_axis(shape, info.spacing)
    first = next(plane for plane in planes_of(info, shape, through) if axis not in plane.in_plane)
    return [replace(first, index=tuple(at if a == axis else 0 for a in range(3))) for at in range(shape[axis])]


def thinned(count: int, most: int = MOST_FRAMES) -> list[int]:
    """Indices of at most `most` of `count` slices, evenly spread from the first to the last."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most)).tolist()})


def slice_frames(registration: Registration) -> Iterator[Frame]:
    """Pictures of the fixed volume's slices, at most `MOST_FRAMES`; none of a 2-D image."""
    planes = slices_of(registration)
    shown = thinned(len(planes)) if planes else []
    pairs, windows = registration.pairs, (window_of(registration.fixed), window_of(registration.moving))
    # A prompt between two slices that are shown is drawn on the nearer.
    reach = 0.5 * max(np.diff(shown), default=1)
    found = pairs.found.nonzero()[:, 0].tolist()
    moving_regions = pairs.moving_regions[found].to(registration.ddf)
    for at in shown:
        plane = replace(planes[at], name="")
        fixed = in_colour(plane.take(registration.fixed), windows[0])
        moved = in_colour(plane.take(registration.moved), windows[1])
        figure, axes = panels([[plane]] * 3, TITLES)
        for panel, picture in zip(axes[0], (fixed, moved, overlay(fixed, moved)), strict=True):
            plane.show(panel, picture)
        carried = plane.pulled_back(moving_regions, registration.ddf, registration.to_moving)
        outlines = plane.flat(carried) if found else ()
        for k, outline in zip(found, outlines, strict=True):
            draw_region(axes[0, 0], plane, pairs.fixed_regions[k], colour_of(k))
            draw_prompt(axes[0, 0], plane, pairs.fixed_prompts, k, colour_of(k), pairs.ids[k], reach=reach)
            draw_outline(axes[0, 1], plane, outline, colour_of(k), dashed=True)
        yield Frame(at, at * plane.spacing[plane.across], figure)
