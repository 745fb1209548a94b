# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The derivative of a function of N prompts by each of their coordinates, exactly or by differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def forward_mode(function: Function, at: Tensor) -> tuple[Tensor, Tensor]:
    """One pass for the value, then one for each coordinate, all at once.

    Args:
        function: of coordinates `[N, P, D]` to `[N, *S]`, each prompt for itself; at: where.

    Returns:
        value `[N, *S]` and derivatives `[N, P * D, *S]`.
    """

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(function, (at,), (direction.expand_as(at),))[:2]
        return value, slope

    value, slope = torch.func.vmap(along, out_dims=(None, 1))(_directions(at))  # type: ignore[arg-type]  # None: not mapped
    return value, slope


def central_differences(function: Function, at: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """One pass for the value and two for each coordinate; arguments and result as for `forward_mode`.

    Args:
        function, at: likewise.
        step: `[D]`, how far to go to either side along each axis.
    """
    slopes = []
    for direction in _directions(at):
        ahead, behind = (function(at + s * step * direction.expand_as(at)) for s in (1, -1))
        slopes.append((ahead - behind) / (2 * (step * direction).sum()))
    return function(at), torch.stack(slopes, dim=1)


def _directions(at: Tensor) -> Tensor:
    """Unit steps along each coordinate of a prompt, `[P * D, P, D]`."""
    return torch.eye(at[0].numel(), device=at.device).reshape(-1, *at.shape[1:])
