# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Zurich Summer: tiles of QuickBird pictures, each paired with itself turned and shifted, with land-cover labels.

Layout of Zurich_dataset_v1.0 (github.com/MIDA-group/MultiRegEval, `utils/extract_zurich_modalites.py`, and the record's
readme): `images_tif/zh<n>.tif`, uint16, bands blue, green, red, near infrared; `groundtruth/zh<n>_GT.tif` in the
colours of `LEGEND`. There is one picture per place, so pairs are made as in Zenodo 5557568 (see `patches`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from skimage.io import imread

from ..errors import InputError
from .builder import Card, DataSet, Entry, Request, chosen, existing, first_folder
from .turned import LEVELS, MADE, turned_pair

PATCH, SHIFT = 300, 7  # pixels; shift per level
LEGEND = {
    "background": (255, 255, 255),
    "roads": (0, 0, 0),
    "buildings": (100, 100, 100),
    "trees": (0, 125, 0),
    "grass": (0, 255, 0),
    "bare soil": (150, 80, 0),
    "water": (0, 0, 150),
    "railways": (255, 255, 0),
    "swimming pools": (150, 150, 255),
}  # in the order of our labels, 0 first


def _zurich(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, "Zurich_dataset_v1.0", ".")
    images = first_folder(card, home, "images_tif")
    tiles = [
        (path, row, column, rows, columns)
        for path in sorted(images.glob("zh*.tif"))
        for rows, columns in [[side // PATCH for side in _shape(card, path)]]
        for row in range(rows)
        for column in range(columns)
    ]
    made = []
    for path, row, column, rows, columns in chosen(card, images, tiles, request):
        picture, truth = _image(path, existing(card, home / "groundtruth" / f"{path.stem}_GT.tif"))
        heights, widths = truth.shape[0] / rows, truth.shape[1] / columns
        corner = [int((k + 0.5) * side - PATCH / 2) for k, side in ((row, heights), (column, widths))]
        name = f"{path.stem}_{row + 1:02d}_{column + 1:02d}"
        at = (corner[0], corner[1])
        made.append(turned_pair(card, request, name, picture, truth, at, size=PATCH, step=SHIFT))
    return made, f"Level {request.split}."


@lru_cache(maxsize=1)  # the tiles of one image come one after the other
def _image(path: Path, truth_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """8-bit picture `[H, W, 3]` and label map `[H, W]`."""
    bands, truth = imread(path), _classes(truth_path)
    if truth.shape != bands.shape[:2]:
        raise InputError(f"zurich: {truth_path}: has shape {truth.shape}; its image {path} has {bands.shape[:2]}")
    return _eight_bit(bands), truth


def _shape(card: Card, path: Path) -> tuple[int, int]:
    try:
        shape = imread(path).shape
    except (OSError, ValueError) as error:
        raise InputError(f"{card.name}: {path}: cannot be read ({error}); give the official TIFF") from error
    if len(shape) != 3 or shape[2] != 4 or min(shape[:2]) < PATCH:
        raise InputError(f"{card.name}: {path}: has shape {shape}; expected 4 bands, at least {PATCH} px a side")
    return shape[0], shape[1]


def _eight_bit(bands: np.ndarray) -> np.ndarray:
    """Red, green, blue `[H, W, 3]` of blue, green, red, infrared; each from its 1st to its 99th percentile."""
    colour = bands[..., 2::-1].astype(np.float64)
    low, high = np.percentile(colour, (1, 99), axis=(0, 1))
    return np.round(np.clip((colour - low) / np.maximum(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


def _classes(path: Path) -> np.ndarray:
    colours = imread(path)[..., :3]
    labels = np.full(colours.shape[:2], 255, dtype=np.uint8)
    for label, colour in enumerate(LEGEND.values()):
        labels[(colours == colour).all(-1)] = label
    if (labels == 255).any():
        raise InputError(f"zurich: {path}: has the colour {colours[labels == 255][0].tolist()}, not in its legend")
    return labels


ZURICH = DataSet(
    Card(
        name="zurich",
        application="aerial",
        dim=2,
        kind="semi-synthetic",
        unit="px",
        origin="Zurich Summer v1.0, https://sites.google.com/site/michelevolpiresearch/data/zurich-dataset",
        licence="research use, see its readme; do not redistribute",
        citation="Volpi and Ferrari, Semantic segmentation of urban scenes by learning local class interactions, CVPRW "
        "2015",
        note=MADE + "Tiles of 300 px as in Zenodo 5557568, red, green and blue stretched per image and band to 8 bit. "
        "Unlabelled ground is background.",
        access="by hand, free",
        layout="images_tif/zh<n>.tif (4 bands, 16 bit) and groundtruth/zh<n>_GT.tif",
        label_names={str(label): name for label, name in enumerate(LEGEND) if label},
        splits=LEVELS,
        paper=True,
    ),
    _zurich,
)
