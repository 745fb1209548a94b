# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Label overlap and landmark error on cases whose answer is known."""

from __future__ import annotations

import pytest
import torch

from scripts.demo import example
from scripts.geometry import warp
from scripts.metrics import label_dice, target_registration_error


def test_dice_by_label() -> None:
    fixed = torch.tensor([[1, 1, 2, 2], [0, 0, 7, 7]])
    moved = torch.tensor([[1, 0, 2, 2], [0, 0, 0, 0]])
    assert label_dice(fixed, fixed) == {1: 1.0, 2: 1.0, 7: 1.0}
    assert label_dice(fixed, moved) == pytest.approx({1: 2 / 3, 2: 1.0, 7: 0.0})
    assert label_dice(torch.zeros(2, 2), moved) == {}


def test_landmark_error_is_in_millimetres_of_the_moving_image() -> None:
    ddf = torch.zeros(3, 8, 8, 8)
    ddf[0] = 2.0  # the field says two voxels along i, the truth is none
    points = torch.tensor([[3.0, 4.0], [3.0, 2.0], [5.0, 1.0]])
    error = target_registration_error(points, points, ddf, torch.eye(4), (1.5, 1.0, 4.0))
    assert error.tolist() == pytest.approx([3.0, 3.0])


def test_demo_pair_is_related_by_its_truth() -> None:
    fixed, moving, truth = example(size=128)
    undone = 255 * (moving / 255 / 0.9) ** (1 / 0.7)  # the grey scale
    middle = (slice(None), slice(16, -16), slice(16, -16))
    before = (undone - fixed)[middle].abs().mean()
    after = (warp(undone, truth) - fixed)[middle].abs().mean()
    assert truth.norm(dim=0).max() > 3.0
    assert after < 0.5 * before  # what is left is interpolation, twice
