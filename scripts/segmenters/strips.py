# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A grid in strips of rows, so that on a CPU what is made on the way stays in the core's cache.

Large tensors that live for one step cost more than the arithmetic on them: their memory comes page by page from the
operating system, and goes back to it, each time. A strip's is small enough to be kept and reused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STRIP = 2**23  # bytes


def by_strips(
    function: Callable[[Tensor], Tensor], x: Tensor, widest: int, *, multiple: int = 1, reach: int = 0, stride: int = 1
) -> Tensor:
    """`function(x)`, computed some rows at a time on a CPU; elsewhere at once.

    Args:
        function: of grids `[B, h, W, C]` to `[B, h / stride, W', C']`. A row of its result must depend on no rows but
            its own, the `reach` rows to either side and, if `multiple` > 1, those of its group of so many.
        x: `[B, H, W, C]`.
        widest: channels of the widest grid that `function` makes on the way, at the resolution of `x`.
        multiple: rows of a strip are a multiple of this (the last strip may have fewer), and of `stride`.
        reach: 0 or 1.
        stride: of the function.
    """
    height = x.shape[1]
    step = multiple * stride
    row = x[:, :1, :, 0].numel() * widest * x.element_size()
    rows = max(1, STRIP // (row * step)) * step if x.device.type == "cpu" else height
    parts = []
    for begin in range(0, height, rows):
        # At the grid's own edges, zeros stand for what lies beyond; inside, the rows that saw such zeros are dropped.
        first, last = max(0, begin - reach * stride), min(height, begin + rows + reach)
        part = function(x[:, first:last])
        parts.append(part[:, (begin - first) // stride :][:, : -(-rows // stride)])
    return torch.cat(parts, dim=1)
