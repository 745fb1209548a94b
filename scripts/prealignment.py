# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""How two volumes lie to each other before anything is fitted, robust to headers that lie.

Headers ("world"), image centres ("centre") and the best of all shifts ("features") are judged by one quantity: the mean
cosine of the segmenter's features where both volumes show something, times the root of the share that overlaps, as a
correlation's significance grows with its evidence. Orientations and spacings are always taken from the headers.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .feature_term import principal_components
from .geometry import identity_points, sample, transform_points
from .prompt_sampling import foreground
from .prototypes import centred_features
from .request import PairRequest
from .scene import Scene

SIZE = 32  # cells along the longest side of the larger volume
COMPONENTS = 16
GAIN = 1.1  # by which another choice must be better than the headers
CHOICES = ("auto", "world", "centre", "features")


def prealign(how: str, request: PairRequest, scene: Scene) -> tuple[Tensor, dict[str, Any]]:
    """Matrix `[D+1, D+1]` from fixed to moving voxels before anything is fitted.

    Args:
        how: "world", "centre", "features", or "auto": the headers unless the centres, or some shift, fit clearly
            better. Pictures have no headers: "auto" is equal row and column for them (see `prior_starts`).
        request: the pair.
        scene: both images embedded.

    Returns:
        the matrix; what it goes "by" and, where that was chosen here, the "scores" of all choices.
    """
    if how in ("world", "centre") or request.fixed.ndim == 3:
        chosen = "world" if how in ("auto", "features") else how
        return request.to_moving(chosen), {"by": chosen}
    matrices = {name: request.to_moving(name) for name in ("world", "centre")}
    scores, step = scores_of_shifts(scene, matrices["centre"], SIZE)
    shape = torch.tensor(scores.shape)
    linear = matrices["centre"][:-1, :-1]

    def score_at(matrix: Tensor) -> float:
        shift = torch.linalg.solve(linear, matrix[:-1, -1] - matrices["centre"][:-1, -1]) / step
        index = shift.round().long().cpu()
        return float(scores[tuple(index % shape)]) if bool((2 * index.abs() < shape).all()) else 0.0

    best = torch.stack(torch.unravel_index(scores.argmax(), scores.shape))
    shift = torch.where(2 * best > shape, best - shape, best).to(step)
    matrices["features"] = matrices["centre"].clone()
    matrices["features"][:-1, -1] += linear @ (shift * step)
    found = {"features": float(scores.max()), **{name: score_at(matrices[name]) for name in ("world", "centre")}}
    if how == "features":
        return matrices["features"], {"by": "features", "scores": found}
    chosen = "world"
    for other in ("centre", "features"):
        if found[other] > GAIN * found[chosen]:
            chosen = other
    return matrices[chosen], {"by": chosen, "scores": found}


def scores_of_shifts(scene: Scene, to_moving: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Scores of all shifts of the moving image against the fixed one, cell by cell.

    Args:
        scene: both images embedded.
        to_moving: `[D+1, D+1]` from fixed to moving voxels where the shift is none.
        size: cells along the longest side of the larger image.

    Returns:
        `[*cells]`, shifts counted from 0 on and negative ones from the end; and the size of a cell in fixed voxels
        `[D]`. The matrix of a shift by n cells is `to_moving` after a shift by n times that size.
    """
    views, to_fixed = (scene.fixed, scene.moving), torch.linalg.inv(to_moving)
    corners = [
        transform_points(matrix, _corners(view.image))
        for view, matrix in zip(views, (torch.eye(len(to_fixed)).to(to_fixed), to_fixed), strict=True)
    ]
    spacing = torch.tensor(scene.fixed.embedding.spacing, device=to_fixed.device)
    sides = [(c.amax(1) - c.amin(1)) * spacing for c in corners]
    step = max(float(side.amax()) for side in sides) / size / spacing  # fixed voxels
    maps, low = [], torch.stack([c.amin(1) for c in corners]).amin(0)
    for which, (matrix, corner) in enumerate(zip((None, to_moving), corners, strict=True)):
        cells = [ceil(float(n)) + 1 for n in (corner.amax(1) - low) / step]
        points = low.reshape(-1, *[1] * len(low)) + identity_points(cells, device=low.device) * step.reshape(
            -1, *[1] * len(low)
        )
        maps.append(torch.cat(_seen(scene, which, points if matrix is None else transform_points(matrix, points))))
    shape = [2 * max(sides) for sides in zip(maps[0].shape[1:], maps[1].shape[1:], strict=True)]  # half for either sign
    axes = tuple(range(1, len(shape) + 1))
    fixed, moving = (torch.fft.rfftn(m, s=shape, dim=axes) for m in maps)
    product = torch.fft.irfftn(fixed.conj() * moving, s=shape, dim=axes)
    overlap = product[-1].clamp(min=0)
    most = min(float(m[-1].square().sum()) for m in maps)
    alike = product[:-1].sum(0) / overlap.clamp(min=0.05 * most)
    return (alike * (overlap / most).clamp(max=1).sqrt()).cpu(), step


def score(scene: Scene, points: Tensor, moved: Tensor) -> float:
    """How alike the images are under any map: from voxels `[D, *grid]` of the fixed to `moved` ones of the moving one.

    As `scores_of_shifts`, but the overlap is relative to what the fixed image shows: a map may resize the moving one.
    """
    (fixed, there), (moving, here) = (_seen(scene, which, at) for which, at in enumerate((points, moved)))
    overlap = (there * here).sum().clamp(min=1e-6)
    return float((fixed * moving).sum() / overlap * (overlap / there.sum().clamp(min=1e-6)).sqrt())


def _seen(scene: Scene, which: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features `[C, *grid]` of one image (0 fixed, 1 moving) at its voxels `[D, *grid]` where it shows something,
    0 elsewhere, and where that is, `[1, *grid]`.
    """
    if "prealignment" not in scene.known:
        views = (scene.fixed, scene.moving)
        grids = principal_components(*(centred_features(view.embedding) for view in views), components=COMPONENTS)
        scene.known["prealignment"] = [*grids, *(foreground(view.image)[None].float() for view in views)]
    features, content = scene.known["prealignment"][which::2]
    view = (scene.fixed, scene.moving)[which]
    shown = sample(content, points)
    at = transform_points(view.embedding.to_grid(tuple(features.shape[1:])), points)
    return F.normalize(sample(features, at, padding="border"), dim=0) * shown, shown


def _corners(image: Tensor) -> Tensor:
    ends = [torch.tensor([0.0, n - 1.0], device=image.device) for n in image.shape[1:]]
    return torch.cartesian_prod(*ends).T
