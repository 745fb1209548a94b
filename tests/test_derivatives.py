# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Derivatives of a function that is known, and the notice of a model that has none."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from toy import DiscSegmenter

from scripts.prompts import Prompts
from scripts.segmenters.derivatives import central_differences, forward_mode


def polynomial(at: Tensor) -> Tensor:
    """`[N, P, D]` to `[N, 2]`: the sum of squares, and the first point's first times the last point's last."""
    return torch.stack([at.square().sum((1, 2)), at[:, 0, 0] * at[:, -1, -1]], dim=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_both_ways_give_the_derivative(dims: int) -> None:
    at = torch.arange(1.0, 1 + 3 * 2 * dims).reshape(3, 2, dims)
    expected = torch.zeros(3, 2 * dims, 2)
    expected[:, :, 0] = 2 * at.flatten(1)
    expected[:, 0, 1], expected[:, -1, 1] = at[:, -1, -1], at[:, 0, 0]
    step = torch.linspace(0.1, 0.3, dims)  # axes may differ
    for value, slope in (forward_mode(polynomial, at), central_differences(polynomial, at, step)):
        assert torch.allclose(value, polynomial(at)) and torch.allclose(slope, expected, atol=2e-3)


def test_differences_come_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    toy = DiscSegmenter(differentiable=False)
    embedding = toy.encode([torch.rand(1, 32, 32)])[0]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            toy.decode_jacobian(embedding, Prompts(torch.tensor([[[10.0, 12.0]]]), torch.ones(1, 1)))
    assert [r.message for r in caplog.records] == ["toy has no derivative by prompts; central differences stand in"]
