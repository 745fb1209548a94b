# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pairs made harder: `python -m scripts.moved_pairs --datalist FILES --output_dir OUT --turn 20 --shift 0.1`.

Moving images, their label maps and landmarks are turned, scaled and shifted before anything, volumes inside their
grids; what leaves the frame is lost, landmarks on both sides. Writes OUT/<set>/datalist.json for
`configs/evaluate.yaml`, whose sets are called `..._moved`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, radians
from pathlib import Path
from typing import Any

import fire
import numpy as np
import SimpleITK as sitk
from PIL import Image
from scipy import ndimage

from .datalist import PairEntry, by_set, read_datalists, read_landmarks, write_datalist
from .errors import InputError, one_line_errors
from .frames import Frame
from .readers import PICTURES, load


@dataclass(frozen=True)
class Motion:
    """How images are moved inside their frames.

    Attributes:
        turn: about the middle, counterclockwise, degrees; in volumes from the array's first axis towards the second,
            as `axis` is the last.
        scale: about the middle; above 1 things become larger.
        shift: afterwards, to the right and down, in volumes along the first two axes, relative to the longest side.
        axis: of a volume's array that it is turned about, 0, 1 or 2.

    Raises:
        InputError: numbers that are none, or a scale that is not above 0.
    """

    turn: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    axis: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.axis, bool) or not isinstance(self.axis, int) or self.axis not in (0, 1, 2):
            raise InputError(f"axis: {self.axis!r}, expected 0, 1 or 2")
        for name in ("turn", "scale", "shift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise InputError(f"{name}: {value!r}, expected a number")
        if self.scale <= 0:
            raise InputError(f"scale: {self.scale!r}, expected a number above 0")

    def picture(self, path: Path, *, labels: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """A picture moved, `[h, w]` or `[h, w, 3]` as stored, in pixels whatever their spacing, and the matrix `[3, 3]`
        that leads its pixels `(i, j)` to their new places. What comes in from outside is 0.
        """
        try:
            values, _, _ = load(path, labels=labels, frame=Frame())
        except InputError as error:
            raise InputError(f"datalist: {path}: cannot be moved, expected a picture ({error})") from error
        middle = (np.array(values.shape[1:]) - 1) / 2
        cos, sin = np.cos(radians(self.turn)), np.sin(radians(self.turn))
        ahead = np.eye(3)
        ahead[:2, :2] = self.scale * np.array([[cos, -sin], [sin, cos]])  # rows run downwards
        ahead[:2, 2] = middle - ahead[:2, :2] @ middle + round(self.shift * max(values.shape[1:]))
        back, dtype = np.linalg.inv(ahead), np.uint8 if values.dtype == bool else values.dtype
        moved = [
            ndimage.affine_transform(channel.astype(np.float64), back, order=0 if labels else 1, mode="grid-constant")
            for channel in values
        ]
        together = moved[0] if len(moved) == 1 else np.stack(moved, axis=-1)
        return (together if np.issubdtype(dtype, np.floating) else together.round()).astype(dtype), ahead

    def volume(self, path: Path, *, labels: bool = False) -> tuple[sitk.Image, np.ndarray]:
        """A volume moved, and the matrix `[4, 4]` that leads its voxels to their new places. What comes in from outside
        is 0 in label maps, else the lowest value.
        """
        try:
            volume = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise InputError(f"datalist: {path}: cannot be moved, expected a picture or a volume ({error})") from error
        if volume.GetDimension() != 3:
            raise InputError(f"datalist: {path}: cannot be moved, it has {volume.GetDimension()} axes; expected 3")
        directions = np.array(volume.GetDirection()).reshape(3, 3)
        by = self.shift * max(n * size for n, size in zip(volume.GetSize(), volume.GetSpacing(), strict=True))
        back = sitk.Similarity3DTransform()  # leads places of the new volume to the old one
        back.SetCenter(volume.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in volume.GetSize()]))
        back.SetRotation(directions[:, self.axis], -radians(self.turn) * float(np.sign(np.linalg.det(directions))))
        back.SetScale(1 / self.scale)
        matrix = np.array(back.GetMatrix()).reshape(3, 3)
        back.SetTranslation((-by * matrix @ (directions[:, 0] + directions[:, 1])).tolist())
        lowest = 0.0 if labels else float(sitk.GetArrayViewFromImage(volume).min())
        how = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
        corners = np.vstack([np.zeros(3), np.eye(3)])
        there = [
            volume.TransformPhysicalPointToContinuousIndex(
                back.GetInverse().TransformPoint(volume.TransformContinuousIndexToPhysicalPoint(corner.tolist()))
            )
            for corner in corners
        ]
        ahead = np.eye(4)
        ahead[:3, 3] = there[0]
        ahead[:3, :3] = (np.array(there[1:]) - there[0]).T
        return sitk.Resample(volume, volume, back, how, lowest), ahead


