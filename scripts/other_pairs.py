# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pairs that a list does not name, of the images that it does: `python -m scripts.other_pairs others|slices ...`.

    others --datalist FILES --output_dir OUT --most 8          # listed in neither direction
    slices --datalist FILES --output_dir OUT --at "[1,2,3]"    # slices of pairs of volumes, as pictures

A second look at what settings were chosen on. Writes OUT/<set>_others/datalist.json or OUT/<set>_slices/datalist.json
for `configs/evaluate.yaml`.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import fire
import torch
from PIL import Image
from torch import Tensor

from .datalist import PairEntry, by_set, read_datalists, write_datalist
from .errors import InputError, one_line_errors
from .images import read_image, read_labels
from .segmenters.slices import normal_axis

SIDES = ("fixed", "moving")


def others(datalist: str | Sequence[str], output_dir: str, most: int | None = None, seed: int = 0) -> None:
    """Write all ordered pairs of a set's images that it lists in neither direction, and print the paths of the lists.

    Args:
        datalist: a JSON file or several; see `datalist`.
        output_dir: folder; made if missing.
        most: of a set, drawn with `seed`; None: all.

    Raises:
        InputError: a set that names every pair already, or `most` is no whole number from 1 on.
    """
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise InputError(f"most: {most!r}, expected a whole number from 1 on")
    for name, entries in by_set(read_datalists(datalist)).items():
        images = {entry.files[side]: _side(entry, side) for entry in entries for side in SIDES}
        listed = {frozenset(entry.files[side] for side in SIDES) for entry in entries}
        pairs = []
        for fixed, moving in permutations(images, 2):
            if frozenset((fixed, moving)) not in listed:
                roles = {"fixed": images[fixed], "moving": images[moving]}
                pair = {f"{side}{what}": value for side, known in roles.items() for what, value in known.items()}
                spacing = {"spacing": pair.pop("fixed_spacing"), "moving_spacing": pair.pop("moving_spacing")}
                pairs.append({"id": "_".join(_short(path) for path in (fixed, moving)), **pair, **spacing})
        if not pairs:
            raise InputError(f"datalist: the set '{name}' names every pair of its images already")
        drawn = pairs if most is None or most >= len(pairs) else random.Random(seed).sample(pairs, most)
        print(write_datalist(Path(output_dir) / f"{name}_others", entries[0], "others", drawn))


def slices(datalist: str | Sequence[str], output_dir: str, at: Sequence[int]) -> None:
    """Cut pairs of volumes on one grid into pairs of 8-bit pictures, and print the paths of their lists.

    Args:
        datalist: a JSON file or several, of volumes with label maps; see `datalist`.
        output_dir: folder; made if missing.
        at: slices that are cut, from 0, along the axis that "auto" stacks slices along.

    Raises:
        InputError: images of two grids, no volumes, without label maps of 0 to 255, or without such a slice.
    """
    if not isinstance(at, list | tuple) or not at or not all(type(k) is int for k in at):
        raise InputError(f"at: {at!r}, expected whole numbers such as [1,2,3]")
    for name, entries in by_set(read_datalists(datalist)).items():
        folder, pairs = Path(output_dir) / f"{name}_slices", []
        pictures: dict[str, Image.Image] = {}  # saved once all of them are known to be good
        for entry in entries:
            read = {side: _volume(entry, side) for side in SIDES}
            shapes = [tuple(grey.shape) for grey, _, _ in read.values()]
            if shapes[0] != shapes[1] or not all(0 <= k < shapes[0][-1] for k in at):
                raise InputError(f"at: {list(at)} are no slices of both volumes of '{entry.id}', {shapes}")
            for k in at:
                pair: dict[str, Any] = {"id": f"{entry.id}_{k}"}
                for (side, (*volumes, spacing)), size in zip(read.items(), ("spacing", "moving_spacing"), strict=True):
                    pair[size] = spacing
                    for what, volume in zip(("", "_label"), volumes, strict=True):
                        pair[f"{side}{what}"] = f"{pair['id']}_{side}{what}.png"
                        pictures[pair[f"{side}{what}"]] = Image.fromarray(volume[..., k].byte().numpy())
                pairs.append(pair)
        folder.mkdir(parents=True, exist_ok=True)
        for file, picture in pictures.items():
            picture.save(folder / file)
        print(write_datalist(folder, entries[0], "slices", pairs))


def _side(entry: PairEntry, side: str) -> dict[str, Any]:
    """An image of a pair and what is known about it, by what follows "fixed" or "moving" in its roles."""
    files = {r.removeprefix(side): str(path.resolve()) for r, path in entry.files.items() if r.startswith(side)}
    return files | {"_spacing": entry.spacing if side == "fixed" else entry.moving_spacing}


def _short(path: Path) -> str:
    return re.sub(r"_image$", "", path.name.split(".")[0])


def _volume(entry: PairEntry, side: str) -> tuple[Tensor, Tensor, list[float]]:
    """Grey values from 0 to 255 and labels `[*, *, n]`, slices last, and the size of their pixels, mm."""
    if f"{side}_label" not in entry.files:
        raise InputError(f"datalist: {entry.id} has no {side}_label")
    values, info = read_image(entry.files[side], name=side)
    labels, _ = read_labels(entry.files[f"{side}_label"], name=f"{side}_label")
    if values.ndim != 4 or labels.shape != values.shape[1:]:
        raise InputError(f"datalist: {entry.files[side]} is no volume with a label map of its size")
    if labels.amin() < 0 or labels.amax() > 255:
        raise InputError(
            f"datalist: {entry.files[f'{side}_label']} has labels beyond 0 to 255, which a PNG cannot hold"
        )
    grey = values[0] - values[0].amin()
    top = torch.quantile(grey.flatten()[:: max(1, grey.numel() // 1_000_000)], 0.998).clamp(min=1e-6)
    world = normal_axis("auto", [info.affine], [labels.shape])
    along = int(info.affine[world, :3].abs().argmax())
    spacing = [s for axis, s in enumerate(info.spacing) if axis != along]
    return ((grey / top).clamp(0, 1) * 255).movedim(along, -1), labels.movedim(along, -1), spacing


if __name__ == "__main__":
    one_line_errors()
    sys.exit(fire.Fire({"others": others, "slices": slices}))
