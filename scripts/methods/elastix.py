# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""elastix: affine, then B-splines, by mutual information and stochastic gradient descent.

Klein et al., elastix: a toolbox for intensity-based medical image registration, IEEE TMI 2010;
https://github.com/InsightSoftwareConsortium/ITKElastix (Apache-2.0). Defaults are its default parameter maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Elastix:
    """elastix through ITKElastix.

    Attributes:
        maps: names of default parameter maps, run one after another: "translation", "rigid", "affine", "bspline",
            "spline", "groupwise".
        initial: "world" starts with the headers, "centre" with the image centres together.
        resolutions: levels of each map.
        iterations: at each level.
        samples: voxels looked at in each iteration.
        grid_spacing: of the B-splines at the last level, mm (pixels of pictures).
        seed: of the sampling.
        parameters: any other parameters of elastix, set in every map, e.g. {"ASGDParameterEstimationMethod":
            ["DisplacementDistribution"]}.
    """

    maps: Sequence[str] = ("affine", "bspline")
    initial: str = "world"
    resolutions: int = 4
    iterations: int = 256
    samples: int = 2048
    grid_spacing: float = 10.0
    seed: int = 121212
    parameters: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if self.initial not in ("world", "centre"):
            raise InputError(f"initial: unknown '{self.initial}', expected 'world' or 'centre'")

    def missing(self) -> str | None:
        return missing_package("itk-elastix", "itk-elastix==0.25.4", "itk", "itk.ElastixPython")

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "version": version_of("itk-elastix")}

    def __call__(self, request: PairRequest) -> Mapped:
        pair = itk_pair(request)
        with workroom("elastix") as folder:
            itk = import_module("itk")
            fixed, moving = (self._image(itk, image) for image in pair)
            result, transform = itk.elastix_registration_method(
                fixed,
                moving,
                parameter_object=self._parameters(itk),
                number_of_threads=torch.get_num_threads(),
                log_to_console=True,
            )
            # It also writes the field, where it is not told otherwise into the working directory.
            field = itk.transformix_deformation_field(moving, transform, output_directory=str(folder))
            arrays = itk.array_from_image(field), itk.array_from_image(result)
        return Mapped(points_from_displacement(arrays[0], request), warped_on_fixed(arrays[1], request))

    def _parameters(self, itk: Any) -> Any:
        parameters = itk.ParameterObject.New()
        for name in self.maps:
            chosen = parameters.GetDefaultParameterMap(name, self.resolutions, self.grid_spacing)
            chosen["MaximumNumberOfIterations"] = [str(self.iterations)]
            chosen["NumberOfSpatialSamples"] = [str(self.samples)]
            chosen["RandomSeed"] = [str(self.seed)]
            # Decides nothing but the resampled image, which is to be compared with a linear one.
            chosen["ResampleInterpolator"] = ["FinalLinearInterpolator"]
            if self.initial == "centre":
                chosen["AutomaticTransformInitialization"] = ["true"]
                chosen["AutomaticTransformInitializationMethod"] = ["GeometricalCenter"]
            for key, values in (self.parameters or {}).items():
                chosen[key] = [str(value) for value in values]
            parameters.AddParameterMap(chosen)
        return parameters

    def _image(self, itk: Any, image: sitk.Image) -> Any:
        spacing, origin, direction = geometry_of(image)
        result = itk.image_from_array(np.ascontiguousarray(sitk.GetArrayFromImage(image)))
        result.SetSpacing(spacing)
        result.SetOrigin(origin)
        result.SetDirection(itk.matrix_from_array(direction))
        return result
