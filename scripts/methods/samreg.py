# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAMReg: segment BOTH images without being asked for anything, then match the regions. The predecessor of PromptReg.

After Huang et al., "One registration is worth two segmentations" (MICCAI 2024, arXiv:2405.10879), written anew. The
idea is the paper's: prompts all over each image, filtered masks, one prototype a mask (the mean of the image embedding
over it), one-to-one pairs by cosine above a threshold, a fit to the pairs, all alike.

"Theirs" below is what its public repository (sqhuang0103/SAMReg) has for SAM; the numbers in the paper's text were not
at hand. 1024 clicks (SAM's grid); predicted quality and stability from 0.90 on (stability 0.80 for MedSAM); 200 to 7000
pixels, which is 0.5 to 17.5 % of its 200 x 200 slices; a mask of which 90 % lies in a larger one goes; cosines of
uncentred prototypes above 0.8, paired greedily from the highest.

Ours is the rest. LiteMedSAM knows boxes only, so a click of the grid becomes boxes of a few sizes, each drawn anew
around the region that it gives: 16 clicks of 3 sizes, decoded twice, are 96 decodes an image. It rates itself lower
than SAM does (medians about 0.7), and its uncentred cosines are high whatever they compare (median about 0.75): limits
are lower, parts are kept, prototypes are centred and must choose each other. These defaults had the best mean of 21
sets of values on the development pairs; theirs are `centre: false, mutual: false, threshold: 0.8`. The best assignment
replaces the greedy one. The fit is PromptReg's, to soft regions.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ..correspondence import fit_transformation
from ..errors import InputError, as_bool
from ..geometry import identity_points, transform_points
from ..grid import Grid
from ..objectives import Objective
from ..prompt_inversion import clamp_to_image, scaled_boxes
from ..prompt_sampling import Sampling, boxes_of, sample_prompts, sharpness
from ..prompts import Prompts, batched
from ..prototypes import centred_features, prototype, region_weights
from ..request import PairRequest
from ..scene import Scene, View
from ..schedule import Fit
from ..segmenters.embedding import Embedding
from ..segmenters.protocol import Decoded, Segmenter
from .protocol import Mapped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filter:
    """Which masks count as regions.

    Attributes:
        quality: least overlap with the truth as the model predicts it (theirs: 0.9).
        stability: least IoU of the masks at a logit of +1 and -1 (theirs: 0.9, MedSAM 0.8).
        area: smallest and largest share of the image (theirs: 0.005 and 0.175).
        overlap: of two masks with a larger IoU the worse one goes (SAM: 0.7, of their boxes).
        contained: a mask of which more than this share lies in a larger one goes (theirs: 0.9); 1 keeps all parts.
    """

    quality: float = 0.6
    stability: float = 0.5
    area: tuple[float, float] = (0.005, 0.5)
    overlap: float = 0.7
    contained: float = 1.0

    def kept(self, masks: Tensor, quality: Tensor, stability: Tensor) -> list[int]:
        """Indices of the masks `[N, *S]` (bool) that stay, best first; `quality` and `stability` are `[N]`."""
        flat = masks.flatten(1).float()
        sizes = flat.sum(1)
        common = flat @ flat.T
        share = sizes / flat.shape[1]
        good = (quality >= self.quality) & (stability >= self.stability)
        good &= (share >= self.area[0]) & (share <= self.area[1])
        unions = (sizes[:, None] + sizes - common).clamp(min=1)
        distinct: list[int] = []
        for k in (quality * stability).argsort(descending=True, stable=True).tolist():
            if good[k] and all(common[k, other] <= self.overlap * unions[k, other] for other in distinct):
                distinct.append(k)
        return [
            k
            for k in distinct
            if not any(sizes[other] > sizes[k] and common[k, other] > self.contained * sizes[k] for other in distinct)
        ]


@dataclass(frozen=True)
class Regions:
    """What was found on one image: soft regions `[N, *S]` on its own voxels, prototypes `[N, C]`."""

    probability: Tensor
    prototypes: Tensor

    def __len__(self) -> int:
        return len(self.prototypes)


def match(moving: Tensor, fixed: Tensor, threshold: float, *, mutual: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """One-to-one pairs of prototypes whose cosine is above a threshold, the sum of what is above it being largest.

    Args:
        moving: `[N, C]`; fixed: `[M, C]`.
        threshold: a cosine.
        mutual: both must be the other's nearest.

    Returns:
        rows of `moving` and of `fixed` that belong together, `[K]` each, and their cosines `[K]`; K may be 0.
    """
    cosine = F.normalize(moving, dim=1) @ F.normalize(fixed, dim=1).T
    gain = (cosine - threshold).clamp(min=0)
    if mutual and gain.numel():
        gain = gain * (cosine == cosine.amax(0)) * (cosine == cosine.amax(1, keepdim=True))
    rows, columns = (torch.as_tensor(i) for i in linear_sum_assignment(gain.cpu().numpy(), maximize=True))
    above = gain.cpu()[rows, columns] > 0
    rows, columns = rows[above].to(moving.device), columns[above].to(moving.device)
    return rows, columns, cosine[rows, columns]


class SAMReg:
    """Regions of both images, matched by prototype, and the dense fit to the pairs.

    Args:
        network: the promptable model.
        objective, fit: of the dense fit; regions alone (configs/objectives/roi.yaml) are SAMReg's.
        sampling: where both images are prompted: "grid" (theirs), "uniform", or "stable", our own way, for both.
            `click_sizes` are the sides of the boxes around a click, for a model that knows only boxes.
        filter: which masks count as regions.
        threshold: cosine of prototypes above which regions may pair (theirs: 0.8).
        centre: subtract each image's mean feature first (theirs: false).
        mutual: pair only regions that are each other's nearest (theirs: false).
        prealignment: how fixed and moving voxels are related before the fit: "world" or "centre".
        seed: of the sampling, where it draws.
    """

    def __init__(
        self,
        network: Segmenter,
        objective: Objective,
        fit: Fit,
        *,
        sampling: Sampling | None = None,
        filter: Filter | None = None,
        threshold: float = 0.7,
        centre: bool = True,
        mutual: bool = True,
        prealignment: str = "world",
        seed: int = 0,
    ) -> None:
        self.network, self.objective, self.fit = network, objective, fit
        self.sampling = sampling or Sampling(how="grid", count=16, click_sizes=(0.12, 0.24, 0.45))
        self.filter, self.threshold = filter or Filter(), threshold
        self.centre, self.mutual = as_bool(centre, "samreg: centre"), as_bool(mutual, "samreg: mutual")
        self.prealignment, self.seed = prealignment, seed
        if self.sampling.how not in ("grid", "uniform", "stable"):
            raise InputError(f"samreg: sampling is '{self.sampling.how}', expected 'grid', 'uniform' or 'stable'")
        if not -1 <= threshold < 1:
            raise InputError(f"samreg: threshold is {threshold}, expected a cosine, from -1 to below 1")
        objective.check([level.controls for level in fit.levels])

    def missing(self) -> str | None:
        return None

    def settings(self) -> dict[str, Any]:
        return {
            "segmenter": self.network.describe(),
            "sampling": asdict(self.sampling),
            "filter": asdict(self.filter),
            "threshold": self.threshold,
            "centre": self.centre,
            "mutual": self.mutual,
            "objective": self.objective.terms,
            "fit": asdict(self.fit),
            "prealignment": self.prealignment,
            "seed": self.seed,
        }

    @torch.no_grad()
    def __call__(self, request: PairRequest) -> Mapped:
        """Register a pair.

        Raises:
            InputError: images of other dimensions than the model's.
            RuntimeError: not one pair of regions was found.
        """
        scene = self.paired(request)
        device = scene.fixed.image.device
        grid = Grid(tuple(request.fixed.shape[1:]), request.fixed_info.spacing)
        to_moving = request.to_moving(self.prealignment).to(device)
        ddf = fit_transformation(scene, grid, to_moving, self.objective, self.fit)(grid)
        points = transform_points(to_moving, identity_points(grid.shape, device=device) + ddf)
        return Mapped(points.to(request.fixed.device))

    @torch.no_grad()
    def paired(self, request: PairRequest) -> Scene:
        """Both images with their region pairs, each trusted alike; raises as the call does."""
        dims, spec = request.fixed.ndim - 1, self.network.spec
        if dims != spec.dims:
            raise InputError(f"samreg: the images have {dims} axes, but {spec.name} segments images of {spec.dims}")
        fixed, moving = self.network.encode([request.fixed, request.moving])
        request = request.on(fixed.features.device)
        generator = torch.Generator().manual_seed(self.seed)
        on_moving, on_fixed = (
            self.regions(embedding, image, generator)
            for embedding, image in ((moving, request.moving), (fixed, request.fixed))
        )
        m, f, cosine = match(on_moving.prototypes, on_fixed.prototypes, self.threshold, mutual=self.mutual)
        logger.info("samreg: %d pairs of %d moving and %d fixed regions", len(m), len(on_moving), len(on_fixed))
        if not len(m):
            raise RuntimeError(
                f"samreg: no pair of regions with a cosine above {self.threshold:g} among {len(on_moving)} moving and "
                f"{len(on_fixed)} fixed regions; lower `threshold`, or `quality` and `stability` of the filter"
            )
        return Scene(
            replace(View.plain(request.fixed, fixed), regions=on_fixed.probability[f]),
            replace(View.plain(request.moving, moving), regions=on_moving.probability[m]),
            torch.ones_like(cosine),
        )

    def regions(self, embedding: Embedding, image: Tensor, generator: torch.Generator) -> Regions:
        """Regions of one image `[C, *S]` that pass the filter, best first."""
        decoded = self._everything(embedding, image, generator)
        probability = embedding.to_image(decoded.logits).sigmoid()
        kept = self.filter.kept(probability > 0.5, decoded.quality, sharpness(decoded.logits))
        weights = region_weights(embedding, decoded.logits[kept].sigmoid())
        return Regions(probability[kept], prototype(centred_features(embedding, centre=self.centre), weights))

    def _everything(self, embedding: Embedding, image: Tensor, generator: torch.Generator) -> Decoded:
        """Masks of prompts all over the image, unfiltered."""
        given = sample_prompts(self.network, embedding, image, self.sampling, generator)
        prompts = batched(given)
        assert prompts is not None  # a way of sampling gives prompts of one kind
        prompts = prompts.to(embedding.features.device)
        if prompts.kind not in self.network.spec.trained_with:
            halves = [0.5 * side * max(embedding.image_shape) for side in self.sampling.click_sizes]
            centres = prompts.coordinates
            boxes = Prompts(torch.cat([torch.cat([centres - half, centres + half], dim=1) for half in halves]))
            boxes = clamp_to_image(boxes, embedding.image_shape)
            first = embedding.to_image(self.network.decode(embedding, boxes).logits) > 0
            prompts = boxes_of(first, boxes, self.sampling.margin, embedding.image_shape)
        elif prompts.kind == "box":  # sampled tight
            larger = scaled_boxes(prompts.coordinates, self.sampling.margin)
            prompts = clamp_to_image(prompts.at(larger), embedding.image_shape)
        return self.network.decode(embedding, prompts)
