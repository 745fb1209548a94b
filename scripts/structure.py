# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Structure of an image that survives a change of modality: where its edges run, whatever their sign or height.

At each voxel the gradient's component along a few fixed directions, without its sign, relative to the strength of all
gradients around (after the channel features of oriented gradients of Ye et al. 2019 and the histograms of Dalal and
Triggs 2005). Images of one place agree in it across sensors, stains and contrasts.
"""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from scipy import ndimage
from skimage.measure import CircleModel, ransac
from torch import Tensor


def directions(dims: int, count: int = 8) -> Tensor:
    """Unit vectors `[n, dims]` spread over all orientations, one per axis line: `count` in 2-D, 13 in 3-D."""
    if dims == 2:
        angle = torch.arange(count) * math.pi / count
        return torch.stack([angle.cos(), angle.sin()], 1)
    lines = [v for v in product((-1, 0, 1), repeat=dims) if v > (0,) * dims]
    return torch.nn.functional.normalize(torch.tensor(lines, dtype=torch.float32), dim=1)


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Smoothed maps `[C, *S]`; the border's values continue outside."""
    dims, reach = maps.ndim - 1, max(1, math.ceil(3 * sigma))
    reach = min(reach, min(maps.shape[1:]) - 1)
    padded = torch.nn.functional.pad(maps[None], [reach] * 2 * dims, mode="replicate")
    inner = (..., *(slice(reach, -reach) for _ in range(dims)))
    return GaussianFilter(dims, sigma, truncated=3.0).to(maps)(padded)[inner][0]


def oriented_gradients(
    image: Tensor,
    *,
    sigma: float = 1.0,
    local: float = 3.0,
    frame: Tensor | None = None,
) -> Tensor:
    """How strong an image's edges are across each of a few directions, relative to the edges around.

    Args:
        image: `[1, *S]` grey values.
        sigma: voxels of smoothing before gradients are taken.
        local: voxels of the neighbourhood that strengths are relative to.
        frame: `[D, D]` linear map A from another grid's directions to this one's: strengths are told along the other
            grid's directions (chain rule: its gradient is A^T times this one's). None: the own grid.

    Returns:
        `[n, *S]`, non-negative, of order one at edges and near zero where there are none.
    """
    dims = image.ndim - 1
    slopes = torch.stack(torch.gradient(gaussian(image, sigma)[0]))
    if frame is not None:
        slopes = torch.tensordot(frame.T.to(slopes), slopes, dims=1)
    around = gaussian(slopes.square().sum(0, keepdim=True), local).clamp(min=0).sqrt()
    along = torch.tensordot(directions(dims).to(slopes), slopes, dims=1).abs()
    return along / (around + 0.1 * around.mean() + 1e-12)


def shown(image: Tensor, *, tolerance: float = 0.04, margin: int = 0) -> Tensor:
    """Where an image `[1, *S]` shows something: bool `[*S]`, without dark regions that touch its border.

    The edge of a round field of view or of a padded picture is no structure of what is seen, but agrees perfectly with
    itself.

    Args:
        tolerance: how dark, relative to the range of grey values up to their 99th percentile.
        margin: voxels that are left out beside such regions as well.
    """
    values = image[0].cpu().numpy()
    low, high = values.min(), np.quantile(values, 0.99)
    parts, _ = ndimage.label(values <= low + tolerance * (high - low))
    border = [np.take(parts, end, axis=axis).ravel() for axis in range(values.ndim) for end in (0, -1)]
    dark = np.isin(parts, np.setdiff1d(np.concatenate(border), [0]))
    if margin and dark.any():
        dark = ndimage.binary_dilation(dark, iterations=margin)
    return torch.from_numpy(~dark).to(image.device)


def device_view(
    fixed: Tensor, moving: Tensor, *, near: float = 0.002, standing: float = 0.6, round_: float = 0.9
) -> tuple[Tensor, Tensor] | None:
    """What two pictures show within a dark surround that is the device's.

    The edge of a field of view is no edge of what is seen, and agrees perfectly with itself. It is known by lying in
    the same place in both pictures (a subject that has not moved is taken for it as well), or by being round wherever
    there is one (another camera, a picture that was cut or turned). One that is neither is the subject's outline and
    is left alone. Where the content is dark the field's edge is not seen, so not all of it must coincide or lie on
    the circle.

    Args:
        fixed, moving: `[1, h, w]` grey values.
        near: how far the edge may lie from the other picture's, relative to the longest side, and one pixel at least;
            or from a circle, three quarters of a pixel at least.
        standing, round_: shares of the edge that must not lie further.

    Returns:
        masks `[h, w]` of what each picture shows, its edge left out; None where there is no such surround.
    """
    edges = [
        view & ~ndimage.binary_erosion(view, border_value=1)
        for view in (shown(i).cpu().numpy() for i in (fixed, moving))
    ]
    edges = [edge for edge in edges if edge.sum() >= min(edge.shape)]
    if not edges or (_standing(edges, near) < standing and min(_round(edge, near) for edge in edges) < round_):
        return None
    fixed_mask, moving_mask = (shown(image, margin=max(1, round(max(image.shape) / 40))) for image in (fixed, moving))
    return fixed_mask, moving_mask


def _standing(edges: list[np.ndarray], near: float) -> float:
    """Share of either of two edges `[h, w]` that lies where the other does; 0 where grids differ or one has none."""
    if len(edges) < 2 or edges[0].shape != edges[1].shape:
        return 0.0
    reach = max(1, near * max(edges[0].shape))
    away = [ndimage.distance_transform_edt(~edge) for edge in edges]
    return min(float((away[1 - k][edge] <= reach).mean()) for k, edge in enumerate(edges))


def _round(edge: np.ndarray, near: float) -> float:
    """Share of an edge `[h, w]` that lies on one circle, no larger than the picture and seen on a third of its way; 0
    where there is none.
    """
    places, side = np.argwhere(edge).astype(float), max(edge.shape)
    reach = max(0.75, near * side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a straight edge has no circle; releases name a circle's numbers differently
        circle, _ = ransac(places, CircleModel, min_samples=3, residual_threshold=reach, max_trials=200, rng=0)
        if circle is None:
            return 0.0
        *centre, radius = circle.params
    on_it = np.abs(circle.residuals(places)) <= reach
    directions = np.arctan2(*(places[on_it] - centre).T)
    seen = len(np.unique((directions * 18 / np.pi).round() % 36)) / 36  # in steps of 10 degrees
    return float(on_it.mean()) if radius <= side and seen >= 1 / 3 else 0.0
