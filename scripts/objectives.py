# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Terms of the objective that a transformation is fitted to. The paper has one, `roi`; a configuration lists any,
weighted.

A term compares the two images at one sampling grid: `prepare` gathers on that grid what does not change during
the fit, and the function it returns maps the current moving-image points of the grid's voxels to a scalar, 0 at best
and of order one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, prod

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError, as_bool
from .geometry import sample, transform_points
from .prototypes import centred_features
from .scene import Pyramid, Scene
from .structure import oriented_gradients

Loss = Callable[[Tensor], Tensor]  # moving voxels [D, *grid] of every grid voxel -> scalar


class Term(ABC):
    """One weighted part of the objective.

    Args:
        weight: factor in the sum.
        controls: fewest and most control intervals of the levels where the term takes part (0 is the affine alone).
            Regions say little about detail and intensities mislead before things are near.
    """

    def __init__(self, weight: float = 1.0, controls: tuple[float, float] = (0, inf)) -> None:
        self.weight, self.controls = weight, tuple(controls)

    def takes_part(self, controls: int) -> bool:
        """Whether a level with so many control intervals uses the term."""
        return self.weight != 0 and self.controls[0] <= controls <= self.controls[1]

    @abstractmethod
    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        """Loss on a grid whose voxels lie at `points` `[D, *grid]` (voxels of the fixed image)."""


class RoiTerm(Term):
    """Disagreement of paired regions, weighted by confidence: sum_k c_k L(R^y_k, T(R^x_k)) / sum_k c_k (Sec. 2).

    Args:
        weight, controls: see `Term`.
        loss: "dice" (1 - soft Dice, as the paper) or "squared" (mean squared error over the union).
    """

    def __init__(self, weight: float = 1.0, controls: tuple[float, float] = (0, inf), loss: str = "dice") -> None:
        super().__init__(weight, controls)
        if loss not in ("dice", "squared"):
            raise InputError(f"objective: the roi term has no loss '{loss}', expected 'dice' or 'squared'")
        self.loss = loss

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        keep = scene.confidence > 0
        if not keep.any():
            return lambda moved: moved.sum() * 0.0
        confidence = scene.confidence[keep] / scene.confidence[keep].sum()
        fixed = Pyramid(scene.fixed.regions[keep], points).at(points).flatten(1)
        moving = Pyramid(scene.moving.regions[keep], scene.moving_points(points))

        def loss(moved: Tensor) -> Tensor:
            warped = moving.at(moved).flatten(1)
            if self.loss == "dice":
                overlap = 2 * (fixed * warped).sum(1) + 1e-3
                return (confidence * (1 - overlap / (fixed.square() + warped.square()).sum(1).add(1e-3))).sum()
            union = torch.maximum(fixed, warped).sum(1).clamp(min=1e-3)
            return (confidence * (fixed - warped).square().sum(1) / union).sum()

        return loss


