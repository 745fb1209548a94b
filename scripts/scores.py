# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""All figures of one evaluated pair, taken from its field alone and in the same way for every method."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .datalist import PairEntry, read_landmarks
from .errors import InputError
from .geometry import folding_percent, warp
from .images import read_label
from .metrics import centroid_error, label_dice, label_hd95, target_registration_error
from .request import PairRequest

Row = dict[str, float | None]


@dataclass(frozen=True)
class Truth:
    """What is known of a pair.

    Attributes:
        spacing, moving_spacing: voxel sizes in which distances are given.
        fixed_label: `[*S]`, moving_label: `[*M]` integer maps.
        fixed_points, moving_points: `[D, N]` landmarks, voxels of their own image; row n belongs to row n.
        groups: name -> labels that count as one.
    """

    spacing: tuple[float, ...]
    moving_spacing: tuple[float, ...]
    fixed_label: Tensor | None = None
    moving_label: Tensor | None = None
    fixed_points: Tensor | None = None
    moving_points: Tensor | None = None
    groups: dict[str, list[int]] = field(default_factory=dict)


def read_truth(entry: PairEntry, request: PairRequest) -> Truth:
    """Labels and landmarks of a pair.

    Raises:
        InputError: a file is missing, damaged or does not fit its image.
    """
    shapes = {"fixed": tuple(request.fixed.shape[1:]), "moving": tuple(request.moving.shape[1:])}
    labels = {
        side: read_label(entry.files[f"{side}_label"], name=f"{side}_label", shape=shape)
        for side, shape in shapes.items()
        if f"{side}_label" in entry.files
    }
    points = {
        side: read_landmarks(entry.files[f"{side}_landmarks"], len(shape))
        for side, shape in shapes.items()
        if f"{side}_landmarks" in entry.files
    }
    counts = [p.shape[1] for p in points.values()]
    if len(set(counts)) > 1:
        raise InputError(f"landmarks: {counts[0]} fixed and {counts[1]} moving ones; rows must belong together")
    pictures = request.fixed_info.kind == "picture"
    return Truth(
        spacing=(entry.spacing if pictures else None) or request.fixed_info.spacing,
        moving_spacing=(entry.moving_spacing if pictures else None) or request.moving_info.spacing,
        fixed_label=labels.get("fixed"),
        moving_label=labels.get("moving"),
        fixed_points=points.get("fixed"),
        moving_points=points.get("moving"),
        groups=entry.groups,
    )


def carried_label(truth: Truth, ddf: Tensor, to_moving: Tensor) -> Tensor | None:
    """The moving label map on the fixed grid, by nearest neighbour, `[*S]`; outside of it 0."""
    if truth.moving_label is None:
        return None
    # Few maps need more than 2^24 labels, beyond which float32 would not be exact.
    return warp(truth.moving_label[None].float(), ddf, to_moving, mode="nearest")[0].long()


def scores(truth: Truth, ddf: Tensor, to_moving: Tensor) -> Row:
    """Figures of a field; what the truth does not tell is left out.

    Args:
        truth: of the pair.
        ddf: `[D, *S]`; to_moving: `[D+1, D+1]` (see `geometry`).

    Returns:
        dice_mean (over the labels present in the fixed map), dice_<label>, dice_groups and dice_<group>, hd95 (mean
        over labels present in both), centroid_tre, tre_mean and tre_median (in the unit of the spacing), the same with
        _voxel, rtre_median (relative to the fixed image's diagonal), fold_pct.
    """
    row: Row = {"fold_pct": folding_percent(ddf)}
    moved = carried_label(truth, ddf, to_moving)
    if moved is not None and truth.fixed_label is not None:
        fixed = truth.fixed_label
        grouped: dict[str, float] = {}
        row |= _overlap("dice_mean", {str(k): v for k, v in label_dice(fixed, moved).items()})
        for name, labels in truth.groups.items():
            one = torch.tensor(labels)
            grouped[name] = label_dice(torch.isin(fixed, one).long(), torch.isin(moved, one).long(), [1])[1]
        row |= _overlap("dice_groups", grouped)
        surfaces = label_hd95(fixed, moved, truth.spacing)
        row["hd95"] = statistics.mean(surfaces.values()) if surfaces else None
        row["centroid_tre"] = centroid_error(fixed, moved, truth.spacing)
    if truth.fixed_points is not None and truth.moving_points is not None:
        points = truth.fixed_points, truth.moving_points, ddf, to_moving
        error = target_registration_error(*points, truth.moving_spacing)
        voxels = target_registration_error(*points, [1.0] * len(ddf))
        diagonal = (torch.tensor(ddf.shape[1:]) * torch.tensor(truth.spacing)).norm()
        row |= {
            "tre_mean": error.mean().item(),
            "tre_median": error.quantile(0.5).item(),
            "rtre_median": (error.quantile(0.5) / diagonal).item(),
            "tre_mean_voxel": voxels.mean().item(),
            "tre_median_voxel": voxels.quantile(0.5).item(),
        }
    return row


def _overlap(mean: str, by_name: dict[str, float]) -> Row:
    if not by_name:
        return {}
    return {mean: statistics.mean(by_name.values()), **{f"dice_{name}": value for name, value in by_name.items()}}
