# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""One prompt of a session and what was found for it, and how that is shown in the form in which it was given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .correspond import Found
from .geometry import centroid
from .prior import Prior
from .prompt_inversion import clamp_to_image
from .prompt_sampling import boxes_of
from .prompts import GivenPrompt, Prompts

SIDES = ("moving", "fixed")


@dataclass(frozen=True)
class Asked:
    """One prompt of a session.

    Attributes:
        given: the prompt; side: "moving" or "fixed", the image it was given on.
        found: its counterpart: regions by image whichever was prompted, `prompts` and `expected` on the other image.
    """

    given: GivenPrompt
    side: str
    found: Found

    @property
    def other(self) -> str:
        """The image it was not given on."""
        return SIDES[1 - SIDES.index(self.side)]

    def region(self, side: str) -> Tensor:
        """Region `[1, *S]` on one image."""
        return self.found.moving_regions if side == "moving" else self.found.fixed_regions

    @cached_property
    def shift(self) -> Tensor:
        """`[D]` voxels from where the prompt's region is expected to where it was found; 0 where nothing was."""
        there = self.region(self.other)
        if not (there > 0.5).any():
            return there.new_zeros(there.ndim - 1)
        return self.found.centres[SIDES.index(self.other)][0] - self.found.expected[0]


def counterpart_of(own: Prompts, asked: Asked, carry: Prior, *, by_regions: bool) -> Prompts:
    """A prompt's counterpart in the form in which the prompt was given.

    What the model was asked in the same form is the answer itself. A click that the model took as a box is carried by
    the map and, where regions say more than the map, moved as the found region lies to the carried one.

    Args:
        own: the prompt, one, as given; asked: its answer.
        carry: the map from the prompt's image to the other.
        by_regions: whether the found region corrects the map.
    """
    there = asked.region(asked.other)
    if own.kind == asked.found.prompts.kind:
        return asked.found.prompts
    if own.kind == "box":
        return box_around(there)
    carried = carry.carry_prompts(own)
    if by_regions:
        carried = carried.at(carried.coordinates + asked.shift)
    return clamp_to_image(carried, tuple(there.shape[1:]))


def box_around(region: Tensor) -> Prompts:
    """The box around a region `[1, *S]`; where it is empty, around its centre of mass."""
    centre = centroid(region[0])
    return boxes_of(region > 0.5, Prompts(torch.stack([centre - 1, centre + 1])[None]), 1.0, tuple(region.shape[1:]))