def principal_components(fixed: Tensor, moving: Tensor, *, components: int) -> list[Tensor]:
    """Unit features of both images in the basis of their common leading principal components.

    Args:
        fixed, moving: `[C, *g]` (grids may differ).
        components: dimensions kept.

    Returns:
        two grids `[components, *g]` of unit vectors; the basis is common, so cosines compare.
    """
    # Fifty thousand places of each tell the basis as well as all.
    few = [grid.flatten(1)[:, :: max(1, grid[0].numel() // 50_000)] for grid in (fixed, moving)]
    both = torch.cat(few, dim=1)
    _, vectors = torch.linalg.eigh(both @ both.T)  # ascending
    basis = vectors[:, -min(components, len(vectors)) :].T
    return [F.normalize(torch.tensordot(basis, grid, dims=1), dim=0) for grid in (fixed, moving)]


def _enough(cells: Tensor, places: int) -> tuple[slice, ...]:
    """Which of the places `[D, *grid]`, in voxels of a feature grid, to look at.

    No denser than the cells, between which features say nothing, and no more than a number of `places`.
    """
    steps = [torch.diff(cells, dim=axis).norm(dim=0).mean().item() for axis in range(1, cells.ndim)]
    strides = [max(1, int(1 / max(step, 1e-6) + 0.01)) for step in steps]
    while prod(-(-n // stride) for n, stride in zip(cells.shape[1:], strides, strict=True)) > places:
        densest = min(range(len(steps)), key=lambda axis: strides[axis] * steps[axis])
        strides[densest] += 1
    return slice(None), *[slice(None, None, stride) for stride in strides]


class FeatureTerm(Term):
    """1 - mean cosine between the segmenter's features, each image's centred on its own mean.

    Args:
        weight, controls: see `Term`.
        levels: which feature grids of the encoder, counted as in `Embedding.levels`; their cosines are averaged.
        components: principal components kept of each grid (fewer are faster and less noisy).
        centre: subtract each image's mean feature first.
        places: that are looked at, at most; bounds the time in volumes.
    """

    def __init__(
        self,
        weight: float = 1.0,
        controls: tuple[float, float] = (0, inf),
        levels: tuple[int, ...] = (-1,),
        components: int = 32,
        centre: bool = True,
        places: int = 20_000,
    ) -> None:
        super().__init__(weight, controls)
        self.levels, self.components, self.centre = tuple(levels), components, as_bool(centre, "features: centre")
        self.places = places

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        pairs = []
        for level in self.levels:
            name = f"principal components {level} {self.components} {self.centre}"
            if name not in scene.known:
                both = (
                    centred_features(v.embedding, centre=self.centre, level=level) for v in (scene.fixed, scene.moving)
                )
                scene.known[name] = principal_components(*both, components=self.components)
            grids = scene.known[name]
            shapes = [tuple(grid.shape[1:]) for grid in grids]
            fixed_matrix, matrix = (
                view.embedding.to_grid(shape) for view, shape in zip((scene.fixed, scene.moving), shapes, strict=True)
            )
            cells = transform_points(fixed_matrix, points)
            few = _enough(cells, self.places)
            pairs.append((sample(grids[0], cells[few], padding="border"), grids[1], matrix, few))

        def loss(moved: Tensor) -> Tensor:
            cosines = [
                (fixed * sample(grid, transform_points(matrix, moved[few]), padding="border")).sum(0).mean()
                for fixed, grid, matrix, few in pairs
            ]
            return 1 - torch.stack(cosines).mean()

        return loss


class LnccTerm(Term):
    """1 - squared local correlation of the grey values, over windows that both images fill.

    Not MONAI's loss, which cannot leave out what the moving image does not show: a window that the map has emptied
    would count as perfect or as hopeless.

    Args:
        weight, controls: see `Term`.
        kernel: window side in voxels of the sampling grid.
        floor: standard deviation of grey values in [0, 1] below which a window is flat.
    """

    def __init__(
        self, weight: float = 1.0, controls: tuple[float, float] = (0, inf), kernel: int = 9, floor: float = 1e-3
    ) -> None:
        super().__init__(weight, controls)
        self.kernel, self.floor = kernel, floor

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        dims = points.ndim - 1
        pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]

        def mean(maps: Tensor) -> Tensor:
            maps = maps[:, None]
            for axis in range(dims):  # a box is as good as its sides one after the other, and far cheaper
                window = [self.kernel if a == axis else 1 for a in range(dims)]
                maps = pool(maps, window, 1, [n // 2 for n in window], count_include_pad=False)
            return maps[:, 0]

        def moments(grey: Tensor) -> tuple[Tensor, Tensor]:
            average, square = mean(torch.cat([grey, grey.square()]))
            return average, (square - average.square()).clamp(min=0) + self.floor**2

        fixed = Pyramid(scene.fixed.image, points).at(points)
        moving = Pyramid(scene.moving.image, scene.moving_points(points))
        covered = scene.coverage(points)
        fixed_mean, fixed_variance = moments(fixed)

        def loss(moved: Tensor) -> Tensor:
            inside = (mean(covered(moved)[None])[0] > 0.99).to(moved)
            warped = moving.at(moved)
            average, variance = moments(warped)
            covariance = mean(warped * fixed)[0] - average * fixed_mean
            squared = covariance.square() / (variance * fixed_variance)
            return 1 - (squared * inside).sum() / inside.sum().clamp(min=1)

        return loss


class StructureTerm(Term):
    """1 - correlation of oriented gradients (see `structure`) where both images show something.

    Blind to contrast: the term for images of one scene from different sensors, stains or seasons.

    Args:
        weight, controls: see `Term`.
        sigma: smoothing before gradients are taken, voxels of the sampling grid.
        local: neighbourhood that gradients are relative to, likewise.
    """

    def __init__(
        self,
        weight: float = 1.0,
        controls: tuple[float, float] = (0, inf),
        sigma: float = 1.0,
        local: float = 3.0,
    ) -> None:
        super().__init__(weight, controls)
        self.sigma, self.local = sigma, local

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        start = scene.moving_points(points)
        moving, dims = Pyramid(scene.moving.image, start), points.ndim - 1
        at = transform_points(moving.matrix, start)
        # Directions of the sampling grid as directions of the moving maps: a turned image's edges are turned too.
        frame = torch.stack([torch.diff(at, dim=axis + 1).flatten(1).mean(1) for axis in range(dims)], 1)
        seen = Pyramid(scene.fixed.image, points).at(points)
        fixed = _centred(oriented_gradients(seen, sigma=self.sigma, local=self.local))
        maps = _centred(oriented_gradients(moving.maps, sigma=self.sigma, local=self.local, frame=frame))
        covered, strength = scene.coverage(points), fixed.square().sum(0)

        def loss(moved: Tensor) -> Tensor:
            inside = covered(moved)
            warped = sample(maps, transform_points(moving.matrix, moved), padding="border")
            product, power = ((fixed * warped).sum(0) * inside).sum(), (warped.square().sum(0) * inside).sum()
            return 1 - product / ((strength * inside).sum() * power).clamp(min=1e-9).sqrt()

        return loss


def _centred(maps: Tensor) -> Tensor:
    return maps - maps.flatten(1).mean(1).reshape(-1, *[1] * (maps.ndim - 1))


class MutualInformationTerm(Term):
    """1 - global mutual information of the grey values in units of log(bins) (MONAI's loss).

    Args:
        weight, controls: see `Term`.
        bins: number of histogram bins.
    """

    def __init__(self, weight: float = 1.0, controls: tuple[float, float] = (0, inf), bins: int = 32) -> None:
        super().__init__(weight, controls)
        self.bins = bins

    def prepare(self, scene: Scene, points: Tensor) -> Loss:
        measure = GlobalMutualInformationLoss(num_bins=self.bins)
        fixed = Pyramid(scene.fixed.image, points).at(points)[None]
        moving = Pyramid(scene.moving.image, scene.moving_points(points))
        scale = 1.0 / torch.log(torch.tensor(float(self.bins)))
        return lambda moved: 1 + scale * measure(moving.at(moved)[None], fixed)


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

    def check(self, levels: list[int]) -> None:
        """Raise `InputError` when no term takes part in one of the levels, given by their control intervals."""
        for controls in levels:
            if not any(term.takes_part(controls) for term in self._terms):
                raise InputError(f"objective: no term takes part in the level with {controls} control intervals")

    def prepare(self, scene: Scene, points: Tensor, controls: int = 0) -> Loss:
        """The weighted sum on one sampling grid at a level with so many control intervals; see `Term.prepare`."""
        losses = [(term.weight, term.prepare(scene, points)) for term in self._terms if term.takes_part(controls)]

        def total(moved: Tensor) -> Tensor:
            return torch.stack([weight * loss(moved) for weight, loss in losses]).sum()

        return total


def bending_energy(ddf: Tensor, voxels_per_unit: Tensor) -> Tensor:
    """Mean squared second derivatives of a displacement in units of the longest side; scale-free.

    Args:
        ddf: `[D, *S]` voxels.
        voxels_per_unit: `[D, 1, ...]`. (MONAI's BendingEnergyLoss assumes cubic voxels; volumes often are not.)
    """
    dims = ddf.shape[0]
    spacing = [1.0 / float(v) for v in voxels_per_unit.flatten()]
    u = ddf / voxels_per_unit
    first = [torch.diff(u, dim=d + 1) / spacing[d] for d in range(dims)]
    energy = u.new_zeros(())
    for a in range(dims):
        for b in range(dims):
            second = torch.diff(first[a], dim=b + 1) / spacing[b]
            if second.numel():  # a volume of two slices has no second difference across them
                energy = energy + second.square().sum(0).mean()
    return energy
