# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The objective that a transformation is fitted to: weighted terms, the paper has one (`roi`), and smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import InputError
from .feature_term import FeatureTerm
from .intensity_terms import LnccTerm, MutualInformationTerm, StructureTerm
from .places import Places
from .scene import Scene
from .terms import Loss, RoiTerm, Term
from .weighing import weight_for

TERMS: dict[str, type[Term]] = {
    "roi": RoiTerm,
    "features": FeatureTerm,
    "lncc": LnccTerm,
    "structure": StructureTerm,
    "mutual_information": MutualInformationTerm,
}


@dataclass
class Objective:
    """Weighted sum of terms by name, e.g. `[{term: roi, weight: 1.0}, {term: lncc, weight: 0.3, kernel: 9}]`.

    Raises:
        InputError: for an unknown term or an option that a term does not have.
    """

    terms: list[dict]
    _terms: list[Term] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.terms or not all(isinstance(entry, dict) for entry in self.terms):
            raise InputError(
                f"objective: terms are {self.terms!r}, expected a list such as [{{'term': 'roi', 'weight': 1.0}}]"
            )
        self._terms = [self._build(dict(entry)) for entry in self.terms]

    @staticmethod
    def _build(entry: dict) -> Term:
        name = entry.pop("term", None)
        if name not in TERMS:
            raise InputError(f"objective: unknown term '{name}', expected one of {sorted(TERMS)}")
        try:
            return TERMS[name](**entry)
        except TypeError as error:
            raise InputError(f"objective: term '{name}' has no such option: {error}") from error

    @property
    def names(self) -> list[str]:
        """Names of the terms, for reports."""
        return [entry["term"] for entry in self.terms]

    def check(self, levels: list[int], dims: Sequence[int] = (2, 3)) -> None:
        """Raise `InputError` when no term takes part in one of the levels, given by their control intervals, in images
        of any of these dimensions.
        """
        for controls in levels:
            if not any(term.takes_part(controls, dims) for term in self._terms):
                raise InputError(f"objective: no term takes part in the level with {controls} control intervals")

    def prepare(self, scene: Scene, points: Tensor, controls: int = 0) -> Loss:
        """The weighted sum on one sampling grid at a level with so many control intervals; see `Term.prepare`."""
        dims = len(points)
        losses = [
            (weight_for(term.weight, dims), term.prepare(scene, points))
            for term in self._terms
            if term.takes_part(controls, [dims])
        ]

        def total(moved: Places) -> Tensor:
            return torch.stack([weight * loss(moved) for weight, loss in losses]).sum()

        return total


def _slopes(maps: Tensor, voxels_per_unit: Tensor) -> list[Tensor]:
    """Differences of maps `[D, *S]` along every axis, per unit of the longest side."""
    return [torch.diff(maps, dim=axis + 1) * float(per_unit) for axis, per_unit in enumerate(voxels_per_unit.flatten())]


def _mean_square(slopes: list[Tensor]) -> Tensor:
    # A volume of two slices has no second difference across them.
    return torch.stack([slope.square().sum(0).mean() for slope in slopes if slope.numel()]).sum()


def membrane_energy(ddf: Tensor, voxels_per_unit: Tensor) -> Tensor:
    """Mean squared first derivatives of a displacement: 0 for a shift alone, the same in any unit.

    Args:
        ddf: `[D, *S]` voxels.
        voxels_per_unit: `[D, 1, ...]` voxels in the longest side. (MONAI's DiffusionLoss and BendingEnergyLoss assume
            cubic voxels; volumes often are not.)
    """
    return _mean_square(_slopes(ddf / voxels_per_unit, voxels_per_unit))


def bending_energy(ddf: Tensor, voxels_per_unit: Tensor) -> Tensor:
    """Mean squared second derivatives of a displacement in units of the longest side: 0 for an affine map.

    In units of another length h it is h^2 times as large.

    Args:
        ddf, voxels_per_unit: see `membrane_energy`.
    """
    first = _slopes(ddf / voxels_per_unit, voxels_per_unit)
    return _mean_square([second for slope in first for second in _slopes(slope, voxels_per_unit)])
