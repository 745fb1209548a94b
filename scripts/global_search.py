# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Where a fit may start when the images lie far apart: rotations, scales and all shifts, compared by edge structure.

For each rotation and scale the oriented gradients of the two images (`structure`) are correlated at every shift at
once by the Fourier transform, each shift over the part that both images show (Padfield 2012). Nothing is learned
and nothing assumes equal contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import fft
from torch import Tensor
from torch.nn import functional as F

from .correspondence import level_points
from .geometry import identity_points, transform_points
from .grid import Grid
from .places import Places
from .scene import Pyramid
from .structure import oriented_gradients, shown


@dataclass(frozen=True)
class GlobalSearch:
    """How starts are searched.

    Attributes:
        size: voxels along the fixed image's longest side at which edges are seen.
        cell: voxels of that grid that are averaged before shifts are compared.
        angles: rotations tried, degrees.
        scales: of the moving relative to the fixed image.
        overlap: least share of the fixed image's content that the moving one must cover.
        keep: starts returned.
        apart: starts nearer to a better one are dropped, relative to the longest side (mean over the corners).
    """

    size: int = 256
    cell: int = 2
    angles: tuple[float, ...] = tuple(range(-30, 31, 5))
    scales: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1, 1.25)
    overlap: float = 0.1
    keep: int = 2
    apart: float = 0.05


@dataclass(frozen=True)
class Start:
    """One place to start from.

    Attributes:
        matrix: `[D+1, D+1]` from fixed to moving voxels.
        agreement: correlation of structure over the common part, in [-1, 1].
        overlap: common part, as a share of the fixed image's content.
    """

    matrix: Tensor
    agreement: float
    overlap: float

    @property
    def score(self) -> float:
        """What starts are ranked by: like the significance of a correlation it grows with the root of its evidence."""
        return self.agreement * math.sqrt(min(1.0, self.overlap))


def search_starts(fixed: Tensor, moving: Tensor, grid: Grid, to_moving: Tensor, settings: GlobalSearch) -> list[Start]:
    """Similarities of the plane that bring edges together, best first.

    Args:
        fixed: `[1, *S]`, moving: `[1, *M]` grey values (2-D).
        grid: the fixed image's grid.
        to_moving: matrix from fixed to moving voxels before anything is known (headers): the centre of the search.
        settings: what is tried.

    Returns:
        at most `settings.keep` starts, all different; the one without any change is not added.
    """
    coarse = grid.coarsened(settings.size)
    step = level_points(coarse, grid, fixed.device).flatten(1).amax(1) / torch.tensor([n - 1.0 for n in coarse.shape])
    scale = torch.diag(torch.cat([step, step.new_ones(1)]))  # coarse to fixed voxels
    points = level_points(coarse, grid, fixed.device)
    target, valid = _seen(fixed, points, settings.cell)
    correlator = _Correlator(_centred(target, valid), valid)
    middle = torch.tensor([(n - 1) / 2 for n in coarse.shape])
    back = torch.linalg.inv(to_moving @ scale)
    centre = transform_points(back, torch.tensor([(n - 1) / 2 for n in moving.shape[1:]])[:, None])[:, 0]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, n - 1.0]) for n in grid.shape]).T

    found: list[tuple[Start, Tensor]] = []
    frame = identity_points(coarse.shape, device=fixed.device)
    for size in settings.scales:
        for angle in settings.angles:
            turn = _similarity(math.radians(angle), size, middle, centre)
            matrix = to_moving @ scale @ turn
            source, seen = _seen(moving, transform_points(matrix, frame), settings.cell)
            for shift, agreement, overlap in correlator.best(_centred(source, seen), seen, settings.overlap):
                moved = torch.eye(3)
                moved[:2, 2] = torch.tensor(shift) * settings.cell
                whole = matrix @ moved @ torch.linalg.inv(scale)
                found.append((Start(whole, agreement, overlap), transform_points(whole, corners)))
    found.sort(key=lambda entry: -entry[0].score)
    kept: list[tuple[Start, Tensor]] = []
    least = settings.apart * max(moving.shape[1:])
    for start, places in found:
        if len(kept) < settings.keep and all((places - p).norm(dim=0).mean() > least for _, p in kept):
            kept.append((start, places))
    return [start for start, _ in kept]


def _similarity(angle: float, size: float, middle: Tensor, centre: Tensor) -> Tensor:
    """Matrix of a rotation and scaling that brings `middle` to `centre`."""
    matrix = torch.eye(3)
    matrix[:2, :2] = size * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix[:2, 2] = centre - matrix[:2, :2] @ middle
    return matrix


def _seen(image: Tensor, points: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """Structure `[n, *cells]` of an image sampled at points, and which cells show something, `[*cells]`."""
    pyramid = Pyramid(image, points)
    grey = pyramid.at(Places(points))
    at = transform_points(pyramid.matrix, points)
    limits = torch.tensor(pyramid.maps.shape[1:]).reshape(-1, 1, 1) - 1
    inside = ((at >= 0) & (at <= limits)).all(0)
    content = Pyramid(shown(pyramid.maps, margin=4)[None].float(), identity_points(pyramid.maps.shape[1:]))
    valid = (content.at(Places(at))[0] > 0.99) & inside
    structure = F.avg_pool2d(oriented_gradients(grey)[None], cell)[0]
    return structure, (F.avg_pool2d(valid[None].float(), cell)[0] > 0.99).float()


def _centred(maps: Tensor, valid: Tensor) -> Tensor:
    mean = (maps * valid).sum((1, 2), keepdim=True) / valid.sum().clamp(min=1)
    return (maps - mean) * valid


class _Correlator:
    """Normalised correlation of one set of maps with others at all shifts."""

    def __init__(self, maps: Tensor, valid: Tensor) -> None:
        self.shape = tuple(maps.shape[1:])
        self.padded = [fft.next_fast_len(2 * n - 1, real=True) for n in self.shape]
        self.maps, self.valid = self._forward(maps).conj(), self._forward(valid).conj()
        self.energy, self.content = self._forward(maps.square().sum(0)).conj(), float(valid.sum())

    def _forward(self, maps: Tensor) -> Tensor:
        return torch.fft.rfft2(maps, s=self.padded)

    def _backward(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(spectrum, s=self.padded)

    def best(self, maps: Tensor, valid: Tensor, overlap: float, count: int = 3) -> list[tuple[list[int], float, float]]:
        """Highest local peaks: shift in cells (fixed `x` to moving `x + shift`), correlation, share of overlap."""
        seen = self._forward(valid)
        common = self._backward(self.valid * seen)
        product = self._backward((self.maps * self._forward(maps)).sum(0))
        own = self._backward(self.energy * seen).clamp(min=1e-6)
        other = self._backward(self.valid * self._forward(maps.square().sum(0))).clamp(min=1e-6)
        correlation = product / (own * other).sqrt()
        share = common / max(self.content, 1.0)
        score = torch.where(share >= overlap, correlation * share.clamp(0, 1).sqrt(), -1.0)
        peaks = torch.where(F.max_pool2d(score[None], 9, 1, 4)[0] == score, score, -1.0)
        values, places = peaks.flatten().topk(count)
        results = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            if value <= 0:
                continue
            shift = [
                p if p < n else p - m
                for p, n, m in zip(divmod(place, score.shape[1]), self.shape, self.padded, strict=True)
            ]
            results.append((shift, correlation.flatten()[place].item(), share.flatten()[place].item()))
        return results
