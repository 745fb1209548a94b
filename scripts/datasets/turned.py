# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A patch of a picture and the same one turned and shifted: pairs whose truth is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from ..atomic import written_atomically
from .builder import Card, Entry, Request, entry
from .files import write_landmarks

LEVELS = ("4", "3", "2", "1")  # of Zenodo 5557568; the paper's samples are of level 4
DEGREES = 5  # of rotation per level
MADE = (
    "Semi-synthetic: the moving patch is the fixed one turned and shifted, seeded, by a transformation of the record's "
    "level; landmarks are exact. "
)


def rigid(size: int, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """Matrix `[3, 3]` from (i, j) of the moving patch to (i, j) of the fixed one: shift, then turn about the centre."""
    centre = np.eye(3)
    centre[:2, 2] = (size - 1) / 2
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    move = np.eye(3)
    move[:2, 2] = shift
    return centre @ turn @ np.linalg.inv(centre) @ move


def drawn(size: int, level: int, step: int, rng: np.random.Generator) -> np.ndarray:
    """A random rigid transformation: sizes of rotation and shifts within the level, signs at random."""
    turn, *shift = rng.uniform(level - 1, level, 3) * (DEGREES, step, step) * rng.choice([-1, 1], 3)
    return rigid(size, turn, (shift[0], shift[1]))


def moved(picture: np.ndarray, corner: tuple[int, int], size: int, matrix: np.ndarray, *, labels: bool) -> np.ndarray:
    """Moving patch `[size, size(, C)]`: pixel p shows the picture `[H, W(, C)]` at corner + matrix p.

    Pictures are interpolated and mirrored where they end; labels are those of the nearest pixel and 0 outside.
    """
    points = np.moveaxis(np.indices((size, size)), 0, -1) @ matrix[:2, :2].T + matrix[:2, 2] + np.array(corner)
    where = np.moveaxis(points, -1, 0)
    order, mode = (0, "constant") if labels else (1, "reflect")
    layers = picture[..., None] if picture.ndim == 2 else picture
    carried = [map_coordinates(layers[..., c], where, order=order, mode=mode) for c in range(layers.shape[-1])]
    return np.stack(carried, -1).reshape(size, size, *picture.shape[2:])


def exact_landmarks(size: int, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixed and moving points `[N, 2]`: a 6x6 grid of the moving patch, as far as it lies in the fixed one."""
    line = np.linspace(0.05, 0.95, 6) * (size - 1)
    moving = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    fixed = moving @ matrix[:2, :2].T + matrix[:2, 2]
    inside = ((fixed >= 0) & (fixed <= size - 1)).all(1)
    return fixed[inside], moving[inside]


def write_exact_landmarks(folder: Path, name: str, size: int, matrix: np.ndarray) -> list[Path]:
    """The points of `exact_landmarks`, fixed and moving."""
    sides = zip("RT", exact_landmarks(size, matrix), strict=True)
    return [write_landmarks(folder / f"{name}_{side}.csv", points) for side, points in sides]


def _save(path: Path, array: np.ndarray) -> Path:
    with written_atomically(path) as unfinished:
        Image.fromarray(array).save(unfinished)
    return path


def turned_pair(
    card: Card,
    request: Request,
    name: str,
    picture: np.ndarray,
    labels: np.ndarray | None,
    corner: tuple[int, int],
    size: int,
    step: int,
) -> Entry:
    """Write and list one pair; its transformation depends on seed, level (the request's split) and name alone.

    Args:
        picture, labels: `[H, W, 3]` and `[H, W]`, uint8.
        corner: first row and column of the fixed patch.
        size: of the patches, pixels; step: shift per level, pixels.
    """
    rng = np.random.default_rng([request.seed, *name.encode()])
    matrix = drawn(size, int(request.split), step, rng)
    window = tuple(slice(start, start + size) for start in corner)
    home = request.output_dir
    images, maps = [], []
    for side, carry in (("R", False), ("T", True)):
        patch = moved(picture, corner, size, matrix, labels=False) if carry else picture[window]
        images.append(_save(home / f"{name}_{side}.png", patch))
        if labels is not None:
            own = moved(labels, corner, size, matrix, labels=True) if carry else labels[window]
            maps.append(_save(home / f"{name}_{side}_label.png", own))
    return entry(
        card, name, images[0], images[1], labels=maps, landmarks=write_exact_landmarks(home, name, size, matrix)
    )
