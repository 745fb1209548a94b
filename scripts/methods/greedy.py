# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""greedy: affine, then greedy diffeomorphic registration, by local cross-correlation.

Yushkevich et al., Fast automatic segmentation of hippocampal subfields and medial temporal lobe subregions in 3 Tesla
and 7 Tesla T2-weighted MRI, Alzheimer's & Dementia 2016; https://github.com/pyushkevich/greedy (Apache-2.0).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import SimpleITK as sitk
import torch

from ..errors import InputError
from ..request import PairRequest
from .itk_space import itk_pair, missing_package, points_from_displacement, version_of, warped_on_fixed, workroom
from .protocol import Mapped

INITIAL = {"world": "-ia-identity", "centre": "-ia-image-centers"}
METRICS = ("NCC", "SSD", "MI", "NMI")
MIN_COARSE = 4  # voxels along each axis that greedy's smoothing filter needs on the coarsest level


@dataclass(frozen=True)
class Greedy:
    """greedy through its Python interface.

    Attributes:
        affine, deformable: which stages run, in this order.
        initial: "centre" starts with the image centres together, "world" with the headers.
        metric: "NCC" (local), "SSD", "MI" or "NMI".
        radius: of NCC, voxels; None: 2, in 3-D 2x2x1.
        iterations: of both stages, coarsest level first. Thin images get as many levels as leave 4 voxels on the
            coarsest: the first ones of these.
        sigmas: Gaussian blur of the update and of the whole field, voxels; None leaves them to greedy. Its help gives
            its own, rounded, as 1.732 and 0.7071; so written they already move the field by pixels in places.
        step: step size of the deformable stage, voxels.
        dof: freedom of the affine stage: 6 rigid, 7 with scale, 12 affine.
        warp_precision: to which the field is rounded, voxels; 0 keeps it as it is.
        seed: of sampling and noise; 0 differs from run to run.
    """

    affine: bool = True
    deformable: bool = True
    initial: str = "centre"
    metric: str = "NCC"
    radius: Sequence[int] | None = None
    iterations: Sequence[int] = (100, 50, 10)
    sigmas: tuple[float, float] | None = None
    step: float = 1.0
    dof: int = 12
    warp_precision: float = 0.1
    seed: int = 1

    def __post_init__(self) -> None:
        if self.initial not in INITIAL:
            raise InputError(f"initial: unknown '{self.initial}', expected one of {', '.join(INITIAL)}")
        if self.metric not in METRICS:  # greedy runs on with another one and says nothing
            raise InputError(f"metric: unknown '{self.metric}', expected one of {', '.join(METRICS)}")
        if not (self.affine or self.deformable):
            raise InputError("affine, deformable: both are false, so nothing would be done; set one to true")
        if not self.affine and self.initial != "world":
            raise InputError("initial: only the affine stage can start elsewhere than 'world'; give 'world'")

    def missing(self) -> str | None:
        return missing_package("picsl_greedy", "picsl_greedy==1.4.0.3", "picsl_greedy")

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "version": version_of("picsl_greedy")}

    def __call__(self, request: PairRequest) -> Mapped:
        fixed, moving = itk_pair(request)
        with workroom("greedy"):
            module = import_module("picsl_greedy")
            greedy = module.Greedy2D() if fixed.GetDimension() == 2 else module.Greedy3D()
            # greedy's own default is what stdout was when it was imported: closed by now, which would end the process.
            printed = {"out": sys.stdout, "err": sys.stdout}
            common = self._common(fixed, moving)
            chain = []  # of transforms as greedy wants them: the last one acts first on the moving image
            if self.affine:
                options = f"{INITIAL[self.initial]} -dof {self.dof}"
                greedy.execute(f"-a {common} {options} -o affine", affine=None, fixed=fixed, moving=moving, **printed)
                chain.append("affine")
            if self.deformable:
                blur = f"-s {self.sigmas[0]}vox {self.sigmas[1]}vox" if self.sigmas else ""
                start = "-it affine" if self.affine else ""
                options = f"{blur} -e {self.step} -wp {self.warp_precision}"
                greedy.execute(f"{common} {start} {options} -o warp", warp=None, fixed=fixed, moving=moving, **printed)
                chain.insert(0, "warp")
            threads = f"-threads {torch.get_num_threads()}"
            # The images are handed over anew: NCC has put noise on the copies that greedy keeps.
            greedy.execute(
                f"{threads} -rf fixed -ri LINEAR -rt float -rm moving warped -rc whole -wp 0 -r {' '.join(chain)}",
                warped=None,
                whole=None,
                fixed=fixed,
                moving=moving,
                **printed,
            )
            field, warped = (sitk.GetArrayFromImage(greedy[name]) for name in ("whole", "warped"))
        return Mapped(points_from_displacement(field, request), warped_on_fixed(warped, request))

    def _common(self, fixed: sitk.Image, moving: sitk.Image) -> str:
        dims = fixed.GetDimension()
        smallest = min(*fixed.GetSize(), *moving.GetSize())
        levels = max(1, sum(smallest >= MIN_COARSE * 2**level for level in range(len(self.iterations))))
        radius = self.radius or (2, 2, 1)[:dims]
        metric = f"NCC {_times(radius)}" if self.metric == "NCC" else self.metric
        iterations = _times(self.iterations[:levels])
        threads = torch.get_num_threads()
        return f"-i fixed moving -m {metric} -n {iterations} -seed {self.seed} -threads {threads}"


def _times(numbers: Sequence[int]) -> str:
    return "x".join(str(n) for n in numbers)
