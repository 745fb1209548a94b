# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What doing nothing gives: headers trusted as they are, or image centres put together."""

from __future__ import annotations

from typing import Any

from ..geometry import identity_points, transform_points
from ..request import PairRequest
from .protocol import Mapped


class Prealignment:
    """No registration at all.

    Args:
        how: "world" (identity: headers; pictures: equal row and column) or "centre" (image centres together).
    """

    def __init__(self, how: str = "world") -> None:
        self.how = how

    def missing(self) -> str | None:
        return None

    def settings(self) -> dict[str, Any]:
        return {"how": self.how}

    def __call__(self, request: PairRequest) -> Mapped:
        points = identity_points(request.fixed.shape[1:], device=request.fixed.device)
        return Mapped(transform_points(request.to_moving(self.how), points))
