# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""How good a registration is, from truth that it did not see: overlap, landmarks, centroids, folding.

Overlap and surface distance are MONAI's. What MONAI lacks has the interface of MONAI's metrics (`metric(y_pred, y)`,
`aggregate()`, `reset()`), so that `IgniteMetricHandler` attaches it to any engine. Batches hold one value per pair,
`[B, 1]`; NaN where there is nothing to measure, which `aggregate` leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, compute_dice, compute_hausdorff_distance
from torch import Tensor

from .geometry import centroid, displace_points, folding_percent, transform_points


def label_dice(fixed: Tensor, moved: Tensor, labels: Sequence[int] | None = None) -> dict[int, float]:
    """Dice of labels.

    Args:
        fixed, moved: integer maps `[*S]` on one grid (the moving map carried by nearest neighbour), 0 = background.
        labels: which; None takes those present in the fixed map.

    Returns:
        label -> Dice in [0, 1]; a label that the moved map lacks scores 0.
    """
    chosen = present(fixed) if labels is None else list(labels)
    # One label at a time: a volume with many labels would not fit otherwise.
    return {
        label: compute_dice(_mask(moved, label), _mask(fixed, label), include_background=True).item()
        for label in chosen
    }


def label_hd95(fixed: Tensor, moved: Tensor, spacing: Sequence[float]) -> dict[int, float]:
    """95th percentile of the distances between the surfaces of each label present in both maps `[*S]`.

    Args:
        spacing: voxel size of the grid; distances are in its unit.
    """
    both = [label for label in present(fixed) if (moved == label).any()]
    return {
        label: compute_hausdorff_distance(
            _mask(moved, label), _mask(fixed, label), include_background=True, percentile=95, spacing=list(spacing)
        ).item()
        for label in both
    }


def target_registration_error(
    fixed_points: Tensor, moving_points: Tensor, ddf: Tensor, to_moving: Tensor, moving_spacing: Sequence[float]
) -> Tensor:
    """Distance of fixed landmarks, carried by the pull-back field, from their moving counterparts.

    Args:
        fixed_points, moving_points: `[D, N]` voxels of their own image.
        ddf: `[D, *S]`; to_moving: `[D+1, D+1]` (see `geometry`).
        moving_spacing: voxel size of the moving image, mm.

    Returns:
        `[N]` mm (pixels where the spacing is 1).
    """
    carried = transform_points(to_moving, displace_points(fixed_points, ddf))
    return distances(carried, moving_points, moving_spacing)


def distances(found: Tensor, true: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distances `[N]` between points `[D, N]` in voxels, in the unit of the spacing."""
    return ((found - true) * torch.tensor(spacing, device=found.device).reshape(-1, 1)).norm(dim=0)


def centroid_error(fixed: Tensor, moved: Tensor, spacing: Sequence[float]) -> float:
    """Mean distance between the centroids of labels present in both maps `[*S]` (the paper's TRE); NaN without any."""
    both = [label for label in present(fixed) if (moved == label).any()]
    if not both:
        return float("nan")
    found, true = (torch.stack([centroid(m == k) for k in both], 1) for m in (moved, fixed))
    return distances(found, true, spacing).mean().item()


def present(labels: Tensor) -> list[int]:
    """Labels of a map, without the background 0."""
    return [int(value) for value in labels.unique() if value != 0]


def _mask(labels: Tensor, label: int) -> Tensor:
    return (labels == label)[None, None].float()


class _PairMetric(CumulativeIterationMetric):
    """One number per pair; the aggregate is the mean over the pairs that have one."""

    def aggregate(self) -> Tensor:
        return torch.nanmean(self.get_buffer())


class LandmarkError(_PairMetric):
    """Target registration error: `y_pred` landmarks carried to the moving image and `y` true ones, `[B, N, D]` voxels.

    Args:
        spacing: voxel size of the moving image.
        statistic: over the landmarks of a pair, "mean" or "median".
    """

    def __init__(self, spacing: Sequence[float] = (1.0,), statistic: str = "mean") -> None:
        super().__init__()
        self.spacing, self.statistic = tuple(spacing), statistic

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert y is not None
        spacing = self.spacing * (y.shape[-1] if len(self.spacing) == 1 else 1)
        errors = torch.stack([distances(p.T, t.T, spacing) for p, t in zip(y_pred, y, strict=True)])
        return errors.mean(1, keepdim=True) if self.statistic == "mean" else errors.quantile(0.5, dim=1, keepdim=True)


class CentroidError(_PairMetric):
    """Distance between centroids of labels (the paper's TRE): label maps `[B, 1, *S]`, moved and fixed.

    Args:
        spacing: voxel size of the fixed image.
    """

    def __init__(self, spacing: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.spacing = tuple(spacing)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert y is not None
        spacing = self.spacing * (y.ndim - 2 if len(self.spacing) == 1 else 1)
        return torch.tensor([[centroid_error(f[0], m[0], spacing)] for m, f in zip(y_pred, y, strict=True)])


class Folding(_PairMetric):
    """Share of voxels where a displacement field `[B, D, *S]` (voxels) folds, percent; `y` is not looked at."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        return torch.tensor([[folding_percent(ddf)] for ddf in y_pred])