def run(
    datalist: str | Sequence[str],
    output_dir: str,
    ids: Sequence[str] | None = None,
    turn: float = 0.0,
    scale: float = 1.0,
    shift: float = 0.0,
    axis: int = 2,
) -> None:
    """Write the moved pairs and print the paths of their lists.

    Args:
        datalist: a JSON file or several; see `datalist`.
        output_dir: folder; made if missing.
        ids: names of the pairs that are wanted; all of them if none are given.
        turn, scale, shift, axis: see `Motion`.

    Raises:
        InputError: see `Motion`; no pair to move, an image that is neither picture nor volume, or landmarks that do not
            belong together or all leave the frame.
    """
    motion = Motion(turn, scale, shift, axis)
    wanted = [ids] if isinstance(ids, str) else ids
    entries = [entry for entry in read_datalists(datalist) if not wanted or entry.id in wanted]
    if not entries:
        raise InputError(f"datalist: {datalist} has no pair called {ids}")
    for name, members in by_set(entries).items():
        folder = Path(output_dir) / name
        pairs = [_written(entry, folder, motion) for entry in members]
        print(write_datalist(folder, members[0], "moved", pairs))


def _written(entry: PairEntry, folder: Path, motion: Motion) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    pair: dict[str, Any] = {"id": entry.id, **{role: str(path.resolve()) for role, path in entry.files.items()}}
    if entry.spacing or entry.moving_spacing:
        pair |= {"spacing": entry.spacing, "moving_spacing": entry.moving_spacing}
    for role in ("moving_label", "moving"):
        if role in entry.files:
            path, labels = entry.files[role], role != "moving"
            if path.suffix.lower() in PICTURES:
                picture, ahead = motion.picture(path, labels=labels)
                pair[role] = f"{entry.id}_{role}.{'png' if picture.dtype in (np.uint8, np.uint16) else 'tif'}"
                Image.fromarray(picture).save(folder / pair[role])
                shape = picture.shape[:2]
            else:
                pair[role] = f"{entry.id}_{role}.nii.gz"
                volume, ahead = motion.volume(path, labels=labels)
                sitk.WriteImage(volume, str(folder / pair[role]))
                shape = volume.GetSize()
    if "moving_landmarks" in entry.files:
        fixed, moving = (
            read_landmarks(entry.files[f"{side}_landmarks"], len(shape)).numpy() for side in ("fixed", "moving")
        )
        if fixed.shape != moving.shape:
            counts = f"{fixed.shape[1]} fixed and {moving.shape[1]} moving ones"
            raise InputError(f"datalist: landmarks of pair '{entry.id}': {counts}; rows must belong together")
        moving = ahead[:-1, :-1] @ moving + ahead[:-1, -1:]
        last = np.array(shape)[:, None] - 1
        stays = ((moving > -1e-3) & (moving < last + 1e-3)).all(0)  # on the border, but for rounding
        if not stays.any():
            raise InputError(f"datalist: pair '{entry.id}' keeps no landmark inside its frame; move it by less")
        for side, points in (("fixed", fixed), ("moving", moving)):
            pair[f"{side}_landmarks"] = f"{entry.id}_{side}_landmarks.csv"
            header = ",".join("ijk"[: len(shape)])
            np.savetxt(folder / pair[f"{side}_landmarks"], points[:, stays].T, "%.4f", ",", header=header, comments="")
    return pair


if __name__ == "__main__":
    one_line_errors()
    sys.exit(fire.Fire(run))
