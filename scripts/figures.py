# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The pictures of a registered pair: every image, 2-D or 3-D, is shown as a list of planes (one or three)."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from .drawing import (
    GREY,
    colour_of,
    draw_colour_bar,
    draw_prompt,
    draw_region,
    in_colour,
    overlay,
    panels,
    window_of,
)
from .planes import Plane
from .registration import Registration


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
        overlays = [overlay(fixed, moving) for moving in (before, after)]
        for panel, picture in zip([*top, *bottom], [fixed, before, after, *overlays, checkerboard], strict=True):
            plane.show(panel, picture)
    return images, agreement


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
