# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Figures of fields whose answer is known, and our metrics attached to an ignite engine."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from scripts.metrics import CentroidError, Folding, LandmarkError, label_hd95
from scripts.scores import Truth, scores


def shifted(shape: tuple[int, ...], by: tuple[float, ...]) -> Tensor:
    return torch.tensor(by).reshape(-1, *[1] * len(shape)).expand(len(shape), *shape).clone()


def block(at: int) -> Tensor:
    label = torch.zeros(20, 30, dtype=torch.long)
    label[at : at + 6, 10:20] = 1
    label[14:18, 2:6] = 2
    return label


def test_scores_of_a_shift() -> None:
    points = torch.tensor([[4.0, 6.0, 9.0], [10.0, 12.0, 19.0]])
    truth = Truth(
        spacing=(2.0, 1.0),
        moving_spacing=(2.0, 1.0),
        fixed_label=block(2),
        moving_label=block(5),
        fixed_points=points,
        moving_points=points + torch.tensor([[3.0], [0.0]]),
        groups={"both": [1, 2]},
    )
    before = scores(truth, torch.zeros(2, 20, 30), torch.eye(3))
    # Three of six rows of the block overlap; the other label does not move.
    assert (
        before["dice_1"] == pytest.approx(0.5)
        and before["dice_2"] == 1.0
        and before["dice_mean"] == pytest.approx(0.75)
    )
    assert before["dice_both"] == before["dice_groups"] == pytest.approx(2 * (30 + 16) / (2 * (60 + 16)))
    assert before["centroid_tre"] == pytest.approx(3.0)  # (3 rows of 2 mm + 0) / 2
    assert before["hd95"] == pytest.approx(3.0)
    assert before["tre_mean"] == before["tre_median"] == pytest.approx(6.0)
    assert before["tre_mean_voxel"] == pytest.approx(3.0)
    assert before["rtre_median"] == pytest.approx(6.0 / (40**2 + 30**2) ** 0.5)
    after = scores(truth, shifted((20, 30), (3.0, 0.0)), torch.eye(3))
    assert after["dice_1"] == 1.0 and after["dice_2"] == pytest.approx(0.25)  # one row of four stays
    assert after["tre_mean"] == pytest.approx(0.0, abs=1e-5) and after["fold_pct"] == 0.0


def test_a_lost_label_counts_as_zero_and_has_no_surface() -> None:
    truth = Truth((1.0, 1.0), (1.0, 1.0), block(2), torch.zeros(20, 30, dtype=torch.long))
    row = scores(truth, torch.zeros(2, 20, 30), torch.eye(3))
    assert row["dice_mean"] == 0.0 and row["hd95"] is None
    assert row["centroid_tre"] != row["centroid_tre"]  # NaN: no label on both sides


def test_what_is_not_known_is_left_out() -> None:
    assert set(scores(Truth((1.0, 1.0), (1.0, 1.0)), torch.zeros(2, 9, 9), torch.eye(3))) == {"fold_pct"}


def test_surface_distance_is_in_millimetres() -> None:
    assert label_hd95(block(2), block(4), (3.0, 1.0))[1] == pytest.approx(6.0)


def run(metric: CumulativeIterationMetric, batches: list[tuple[Tensor, Tensor | None]]) -> float:
    engine = Engine(lambda engine, batch: batch)
    IgniteMetricHandler(metric, save_details=False).attach(engine, "value")
    return engine.run(batches).metrics["value"]


def test_metrics_attach_to_an_engine_and_leave_out_what_is_not_there() -> None:
    points = torch.zeros(1, 4, 2)
    near, far = points + torch.tensor([3.0, 4.0]), points + torch.tensor([6.0, 8.0])
    assert run(LandmarkError(), [(near, points), (far, points)]) == pytest.approx(7.5)
    assert run(LandmarkError((1.0, 2.0), "median"), [(near, points)]) == pytest.approx((9 + 64) ** 0.5)
    same, empty = block(2)[None, None], torch.zeros(1, 1, 20, 30, dtype=torch.long)
    assert run(CentroidError(), [(block(6)[None, None], same), (empty, same)]) == pytest.approx(2.0)
    fold = torch.zeros(1, 2, 10, 10)
    fold[0, 0, 5:] = -4.0  # rows 5 and later are taken from 4 rows before: one step back
    assert run(Folding(), [(fold, None)]) == pytest.approx(20.0)
