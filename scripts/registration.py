# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The result of registering one pair: everything the outputs, the report and the metrics need, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .prompts import Prompts


@dataclass(frozen=True)
class ImageInfo:
    """Where an image came from and how its voxels lie in space.

    Attributes:
        path: file or folder it was read from ("" for an image made in memory).
        kind: "picture" (PNG, JPEG, TIFF: axis 0 = row, axis 1 = column, no world) or "volume" (NIfTI, NRRD, MetaImage,
            DICOM; also 2-D images in these formats).
        suffix: file ending that outputs on this image's grid get, e.g. ".png", ".nii.gz".
        affine: `[D+1, D+1]` float64, from voxels to RAS millimetres; identity for pictures.
        spacing: voxel size along each array axis, mm (1 for pictures).
    """

    path: str
    kind: str
    suffix: str
    affine: Tensor
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class RegionPairs:
    """K pairs of corresponding regions, one per prompt.

    Attributes:
        moving_prompts, fixed_prompts: K prompts each, voxels of their own image. Clicks stay clicks unless they came
            mixed with boxes; `fixed_prompts` of a pair that was not found is where the search ended and must not be
            used as a result.
        moving_regions: `[K, *M]` probabilities on the moving image's own grid.
        fixed_regions: `[K, *S]` probabilities on the fixed image's own grid.
        confidence: `[K]` in [0, 1], the weight in the fit; 0 below the floor (see `Trust`).
        cues: what the confidence was made from, each `[K]`, by name.
        found: `[K]` bool; False means "no correspondence".
        ids: K names, from the caller's prompts or numbered "1", "2", ...
    """

    moving_prompts: Prompts
    fixed_prompts: Prompts
    moving_regions: Tensor
    fixed_regions: Tensor
    confidence: Tensor
    cues: dict[str, Tensor]
    found: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: list[int]) -> RegionPairs:
        return RegionPairs(
            moving_prompts=self.moving_prompts[index],
            fixed_prompts=self.fixed_prompts[index],
            moving_regions=self.moving_regions[index],
            fixed_regions=self.fixed_regions[index],
            confidence=self.confidence[index],
            cues={name: values[index] for name, values in self.cues.items()},
            found=self.found[index],
            ids=tuple(self.ids[k] for k in index),
        )


@dataclass(frozen=True)
class Registration:
    """A registered pair.

    Attributes:
        fixed: `[C, *S]` raw intensities; moving: `[C, *M]`; moved: `[C, *S]` moving on the fixed grid.
        fixed_info, moving_info: geometry and origin of the two images.
        ddf: `[D, *S]` voxels of the fixed grid, pull-back (see `geometry`); inverse: `[D, *S]` of its inverse, which
            carries points from the moving to the fixed image.
        to_moving: `[D+1, D+1]` from fixed to moving voxels before the fit.
        pairs: the region pairs the fit used.
        folding_percent: share of voxels where the map folds.
        seconds: wall time by stage, in order.
        counts: model evaluations, e.g. {"encodes": 2, "decodes": 96}.
        settings: what produced this (transformation, objective, seed, ...), JSON-able.
        hypothesis: what led the map, "features" (and regions) or the edges of "one scene".
        evidence: for or against one scene (see `same_scene`); empty where it was not asked.
        prealigned: what the images were placed "by" before the fit, and the "scores" of the choices (`prealignment`).
    """

    fixed: Tensor
    moving: Tensor
    moved: Tensor
    fixed_info: ImageInfo
    moving_info: ImageInfo
    ddf: Tensor
    inverse: Tensor
    to_moving: Tensor
    pairs: RegionPairs
    folding_percent: float
    seconds: dict[str, float]
    counts: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    hypothesis: str = "features"
    evidence: dict[str, float] = field(default_factory=dict)
    prealigned: dict[str, Any] = field(default_factory=dict)
