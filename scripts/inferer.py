# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""PromptReg as a MONAI inferer: the whole method on one screen.

Registers a moving image to a fixed one by corresponding prompts (Huang et al., "Register Anything: Estimating
'Corresponding Prompts' for Segment Anything Model"), with a coarse prior and confidences that the paper leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from .clock import Clock
from .correspond import Method, correspond, pair_up
from .correspondence import fit_transformation
from .errors import InputError, as_bool
from .geometry import folding_percent, warp
from .grid import Grid
from .objectives import Objective
from .prealignment import CHOICES, prealign
from .prepared import PreparedPair
from .prior import Prior
from .prior_starts import PriorStarts
from .prompt_inversion import clamp_to_image
from .prompt_sampling import Sampling, promote_clicks, sample_prompts
from .prompts import GivenPrompt, Prompts, batched
from .registration import RegionPairs, Registration
from .request import PairRequest
from .same_scene import SameScene
from .scene import Scene, View
from .schedule import Fit
from .segmenters.embedding import Embedding
from .segmenters.growing import SliceWise
from .segmenters.metered import Metered
from .segmenters.protocol import Segmenter
from .segmenters.slices import normal_axis
from .segmenters.slicewise import SliceWiseSegmenter
from .transformations import Transformation
from .working import WorkingPair


class PromptRegInferer(Inferer):
    """Registers one pair per call.

    Args:
        sampling: how prompts are sampled when none are given.
        method: settings of the correspondence.
        prior_objective, prior_fit: the coarse prior, a fit without region pairs.
        prior_starts: where else it may start in images that "auto" prealigns; None: nowhere (paper).
        same_scene: the rival hypothesis for pictures, that both show one scene; None leaves it out (paper).
        slices: how a 2-D model sees volumes.
        objective, fit: the final fit.
        start: "prior" (the final fit starts at the coarse prior) or "identity" (paper).
        prealignment: how the images lie before anything is fitted: "auto", "world", "centre" or "features".
        voxels: of an image at most while it is worked on (see `working`).
        seed: of every random draw.
        progress: show a progress bar on standard error.
    """

    def __init__(
        self,
        sampling: Sampling,
        method: Method,
        prior_objective: Objective,
        prior_fit: Fit,
        objective: Objective,
        fit: Fit,
        prior_starts: PriorStarts | None = None,
        same_scene: SameScene | None = None,
        slices: SliceWise | None = None,
        *,
        start: str = "prior",
        prealignment: str = "auto",
        voxels: int = 2_500_000,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if start not in ("prior", "identity"):
            raise InputError(f"start: unknown '{start}', expected 'prior' or 'identity'")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError(f"seed: {seed!r} is no whole number from 0 on")
        self.sampling, self.method, self.seed = sampling, method, seed
        self.prior_objective, self.prior_fit = prior_objective, prior_fit
        self.objective, self.fit, self.start = objective, fit, start
        self.prior_starts, self.same_scene, self.slices = prior_starts, same_scene, slices or SliceWise()
        if prealignment not in CHOICES:
            raise InputError(f"prealignment: unknown '{prealignment}', expected one of {list(CHOICES)}")
        self.prealignment, self.progress = prealignment, as_bool(progress, "progress")
        if not isinstance(voxels, int) or isinstance(voxels, bool) or voxels < 1000:
            raise InputError(f"working_voxels: {voxels!r} is no whole number from 1000 on")
        self.voxels = voxels
        self._check_terms((2, 3))

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """MONAI's call: `inputs` is the fixed image `[1, C, *S]` whose `meta["request"]` holds the moving image and
        prompts.

        Returns:
            `[1, 1, *S]` map of the fixed regions (0 background, k for pair k); `meta["registration"]` has the rest.
        """
        if not isinstance(inputs, MetaTensor) or "request" not in inputs.meta or len(inputs) != 1:
            raise InputError("image: carries no request; preprocessing must hold `ReadPaird`, and the batch one pair")
        request: PairRequest = inputs.meta["request"]
        registration = self.register(request, network)
        regions = registration.pairs.fixed_regions * registration.pairs.found.reshape(-1, *[1] * (inputs.ndim - 2))
        background = torch.full_like(registration.fixed[:1], 0.5)
        pred = torch.cat([background, regions]).argmax(0)[None, None].to(torch.float32)
        return MetaTensor(pred, meta={**inputs.meta, "registration": registration})

    @torch.no_grad()
    def register(self, request: PairRequest, network: Segmenter) -> Registration:
        """Register a pair; see `Registration` for what comes back."""
        self.check(request, network)
        generator = torch.Generator().manual_seed(self.seed)
        with Clock(self.progress) as clock:
            pair = self.prepare(request, network, clock)
            request, segmenter, moving, to_moving = pair.request, pair.segmenter, pair.moving, pair.to_moving
            with clock("prompts on the moving image"):
                given = request.prompts or sample_prompts(
                    segmenter, moving, request.moving, self.sampling, generator, request.moving_label
                )
                prompts = understood(segmenter, moving, given, self.sampling)
            with clock("corresponding prompts"):
                found = correspond(
                    segmenter, request.moving, moving, pair.fixed, prompts, pair.prior, self.method, generator
                )
                pairs = pair_up(found, prompts, given, to_moving, pair.fixed.spacing, self.method.trust)
            with clock("dense correspondence"):
                fitted = self.fitted(pair, pairs)
        return self.registration(pair, with_clicks(pairs, given, fitted), fitted, clock.seconds)

    @torch.no_grad()
    def prepare(self, request: PairRequest, network: Segmenter, clock: Clock) -> PreparedPair:
        """Everything that needs no prompt: both images encoded, the coarse prior, one scene or two."""
        metered = Metered(network)
        segmenter = self._for_image(metered, request)
        with clock("encode both images"):
            affines = [request.fixed_info.affine, request.moving_info.affine]
            fixed, moving = segmenter.encode([request.fixed, request.moving], [a.float() for a in affines])
            working = WorkingPair.of(request.on(fixed.features.device), self.voxels)
            fixed, moving = working.embedding(fixed, "fixed"), working.embedding(moving, "moving")
            request = working.request
            grid = Grid(tuple(request.fixed.shape[1:]), request.fixed_info.spacing)
        with clock("coarse prior"):
            scene = Scene(View.plain(request.fixed, fixed), View.plain(request.moving, moving))
            to_moving, prealigned = prealign(self.prealignment, request, scene)
            how = scene, grid, to_moving, self.prior_objective, self.prior_fit
            if self.prior_starts and self.prealignment == "auto":
                coarse, prealigned["start"] = self.prior_starts.fit(*how)
            else:
                coarse = fit_transformation(*how)
        with clock("one scene or two"):
            edges: tuple[Tensor, Tensor] | None = None
            evidence: dict[str, float] = {}
            if self.same_scene and request.fixed.ndim == 3:  # a picture
                edges, evidence = self.same_scene.propose(
                    scene, grid, to_moving, lambda: self._dense(scene, grid, to_moving, coarse)(grid)
                )
            ddf, inverse = edges or (coarse(grid), coarse.inverse(grid))
            prior = Prior(ddf, inverse, to_moving)
        return PreparedPair(
            working, metered, segmenter, grid, fixed, moving, scene, prealigned, coarse, edges, evidence, prior
        )

    @torch.no_grad()
    def fitted(self, pair: PreparedPair, pairs: RegionPairs) -> Prior:
        """The dense map that region pairs lead to."""
        if pair.edges is not None:  # more precise than regions
            ddf, inverse = pair.edges
            return Prior(ddf, inverse, pair.to_moving)
        scene = replace(
            pair.scene,
            fixed=replace(pair.scene.fixed, regions=pairs.fixed_regions),
            moving=replace(pair.scene.moving, regions=pairs.moving_regions),
            confidence=pairs.confidence,
        )
        fit = self._dense(scene, pair.grid, pair.to_moving, pair.coarse)
        return Prior(fit(pair.grid), fit.inverse(pair.grid), pair.to_moving)

    def _dense(self, scene: Scene, grid: Grid, to_moving: Tensor, coarse: Transformation) -> Transformation:
        """The final fit, from the coarse prior or from the identity."""
        initial = coarse if self.start == "prior" else None
        return fit_transformation(scene, grid, to_moving, self.objective, self.fit, initial=initial)

    def registration(
        self, pair: PreparedPair, pairs: RegionPairs, fitted: Prior, seconds: dict[str, float]
    ) -> Registration:
        """What a pair's map and region pairs amount to on the images' own grids, with the cost and the settings."""
        request, pairs, fitted = pair.working.own, pair.working.told(pairs), pair.working.map(fitted)
        return Registration(
            fixed=request.fixed,
            moving=request.moving,
            moved=warp(request.moving, fitted.ddf, fitted.to_moving),
            fixed_info=request.fixed_info,
            moving_info=request.moving_info,
            ddf=fitted.ddf,
            inverse=fitted.inverse,
            to_moving=fitted.to_moving,
            pairs=pairs,
            folding_percent=folding_percent(fitted.ddf),
            seconds=seconds,
            counts=dict(pair.metered.counts),
            settings=self.settings(pair.segmenter),
            hypothesis="features" if pair.edges is None else "one scene",
            evidence=pair.evidence,
            prealigned=pair.prealigned,
        )

    def _for_image(self, network: Segmenter, request: PairRequest) -> Segmenter:
        """The model for images of these dimensions: a 2-D model sees volumes slice by slice."""
        if request.fixed.ndim - 1 == network.spec.dims:
            return network
        affines = [request.fixed_info.affine, request.moving_info.affine]
        shapes = [request.fixed.shape[1:], request.moving.shape[1:]]
        return SliceWiseSegmenter(network, self.slices, normal_axis(self.slices.plane, affines, shapes))

    def check(self, request: PairRequest, network: Segmenter) -> None:
        """Raise `InputError`, before any work, for a pair that this model or way of sampling cannot take."""
        dims = request.fixed.ndim - 1
        self._check_terms([dims])
        if dims < network.spec.dims:
            raise InputError(
                f"fixed_image, moving_image: have {dims} axes, but {network.spec.name} segments images of "
                f"{network.spec.dims}; give {network.spec.dims}-D images"
            )
        if request.prompts is None:
            self.sampling.check_label(request.moving_label)
            if self.sampling.how == "stable" and "box" not in network.spec.trained_with:
                raise InputError(
                    f"sampling: 'stable' asks with boxes, which {network.spec.name} does not know; use 'grid'"
                )

    def _check_terms(self, dims: Sequence[int]) -> None:
        pose = self.prior_starts.pose if self.prior_starts else None
        prior = [*self.prior_fit.levels, *(pose.levels if pose else [])]
        for of, levels in ((self.prior_objective, prior), (self.objective, self.fit.levels)):
            of.check([level.controls for level in levels if any(level.of(d) for d in dims)], dims)

    def settings(self, network: Segmenter) -> dict[str, Any]:
        """What this inferer does, JSON-able, for `run.json`."""
        return {
            "segmenter": network.describe(),
            "seed": self.seed,
            "start": self.start,
            "prealignment": self.prealignment,
            "voxels": self.voxels,
            "sampling": asdict(self.sampling),
            "method": asdict(self.method),
            "prior": {
                "objective": self.prior_objective.terms,
                "fit": asdict(self.prior_fit),
                "starts": None if self.prior_starts is None else asdict(self.prior_starts),
            },
            "objective": self.objective.terms,
            "fit": asdict(self.fit),
            "same_scene": None if self.same_scene is None else self.same_scene.settings(),
            "slices": asdict(self.slices),
        }


def understood(segmenter: Segmenter, moving: Embedding, given: list[GivenPrompt], sampling: Sampling) -> Prompts:
    """Given prompts as the model understands them.

    Clicks stay what they are if the model was trained with them, else they become boxes; boxes become a little larger
    (`Sampling.margin`), or clicks at their centres, whichever the model knows. A mixture becomes boxes where it can.
    """
    batch, known = batched(given), segmenter.spec.trained_with
    if batch is not None and batch.kind == "point" and "point" in known:
        return batch.to(moving.features.device)
    if "box" in known:
        return promote_clicks(segmenter, moving, given, sampling)
    centres = [p if p.labels is not None else GivenPrompt(p.id, p.points.mean(0)[None], torch.ones(1)) for p in given]
    clicks = batched(centres)
    if "point" not in known or clicks is None:
        raise InputError(f"prompts: {segmenter.spec.name} knows {sorted(known)} only; clicks and boxes cannot be used")
    return clicks.to(moving.features.device)


def with_clicks(pairs: RegionPairs, given: list[GivenPrompt], found: Prior) -> RegionPairs:
    """Prompts as they were given: clicks that were promoted to boxes become clicks again.

    The counterpart of such a click is where the fitted map carries it, moved inside the image if need be; the region on
    the fixed image is that of the box found by inversion.
    """
    clicks = batched(given)
    if clicks is None:
        return pairs
    clicks = clicks.to(found.ddf.device)
    if clicks.kind == pairs.moving_prompts.kind:
        return replace(pairs, moving_prompts=clicks)
    counterparts = clamp_to_image(found.carry_prompts(clicks), tuple(found.ddf.shape[1:]))
    return replace(pairs, moving_prompts=clicks, fixed_prompts=counterparts)
