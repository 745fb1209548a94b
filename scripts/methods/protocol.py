# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a registration method must offer to be evaluated: a pair goes in, a dense map on the fixed grid comes out.

Every method, ours included, is reduced to this map, and every figure is taken from it by the same code. A tool that is
not installed says how to get it instead of failing. A method that needs training fits as well: its class takes the
trained weights as an argument (`checkpoint: FILE` in YAML); training itself is a command of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..registration import Registration
from ..request import PairRequest


@dataclass(frozen=True)
class Mapped:
    """A registered pair, as far as every method can tell.

    Attributes:
        points: `[D, *S]` float32: for each voxel of the fixed image the place in the moving image (voxels, array order)
            that corresponds to it (pull-back).
        warped: the moving image on the fixed grid as the tool itself resampled it, `[*S]` grey, to check `points` by;
            None where the tool gives none.
        registration: the full result, for methods that find region pairs.
    """

    points: Tensor
    warped: Tensor | None = None
    registration: Registration | None = None


class RegistrationMethod(Protocol):
    """A method that can be listed in an evaluation."""

    def missing(self) -> str | None:
        """How to install what this method needs and cannot find; None when it can run."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, JSON-able; results made with other settings are not mixed."""

    def __call__(self, request: PairRequest) -> Mapped:
        """Register a pair.

        Raises:
            InputError: the method cannot register such a pair (e.g. volumes for a 2-D method); says so in one line.
            RuntimeError: the tool failed; the message has its last words.
        """
