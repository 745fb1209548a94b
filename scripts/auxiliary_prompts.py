# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Auxiliary prompts (Eq. 2): repair the fixed region where it disagrees most in shape with the moving one.

With the contours of both regions, the directed Hausdorff distances

    h(x -> y) = max over a on contour x of min over b on contour y of |a - b|,  reached at x*
    h(y -> x) likewise,                                                          reached at y*

differ by more than sigma when one region has a part that the other lacks:

    h(x -> y) larger: R^y misses a part   -> a positive point at x*, moved epsilon voxels into R^x
    h(y -> x) larger: R^y spills over     -> a negative point at y*

The paper's printed cases and its sign of epsilon contradict this under the usual definition of the directed distance;
the intent (missing -> positive, spill -> negative) decides. For a model that takes only boxes, the box edge nearest
to x* moves out to it, or the edge at y* moves back to the moving contour. A step that does not bring the regions
closer ends the search and is not kept.

Distances are in pixels of an image whose longest side is `scale` pixels (1024 is SAM's input), so sigma and epsilon
mean the same at any input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree
from torch import Tensor

from .errors import InputError
from .geometry import centroid
from .prompt_inversion import Inverse, clamp_to_image, evaluate
from .prompts import Prompts
from .segmenters.embedding import Embedding
from .segmenters.protocol import Segmenter


@dataclass(frozen=True)
class Auxiliary:
    """Settings of the refinement.

    Attributes:
        sigma: tolerated difference of the directed distances, pixels at `scale` (paper: 20).
        epsilon: how far a positive point moves into the region, pixels at `scale` (paper: 2).
        scale: longest side of the image that sigma and epsilon refer to, pixels.
        steps: auxiliary prompts per prompt at most; 0 switches the refinement off.
        align: what the moving region is shifted by before contours are compared: "centroid" (onto the fixed region's
            centroid) or "none" (paper), both after the coarse prior has carried it.
    """

    sigma: float = 20.0
    epsilon: float = 2.0
    scale: float = 1024.0
    steps: int = 1
    align: str = "centroid"

    def __post_init__(self) -> None:
        if self.align not in ("centroid", "none"):
            raise InputError(f"auxiliary: align is '{self.align}', expected 'centroid' or 'none'")


@dataclass(frozen=True)
class Disagreement:
    """Where two regions differ most.

    Attributes:
        missing: h(x -> y), in units of the spacing; at: x* `[D]` on the moving region's contour.
        spill: h(y -> x), likewise; spill_at: y* `[D]` on the fixed region's contour, back_at: the point of the moving
            region's contour nearest to it, up to where the spill goes back. All places in voxels.
    """

    missing: float
    at: np.ndarray
    spill: float
    spill_at: np.ndarray
    back_at: np.ndarray

    @property
    def distance(self) -> float:
        """Hausdorff distance, in units of the spacing."""
        return max(self.missing, self.spill)


def contour(mask: np.ndarray) -> np.ndarray:
    """Voxels of a boolean mask `[*S]` that touch its outside, `[n, D]`. The image border counts as outside."""
    occupied = find_objects(mask.astype(np.uint8))  # a region is small, eroding the whole image is not
    if not occupied:
        return np.empty((0, mask.ndim))
    part = mask[occupied[0]]
    return np.argwhere(part & ~binary_erosion(part)) + [float(extent.start) for extent in occupied[0]]


def disagreement(
    moving: Tensor, fixed: Tensor, *, align: str = "none", spacing: Sequence[float] | None = None
) -> Disagreement | None:
    """Directed Hausdorff distances of two regions on one grid.

    Args:
        moving, fixed: `[*S]` probabilities.
        align: "centroid" shifts the moving region onto the fixed one's centre of mass first.
        spacing: voxel size along each axis; None: 1.

    Returns:
        None when either is empty.
    """
    shift = np.zeros(fixed.ndim)
    if align == "centroid":
        shift = (centroid((fixed > 0.5).float()) - centroid((moving > 0.5).float())).cpu().numpy()
    x, y = (contour((region > 0.5).cpu().numpy()) for region in (moving, fixed))
    if not len(x) or not len(y):
        return None
    x = x + shift
    size = np.ones(fixed.ndim) if spacing is None else np.asarray(spacing)
    from_x, (from_y, nearest) = cKDTree(y * size).query(x * size)[0], cKDTree(x * size).query(y * size)
    star_x, star_y = from_x.argmax(), from_y.argmax()
    return Disagreement(float(from_x[star_x]), x[star_x], float(from_y[star_y]), y[star_y], x[nearest[star_y]])


def auxiliary_point(
    difference: Disagreement, towards: np.ndarray, epsilon: float, spacing: np.ndarray | float = 1.0
) -> tuple[np.ndarray, int]:
    """Eq. 2: the point to add and its label.

    Args:
        difference: of the two regions.
        towards: `[D]` a point inside the moving region (its aligned centroid).
        epsilon: in units of the spacing; spacing: voxel size along each axis.
    """
    if difference.missing > difference.spill:
        inwards = towards - difference.at
        return difference.at + inwards * min(1.0, epsilon / max(float(np.linalg.norm(inwards * spacing)), 1e-6)), 1
    return difference.spill_at, 0


def move_nearest_edge(box: np.ndarray, point: np.ndarray, label: int, to: np.ndarray | None = None) -> np.ndarray:
    """A box `[2, D]` with one edge moved.

    Label 1 (missing): the edge that `point` lies furthest beyond moves out to it; a point inside the box moves nothing.
    Label 0 (spill): the edge nearest to `point` moves to `to` (default: to the point itself).
    """
    edges = [(side, axis) for side in (0, 1) for axis in range(box.shape[1])]
    beyond = np.array([(point[a] - box[s, a]) * (1 if s else -1) for s, a in edges])
    if label and beyond.max() <= 0:
        return box
    side, axis = edges[int(beyond.argmax() if label else np.abs(beyond).argmin())]
    moved = box.copy()
    moved[side, axis] = (point if to is None else to)[axis]
    return moved


def _amended(
    prompt: Prompts, difference: Disagreement, towards: np.ndarray, epsilon: float, spacing: np.ndarray
) -> Prompts:
    """One prompt with the auxiliary point added, or for a box with the edge moved that lets in what is missing or
    leaves out what spills.
    """
    own = prompt.coordinates[0]
    point, label = auxiliary_point(difference, towards, epsilon, spacing)
    if prompt.labels is None:
        box = move_nearest_edge(own.cpu().numpy(), point, label, None if label else difference.back_at)
        return Prompts(torch.as_tensor(np.sort(box, axis=0), dtype=own.dtype, device=own.device)[None])
    extra = torch.as_tensor(point, dtype=own.dtype, device=own.device)[None]
    labels = torch.cat([prompt.labels[0], prompt.labels.new_tensor([label])])
    return Prompts(torch.cat([own, extra])[None], labels[None])


def refine(
    segmenter: Segmenter,
    fixed: Embedding,
    features: Tensor,
    targets: Tensor,
    carried: Tensor,
    inverse: Inverse,
    how: Auxiliary,
) -> Inverse:
    """Add auxiliary prompts to each of K inverse prompts; no region ends further (Hausdorff) from its moving region.

    Args:
        segmenter: the model.
        fixed: embedding of the fixed image; features: `[C, *g]`; targets: `[K, C]` as for the inversion.
        carried: `[K, *S]` moving regions on the fixed image.
        inverse: K prompts and regions.
        how: settings.

    Returns:
        K prompts and regions. Prompts keep their number of points: an accepted auxiliary point shapes the region only.
    """
    spacing = np.asarray(fixed.spacing)
    pixel = float(fixed.extent.amax()) / how.scale  # in units of the spacing
    active = list(range(len(inverse.prompts))) if how.steps else []
    amended = {k: inverse.prompts[[k]] for k in active}
    best = inverse
    for _ in range(how.steps):
        trials = {}
        for k in active:
            difference = disagreement(carried[k], best.regions[k], align=how.align, spacing=fixed.spacing)
            if difference is None or abs(difference.missing - difference.spill) <= how.sigma * pixel:
                continue
            inside = centroid(best.regions[k] if how.align == "centroid" else carried[k]).cpu().numpy()
            trial = _amended(amended[k], difference, inside, how.epsilon * pixel, spacing)
            trial = clamp_to_image(trial, fixed.image_shape)
            if trial.coordinates.equal(amended[k].coordinates):
                continue  # no edge of the box can help
            trials[k] = (trial, difference.distance)
        active = []
        for k, (prompt, distance) in trials.items():
            index = torch.tensor([k], device=targets.device)
            asked = evaluate(segmenter, fixed, features, prompt, targets[index])
            after = disagreement(carried[k], asked.regions[0], align=how.align, spacing=fixed.spacing)
            if after is None or after.distance >= distance:
                continue
            amended[k] = prompt
            kept = asked if prompt.kind == "box" else replace(asked, prompts=best[index].prompts)
            best = best.replaced(index, kept)
            active.append(k)
    return best
