# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Raw intensities as the models were trained to see them: models of SAM's family know pictures, 0 to 255.

A picture keeps its values, as upstream does. What is no picture (CT in Hounsfield units, 16-bit MR) is stretched from
its least to its greatest value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

RULES = ("auto", "picture", "stretch")
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of SAM's training pictures, red green blue
DARKEST_PICTURE = 127.0  # a picture's greatest value is above; values below are more likely no picture at all


def check_rule(rule: str) -> str:
    """The rule.

    Raises:
        InputError: when it is none of `RULES`.
    """
    if rule not in RULES:
        raise InputError(f"intensity: unknown '{rule}', expected one of {list(RULES)}")
    return rule


def as_picture(image: Tensor, rule: str = "auto") -> Tensor:
    """An image `[C, *S]` with values in 0 to 255.

    Args:
        image: raw intensities.
        rule: "picture" keeps values as they are, cut to 0..255; "stretch" maps least and greatest value to 0 and 255;
            "auto" does the first where values lie in 0..255 and the greatest is above 127, else the second. A constant
            image that is stretched becomes 0.
    """
    image = image.float()
    low, high = image.amin(), image.amax()
    if rule == "picture" or (rule == "auto" and low >= 0 and DARKEST_PICTURE < high <= 255):
        return image.clamp(0, 255)
    return 255 * unit_range(image)


def unit_range(image: Tensor) -> Tensor:
    """Least and greatest value mapped to 0 and 1; a constant image becomes 0."""
    low, high = image.amin(), image.amax()
    rounding = 1e-5 * image.abs().amax()  # what a constant image varies by after resampling
    return torch.where(high - low > rounding, (image - low) / (high - low).clamp(min=1e-8), 0.0)


def standardised(picture: Tensor) -> Tensor:
    """A picture `[1 or 3, *S]`, 0 to 255, as three channels with SAM's mean and deviation taken out."""
    mean, deviation = (torch.tensor(v, device=picture.device).reshape(3, 1, 1) for v in (MEAN, DEVIATION))
    return (picture.expand(3, *picture.shape[1:]) - mean) / deviation
