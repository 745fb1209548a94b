# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Weights in the objective: one number, or one for pictures and one for volumes."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from .errors import InputError

Weight = float | Sequence[float]


def check_weight(value: object, name: str) -> None:
    """Raise `InputError` for what is neither a number from 0 on nor two of them."""
    numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < inf for n in numbers):
        raise InputError(f"{name} is {value!r}, expected a number from 0 on, or two: [pictures, volumes]")


def weight_for(weight: Weight, dims: int) -> float:
    """The number that counts for images of 2 or 3 dimensions."""
    return weight[dims - 2] if isinstance(weight, Sequence) else weight
