# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Marginalisation over spatial transforms (Sec. 3.2): segment the moving image under J transforms A_j and average.

The image is resampled to `I^x o A_j`, the prompt is carried along, and the probability map is mapped back by the
inverse of A_j; the caller inverts each map on the fixed image and averages both sides over j. A_j is a homogeneous
matrix on voxels about the image centre; it acts in the plane that the model sees and is a similarity in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import torch
from torch import Tensor

from .errors import InputError
from .geometry import bounding_box, resampled, transform_points
from .prompt_inversion import scaled_boxes
from .prompts import Prompts

KINDS = ("flip", "rotation", "scaling", "mixed")


@dataclass(frozen=True)
class Marginalisation:
    """Which transforms are drawn.

    Attributes:
        transforms: J, the identity included (paper: 1 to 9); 1 switches marginalisation off.
        kind: "flip", "rotation", "scaling" or "mixed" (all three at once), for the J - 1 transforms beside the
            identity.
        angles: range of rotations, degrees (paper: 0 to 360), in the plane of the first two axes that the model sees.
        scales: range of scalings, drawn log-uniformly (paper: 0.5 to 2.5).
        margin: size of a carried box prompt relative to the box of the carried region.
    """

    transforms: int = 1
    kind: str = "flip"
    angles: tuple[float, float] = (0.0, 360.0)
    scales: tuple[float, float] = (0.5, 2.5)
    margin: float = 1.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"marginalisation: unknown kind '{self.kind}', expected one of {list(KINDS)}")
        if self.transforms < 1:
            raise InputError(f"marginalisation: transforms is {self.transforms}, expected 1 (identity only) or more")


def draw_transforms(
    how: Marginalisation,
    shape: Sequence[int],
    generator: torch.Generator,
    spacing: Sequence[float] | None = None,
    plane: Sequence[int] | None = None,
) -> list[Tensor]:
    """J matrices `[D+1, D+1]` on voxels of an image; the first is the identity.

    Flips run through the axes in turn before anything repeats; angles and scales are drawn from the generator.

    Args:
        how: settings.
        shape: of the image.
        generator: source of randomness.
        spacing: voxel size along each axis; None: 1.
        plane: image axes that the transforms act in; None: all.
    """
    dims = len(shape)
    axes = list(range(dims)) if plane is None else list(plane)
    size = torch.diag(torch.ones(dims) if spacing is None else torch.tensor(spacing))
    centre = torch.tensor([(n - 1) / 2 for n in shape])
    matrices = [torch.eye(dims + 1)]
    for j in range(1, how.transforms):
        draws = torch.rand(2, generator=generator).tolist()
        linear = torch.eye(dims)
        if how.kind in ("flip", "mixed"):
            combination = 1 + (j - 1) % (2 ** len(axes) - 1)  # every combination of axes in turn, never none of them
            for bit, axis in enumerate(axes):
                linear[axis] *= -1.0 if (combination >> bit) & 1 else 1.0
        if how.kind in ("rotation", "mixed"):
            angle = (how.angles[0] + draws[0] * (how.angles[1] - how.angles[0])) * pi / 180
            rotation = torch.eye(dims)
            first, second = axes[:2]
            rotation[first, first] = rotation[second, second] = cos(angle)
            rotation[second, first], rotation[first, second] = sin(angle), -sin(angle)
            linear = torch.linalg.inv(size) @ rotation @ size @ linear
        if how.kind in ("scaling", "mixed"):
            linear[axes] *= how.scales[0] * (how.scales[1] / how.scales[0]) ** draws[1]
        matrix = torch.eye(dims + 1)
        matrix[:dims, :dims] = linear
        matrix[:dims, dims] = centre - linear @ centre
        matrices.append(matrix)
    return matrices


def transform_image(image: Tensor, matrix: Tensor) -> Tensor:
    """`I o A`: `[C, *S]` sampled at A p for every voxel p of the same grid, continued constantly outside."""
    return resampled(image, matrix, image.shape[1:], padding="border")


def map_back(maps: Tensor, matrix: Tensor) -> Tensor:
    """Maps `[N, *S]` of the transformed image on the original one: `m o A^-1`; what lay outside becomes 0."""
    return resampled(maps, torch.linalg.inv(matrix), maps.shape[1:])


def views_seen(prompts: Prompts, matrices: list[Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which views say something about which prompt, and where.

    Args:
        prompts: K prompts on the original image; matrices: J transforms; shape: of the image.

    Returns:
        `[J, K]` 1 where the prompt's centre lies inside the view, else 0;
        `[J, *shape]` 1 where the view shows the image, else 0.
    """
    device = prompts.coordinates.device
    last = torch.tensor(shape, device=device) - 1
    whole = torch.ones(1, *shape, device=device)
    asked, shown = [], []
    for matrix in matrices:
        labels = (
            torch.ones(prompts.coordinates.shape[:2], device=device) if prompts.labels is None else prompts.labels == 1
        )
        weights = labels.float()[..., None]
        centre = (prompts.coordinates * weights).sum(1) / weights.sum(1)
        moved = transform_points(torch.linalg.inv(matrix).to(device), centre.T).T
        asked.append(((moved >= -0.5) & (moved <= last + 0.5)).all(1).float())
        still = matrix.equal(torch.eye(len(matrix), device=matrix.device))
        shown.append(whole[0] if still else (map_back(whole, matrix.to(device))[0] > 0.5).float())
    return torch.stack(asked), torch.stack(shown)


def average(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over views: `[J, ...]` and weights that broadcast to it; 0 where no view has weight."""
    if len(values) == 1:
        return values[0] * (weights[0] > 0)
    return (values * weights).sum(0) / weights.sum(0).clamp(min=1e-6)


def transform_prompts(prompts: Prompts, regions: Tensor, matrix: Tensor, margin: float) -> Prompts:
    """`Z o A`: prompts on the transformed image.

    Points go to `A^-1 p`. A box becomes the box of the carried region, because the box around a rotated box is too
    large for models that were trained with tight ones.

    Args:
        prompts: K prompts on the original image.
        regions: `[K, *S]` their regions on the original image.
        matrix: A.
        margin: factor on the size of the carried region's box.
    """
    moved = prompts.transformed(torch.linalg.inv(matrix).to(prompts.coordinates))
    if prompts.kind == "point":
        return moved
    corners = torch.stack([moved.coordinates.amin(1), moved.coordinates.amax(1)], dim=1)
    for k, region in enumerate(transform_image(regions, matrix)):
        box = bounding_box(region > 0.5)
        if box is not None:
            corners[k] = scaled_boxes(box[None], margin)[0]
    return prompts.at(corners)
