# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pairs made harder: `python -m scripts.moved_pairs --datalist FILES --output_dir OUT --turn 20 --shift 0.1`.

Moving images and their label maps are turned and shifted before anything, volumes inside their grids; what leaves the
frame is lost. Writes OUT/<set>/datalist.json for `configs/evaluate.yaml`, whose sets are called `..._moved`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isfinite, radians
from pathlib import Path
from typing import Any

import fire
import numpy as np
import SimpleITK as sitk
from PIL import Image

from .datalist import PairEntry, by_set, read_datalists, write_datalist
from .errors import InputError, one_line_errors
from .readers import PICTURES


def run(
    datalist: str | Sequence[str],
    output_dir: str,
    ids: Sequence[str] | None = None,
    turn: float = 0.0,
    shift: float = 0.0,
    axis: int = 2,
) -> None:
    """Write the moved pairs and print the paths of their lists.

    Args:
        datalist: a JSON file or several; see `datalist`. Pairs with landmarks are left out.
        output_dir: folder; made if missing.
        ids: names of the pairs that are wanted; all of them if none are given.
        turn: counterclockwise, degrees.
        shift: to the right and down, in volumes along the first two axes, relative to the longest side.
        axis: of a volume's array that it is turned about, 0, 1 or 2.

    Raises:
        InputError: numbers that are none, no pair to move, or an image that is neither picture nor volume.
    """
    if axis not in (0, 1, 2):
        raise InputError(f"axis: {axis!r}, expected 0, 1 or 2")
    for name, value in (("turn", turn), ("shift", shift)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{name}: {value!r}, expected a number")
    entries = [e for e in read_datalists(datalist) if "moving_landmarks" not in e.files and (not ids or e.id in ids)]
    if not entries:
        raise InputError(f"datalist: {datalist} has no pair without landmarks" + (f" called {ids}" if ids else ""))
    for name, members in by_set(entries).items():
        folder = Path(output_dir) / name
        pairs = [_written(entry, folder, turn, shift, axis) for entry in members]
        print(write_datalist(folder, members[0], "moved", pairs))


def _written(entry: PairEntry, folder: Path, turn: float, shift: float, axis: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    pair: dict[str, Any] = {"id": entry.id, **{role: str(path.resolve()) for role, path in entry.files.items()}}
    if entry.spacing:
        pair |= {"spacing": entry.spacing, "moving_spacing": entry.moving_spacing}
    for role in ("moving", "moving_label"):
        if role in entry.files:
            path, labels = entry.files[role], role != "moving"
            if path.suffix.lower() in PICTURES:
                pair[role] = f"{entry.id}_{role}.png"
                moved(path, turn, shift, labels=labels).save(folder / pair[role])
            else:
                pair[role] = f"{entry.id}_{role}.nii.gz"
                sitk.WriteImage(moved_volume(path, turn, shift, axis, labels=labels), str(folder / pair[role]))
    return pair


def moved(path: Path, turn: float, shift: float, *, labels: bool = False) -> Image.Image:
    """A picture turned about its middle by `turn` degrees, then shifted by `shift` of its longest side both ways."""
    try:
        picture = Image.open(path)
        picture.load()
    except OSError as error:
        raise InputError(f"datalist: {path}: cannot be moved, expected a picture ({error})") from error
    by = round(shift * max(picture.size))
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    return picture.rotate(turn, resample=how, translate=(by, by))


def moved_volume(path: Path, turn: float, shift: float, axis: int = 2, *, labels: bool = False) -> sitk.Image:
    """A volume turned about its middle by `turn` degrees about an axis of its array (about the last: from the first
    towards the second), then shifted by `shift` of its longest side along the first two. What comes in from outside is
    0 in label maps, else the lowest value.
    """
    try:
        volume = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"datalist: {path}: cannot be moved, expected a picture or a volume ({error})") from error
    if volume.GetDimension() != 3:
        raise InputError(f"datalist: {path}: cannot be moved, it has {volume.GetDimension()} axes; expected 3")
    directions = np.array(volume.GetDirection()).reshape(3, 3)
    by = shift * max(n * size for n, size in zip(volume.GetSize(), volume.GetSpacing(), strict=True))
    back = sitk.VersorRigid3DTransform()  # leads places of the new volume to the old one
    back.SetCenter(volume.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in volume.GetSize()]))
    back.SetRotation(directions[:, axis], -radians(turn) * float(np.sign(np.linalg.det(directions))))
    turned = np.array(back.GetMatrix()).reshape(3, 3)
    back.SetTranslation((-by * turned @ (directions[:, 0] + directions[:, 1])).tolist())
    lowest = 0.0 if labels else float(sitk.GetArrayViewFromImage(volume).min())
    how = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    return sitk.Resample(volume, volume, back, how, lowest)


if __name__ == "__main__":
    one_line_errors()
    sys.exit(fire.Fire(run))
