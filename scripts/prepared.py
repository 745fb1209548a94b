# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A pair before any prompt is asked: both images encoded, and where things are expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .grid import Grid
from .prior import Prior
from .prototypes import Features
from .request import PairRequest
from .scene import Scene
from .segmenters.embedding import Embedding
from .segmenters.metered import Metered
from .segmenters.protocol import Segmenter
from .transformations import Transformation
from .working import WorkingPair


@dataclass(frozen=True)
class PreparedPair:
    """What all prompts of a pair share.

    Attributes:
        working: the pair and the grids it is worked on; all of the following is in their voxels.
        metered: the model, counting its work; segmenter: the same for images of these dimensions.
        grid: the fixed image's.
        fixed, moving: embeddings.
        scene: both images as objectives see them, without regions.
        prealigned: what the images were placed by (see `prealignment`).
        coarse: the fitted prior.
        edges: `[D, *S]` map and inverse of "one scene", where that was found; else None.
        evidence: for or against one scene.
        prior: where things are expected, of whichever hypothesis leads.
        known: features, once somebody asked for them.
    """

    working: WorkingPair
    metered: Metered
    segmenter: Segmenter
    grid: Grid
    fixed: Embedding
    moving: Embedding
    scene: Scene
    prealigned: dict[str, Any]
    coarse: Transformation
    edges: tuple[Tensor, Tensor] | None
    evidence: dict[str, float]
    prior: Prior
    known: dict[bool, dict[str, Features]] = field(default_factory=dict, compare=False)

    def features(self, *, centre: bool) -> dict[str, Features]:
        """Those of both images, "moving" and "fixed", kept in single precision."""
        if centre not in self.known:
            sides = {"moving": self.moving, "fixed": self.fixed}
            self.known[centre] = {side: Features.of(embedding, centre=centre) for side, embedding in sides.items()}
        return self.known[centre]

    @property
    def request(self) -> PairRequest:
        """The pair on its working grids."""
        return self.working.request

    @property
    def to_moving(self) -> Tensor:
        """Matrix `[D+1, D+1]` from fixed to moving voxels before the fit."""
        return self.prior.to_moving
