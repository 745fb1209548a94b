# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""ANTs: affine by mutual information, then symmetric normalisation (SyN).

Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis 2008;
https://github.com/ANTsX/ANTsPy (Apache-2.0). Defaults are those of `ants.registration`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import SimpleITK as sitk
import torch

from ..errors import InputError
from ..request import PairRequest
from .itk_space import (
    geometry_of,
    itk_pair,
    missing_package,
    points_from_displacement,
    version_of,
    warped_on_fixed,
    workroom,
)
from .protocol import Mapped

INITIAL = {"mass": None, "world": "Identity"}


@dataclass(frozen=True)
class Ants:
    """ANTs through ANTsPy.

    Attributes:
        type_of_transform: "Affine", "SyN" (affine first) or another of `ants.registration`.
        initial: "mass" starts with the centres of mass together, "world" with the headers.
        aff_metric: of the affine step, e.g. "mattes" (mutual information).
        aff_sampling: its number of bins.
        aff_random_sampling_rate: share of voxels it looks at.
        aff_iterations, aff_shrink_factors, aff_smoothing_sigmas: of "Affine", coarsest level first; SyN's own affine
            step has fixed ones.
        syn_metric: "mattes" or "CC" (local cross-correlation), or another of `ants.registration`.
        syn_sampling: bins of "mattes" or radius of "CC", voxels; None: 32 bins; radius 4 in 2-D and 2 in 3-D, where 4
            takes minutes.
        reg_iterations: of SyN, coarsest level first.
        grad_step: of SyN.
        flow_sigma, total_sigma: SyN's blur of the update and of the whole field (variance in voxels).
        seed: of the sampling; repeats exactly with one thread.
    """

    type_of_transform: str = "SyN"
    initial: str = "mass"
    aff_metric: str = "mattes"
    aff_sampling: int = 32
    aff_random_sampling_rate: float = 0.2
    aff_iterations: Sequence[int] = (2100, 1200, 1200, 10)
    aff_shrink_factors: Sequence[int] = (6, 4, 2, 1)
    aff_smoothing_sigmas: Sequence[int] = (3, 2, 1, 0)
    syn_metric: str = "mattes"
    syn_sampling: int | None = None
    reg_iterations: Sequence[int] = (40, 20, 0)
    grad_step: float = 0.2
    flow_sigma: float = 3.0
    total_sigma: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.initial not in INITIAL:
            raise InputError(f"initial: unknown '{self.initial}', expected one of {', '.join(INITIAL)}")

    def missing(self) -> str | None:
        pinned = "--no-deps antspyx==0.6.3 statsmodels==0.15.0 patsy==1.0.3 webcolors==25.10.0"
        return missing_package("antspyx", pinned, "ants", "statsmodels", "patsy")

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "version": version_of("antspyx")}

    def __call__(self, request: PairRequest) -> Mapped:
        pair = itk_pair(request)
        with workroom("ANTs") as folder:
            # Read by ANTs' own ITK when it first counts threads.
            os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(torch.get_num_threads())
            ants = import_module("ants")
            # registration(random_seed=) is ignored; this hands the seed on. on=True would seed numpy and random too.
            import_module("ants.config").set_ants_deterministic(on=False, seed_value=self.seed)
            fixed, moving = (self._image(ants, image) for image in pair)
            result = ants.registration(fixed, moving, outprefix=f"{folder}/", verbose=True, **self._arguments(pair[0]))
            forward = result["fwdtransforms"]
            warped = ants.apply_transforms(fixed, moving, forward, interpolator="linear")
            composite = ants.apply_transforms(fixed, moving, forward, compose=f"{folder}/whole")
            field = sitk.GetArrayFromImage(sitk.ReadImage(composite))
        return Mapped(points_from_displacement(field, request), warped_on_fixed(warped.numpy().T, request))

    def _arguments(self, fixed: sitk.Image) -> dict[str, Any]:
        # ANTsPy tells levels from a single one by the type, which must be a tuple.
        arguments = {
            name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in asdict(self).items()
            if name not in ("initial", "seed", "syn_sampling")
        }
        radius = 4 if fixed.GetDimension() == 2 else 2
        sampling = self.syn_sampling or (radius if self.syn_metric == "CC" else 32)
        return {**arguments, "syn_sampling": sampling, "initial_transform": INITIAL[self.initial]}

    def _image(self, ants: Any, image: sitk.Image) -> Any:
        spacing, origin, direction = geometry_of(image)
        values = sitk.GetArrayFromImage(image).T  # ANTsPy's arrays are [x, y, z]
        return ants.from_numpy(values, origin=origin, spacing=spacing, direction=direction)
