# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""How good a registration is, from truth that it did not see: label overlap and landmark error."""

from __future__ import annotations

import torch
from monai.metrics import compute_dice
from torch import Tensor

from .geometry import displace_points, transform_points


def label_dice(fixed: Tensor, moved: Tensor) -> dict[int, float]:
    """Dice of every label present in the fixed map.

    Args:
        fixed, moved: integer maps `[*S]` on one grid (the moving map carried by nearest neighbour), 0 = background.

    Returns:
        label -> Dice in [0, 1]; a label that the moved map lacks scores 0.
    """
    labels = [int(v) for v in fixed.unique() if v != 0]
    if not labels:
        return {}
    masks = [torch.stack([image == label for label in labels])[None] for image in (moved, fixed)]
    values = compute_dice(masks[0], masks[1], include_background=True)[0]
    return dict(zip(labels, values.tolist(), strict=True))


def target_registration_error(
    fixed_points: Tensor, moving_points: Tensor, ddf: Tensor, to_moving: Tensor, moving_spacing: tuple[float, ...]
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
    spacing = torch.tensor(moving_spacing, device=carried.device).reshape(-1, 1)
    return ((carried - moving_points) * spacing).norm(dim=0)
