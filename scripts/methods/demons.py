# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SimpleITK: affine by mutual information, then diffeomorphic demons.

Vercauteren et al., Diffeomorphic demons, NeuroImage 2009; https://simpleitk.org (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import SimpleITK as sitk
import torch

from ..request import PairRequest
from .itk_space import itk_pair, points_from_displacement, version_of, warped_on_fixed, workroom
from .protocol import Mapped


@dataclass(frozen=True)
class Demons:
    """Affine and demons registration.

    Attributes:
        bins: of the mutual information's histogram.
        sampling: share of voxels the affine step looks at.
        affine_iterations: at most, per level.
        shrink: size of the affine step's levels, coarsest first, as a factor.
        smoothing: their Gaussian blur, voxels.
        iterations: of demons.
        sigma: Gaussian blur of the demons field after each iteration, voxels.
        histogram_levels, match_points: of the histogram matching before demons, which compares intensities as they are.
        seed: of the sampling.
    """

    bins: int = 50
    sampling: float = 0.2
    affine_iterations: int = 100
    shrink: tuple[int, ...] = (4, 2, 1)
    smoothing: tuple[float, ...] = (2.0, 1.0, 0.0)
    iterations: int = 100
    sigma: float = 1.5
    histogram_levels: int = 1024
    match_points: int = 7
    seed: int = 1

    def missing(self) -> str | None:
        return None

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "version": version_of("simpleitk")}

    def __call__(self, request: PairRequest) -> Mapped:
        fixed, moving = itk_pair(request)
        with workroom("SimpleITK demons"):
            affine = self._affine(fixed, moving)
            near = sitk.Resample(moving, fixed, affine, sitk.sitkLinear)
            near = sitk.HistogramMatching(near, fixed, self.histogram_levels, self.match_points, True)
            demons = sitk.DiffeomorphicDemonsRegistrationFilter()
            demons.SetNumberOfThreads(torch.get_num_threads())
            demons.SetNumberOfIterations(self.iterations)
            demons.SetStandardDeviations(self.sigma)
            local = sitk.DisplacementFieldTransform(sitk.Cast(demons.Execute(fixed, near), sitk.sitkVectorFloat64))
            whole = sitk.CompositeTransform([affine, local])  # the last one acts first
            field = sitk.TransformToDisplacementField(
                whole,
                sitk.sitkVectorFloat64,
                fixed.GetSize(),
                fixed.GetOrigin(),
                fixed.GetSpacing(),
                fixed.GetDirection(),
            )
            warped = sitk.Resample(moving, fixed, whole, sitk.sitkLinear)
        points = points_from_displacement(sitk.GetArrayFromImage(field), request)
        return Mapped(points, warped_on_fixed(sitk.GetArrayFromImage(warped), request))

    def _affine(self, fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(torch.get_num_threads())
        method.SetMetricAsMattesMutualInformation(self.bins)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(self.sampling, self.seed)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescent(learningRate=1.0, numberOfIterations=self.affine_iterations)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(list(self.shrink))
        method.SetSmoothingSigmasPerLevel(list(self.smoothing))
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        centred = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.AffineTransform(fixed.GetDimension()), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        method.SetInitialTransform(centred, inPlace=False)
        return method.Execute(fixed, moving)
