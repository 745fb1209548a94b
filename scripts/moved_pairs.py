# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pairs made harder: `python -m scripts.moved_pairs --datalist FILES --output_dir OUT --turn 20 --shift 0.1`.

Moving pictures and their label maps are turned and shifted before anything; what leaves the frame is lost. Writes
OUT/<set>/datalist.json for `configs/evaluate.yaml`, whose sets are called `..._moved`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import fire
from PIL import Image

from .datalist import PairEntry, by_set, read_datalists, write_datalist
from .errors import InputError, one_line_errors


def run(
    datalist: str | Sequence[str],
    output_dir: str,
    ids: Sequence[str] | None = None,
    turn: float = 0.0,
    shift: float = 0.0,
) -> None:
    """Write the moved pairs and print the paths of their lists.

    Args:
        datalist: a JSON file or several, of pairs of pictures; see `datalist`. Pairs with landmarks are left out.
        output_dir: folder; made if missing.
        ids: names of the pairs that are wanted; all of them if none are given.
        turn: counterclockwise, degrees.
        shift: to the right and down, relative to the longest side.

    Raises:
        InputError: numbers that are none, no pair to move, or an image that is no picture.
    """
    for name, value in (("turn", turn), ("shift", shift)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{name}: {value!r}, expected a number")
    entries = [e for e in read_datalists(datalist) if "moving_landmarks" not in e.files and (not ids or e.id in ids)]
    if not entries:
        raise InputError(f"datalist: {datalist} has no pair without landmarks" + (f" called {ids}" if ids else ""))
    for name, members in by_set(entries).items():
        folder = Path(output_dir) / name
        pairs = [_written(entry, folder, turn, shift) for entry in members]
        print(write_datalist(folder, members[0], "moved", pairs))


def _written(entry: PairEntry, folder: Path, turn: float, shift: float) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    pair: dict[str, Any] = {"id": entry.id, **{role: str(path.resolve()) for role, path in entry.files.items()}}
    if entry.spacing:
        pair |= {"spacing": entry.spacing, "moving_spacing": entry.moving_spacing}
    for role in ("moving", "moving_label"):
        if role in entry.files:
            pair[role] = f"{entry.id}_{role}.png"
            moved(entry.files[role], turn, shift, labels=role != "moving").save(folder / pair[role])
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


if __name__ == "__main__":
    one_line_errors()
    sys.exit(fire.Fire(run))
