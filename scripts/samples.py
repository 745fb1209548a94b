# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pairs to try things on, none of them downloaded: `python -m scripts.samples --output_dir STUDIES`.

A retinal photograph and itself warped (`demo`), coins turned and cut, and a volume by formula: a head of ellipsoids
that is turned, shifted and scaled. They show how things are used, not how well they work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from .demo import example
from .geometry import identity_points, transform_points
from .images import nifti_image

SHAPE, SPACING = (72, 84, 20), (2.5, 2.5, 6.0)  # of the volume, voxels and mm
# Centre and half axes in mm from the middle of the head, and what is added inside.
HEAD = (
    ((0, 0, 0), (76, 94, 56), 190.0),
    ((0, 0, 0), (69, 87, 50), -90.0),
    ((-20, 12, 6), (11, 30, 14), -70.0),
    ((20, 12, 6), (11, 30, 14), -70.0),
    ((-38, -32, -8), (16, 13, 12), 80.0),
    ((34, -40, 10), (10, 18, 10), 60.0),
    ((2, 58, 0), (14, 12, 16), -35.0),
)


def head(matrix: Tensor) -> Tensor:
    """The volume `[*SHAPE]`, values 0 to about 200, seen through a matrix `[4, 4]` from image to head, both mm."""
    spacing, middle = (torch.tensor(v).reshape(3, 1, 1, 1) for v in (SPACING, [(n - 1) / 2 for n in SHAPE]))
    places = transform_points(matrix, (identity_points(SHAPE) - middle) * spacing)
    values = 6 * torch.sin(places / 9).sum(0)  # some texture
    for *place, value in HEAD:
        centre, axes = (torch.tensor(v).reshape(3, 1, 1, 1) for v in place)
        inside = min(axes.flatten()) * (1 - ((places - centre) / axes).norm(dim=0))  # about mm from the edge
        values = values + value * torch.sigmoid(inside)
    return values.clamp(min=0)


def _retina(folder: Path) -> dict[str, str | Path]:
    fixed, moving, _ = example()
    return _saved(folder, "retina", fixed=_picture(fixed), moving=_picture(moving))


def _coins(folder: Path) -> dict[str, str | Path]:
    coins = Image.fromarray(data.coins())
    turned = coins.rotate(8, fillcolor=60)
    return _saved(folder, "coins", fixed=coins.crop((0, 0, 330, 300)), moving=turned.crop((30, 10, 384, 303)))


def _head(folder: Path) -> dict[str, str | Path]:
    turn = torch.tensor(0.15)
    moving = torch.eye(4)
    moving[:2, :2] = 1.06 * torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    moving[:3, 3] = torch.tensor([9.0, -7.0, 6.0])
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    files: dict[str, str | Path] = {}
    for side, matrix in (("fixed", torch.eye(4)), ("moving", moving)):
        files[side] = folder / f"head_{side}.nii.gz"
        nib.save(nifti_image(head(matrix).round().numpy().astype(np.uint8), affine), files[side])
    return files


PAIRS: dict[str, Callable[[Path], dict[str, str | Path]]] = {
    "a retinal photograph and itself, warped": _retina,
    "coins, and the same turned and cut": _coins,
    "a volume: a head of ellipsoids, and the same turned": _head,
}


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].round().clamp(0, 255).numpy().astype(np.uint8))


def _saved(folder: Path, name: str, **pictures: Image.Image) -> dict[str, str | Path]:
    files: dict[str, str | Path] = {side: folder / f"{name}_{side}.png" for side in pictures}
    for side, picture in pictures.items():
        picture.save(files[side])
    return files


def run(output_dir: str) -> None:
    """Write all pairs, as studies for MONAI Label.

    Args:
        output_dir: folder; made if missing.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in PAIRS.items():
        print(f"{name}: {' and '.join(Path(file).name for file in write(folder).values())}")


if __name__ == "__main__":
    sys.exit(fire.Fire(run))
