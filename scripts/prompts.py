# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prompts: clicks and boxes that say what to segment.

A prompt is a set of points with labels (1 inside, 0 outside) or a box, in voxels of the image it was given on, array
order. Several prompts of one kind are kept together in `Prompts`, which every stage passes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .geometry import bounding_box, transform_points


@dataclass(frozen=True)
class Prompts:
    """N prompts of one kind on one image.

    Attributes:
        coordinates: `[N, P, D]` voxels: P labelled points, or P = 2 for the first and last corner of boxes.
        labels: `[N, P]` int, 1 = inside the structure, 0 = outside, -1 = padding; None for boxes.
        masks: `[N, *mask]` logits over the model's input, as `decode` returned them, for models that refine a mask.
    """

    coordinates: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None

    @property
    def kind(self) -> str:
        """ "box" or "point"."""
        return "box" if self.labels is None else "point"

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Prompts:
        return self._each(lambda values: values[index])

    def at(self, coordinates: Tensor) -> Prompts:
        """The same prompts at other coordinates `[N, P, D]`."""
        return replace(self, coordinates=coordinates)

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on a device."""
        return self._each(lambda values: values.to(device))

    def transformed(self, matrix: Tensor) -> Prompts:
        """The same prompts in the coordinates that a homogeneous matrix `[D+1, D+1]` leads to."""
        return self.at(transform_points(matrix, self.coordinates.movedim(-1, 0)).movedim(0, -1))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prompts:
        labels, masks = (None if part is None else change(part) for part in (self.labels, self.masks))
        return Prompts(change(self.coordinates), labels, masks)


@dataclass(frozen=True)
class GivenPrompt:
    """One prompt as a person or another system gave it, on the moving image.

    Attributes:
        id: name that outputs carry.
        points: `[P, D]` voxels; the two corners for a box.
        labels: `[P]` of 1 and 0; None for a box.
    """

    id: str
    points: Tensor
    labels: Tensor | None


def read_given(source: str | Path | Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Prompts as plain entries, from inline lists or a JSON file; None when there are none (then they are sampled).

    Accepted, D = 2 or 3 coordinates per point in array order:
    `[[i, j], ...]` clicks; `[[[i, j], [i, j]], ...]` boxes (first and last corner); or entries, also under the key
    "prompts" of an object, mask paths relative to the file: `{"id": "liver", "point": [i, j]}`, `{"points": [[i, j],
    ...], "labels": [1, 0, ...]}`, `{"box": [[i, j], [i, j]]}`, `{"mask": "file", "label": 3}` (every label of the mask
    when "label" is left out).

    Raises:
        InputError: when the file is missing or malformed, or an entry has none of these forms.
    """
    if source is None or (isinstance(source, str) and not source):
        return None
    folder = Path(source).parent if isinstance(source, str | Path) else Path()
    if isinstance(source, str | Path):
        source = _read_json(Path(source))
    if isinstance(source, Mapping):
        source = source.get("prompts", source)
    if not isinstance(source, Sequence) or isinstance(source, str) or not source:
        raise InputError(f"prompts: expected a list with at least one prompt, e.g. [[120, 84]], got {source!r}")
    entries = [_entry(item, number) for number, item in enumerate(source, start=1)]
    return [{**e, "mask": str(folder / e["mask"])} if isinstance(e.get("mask"), str) else e for e in entries]


def _read_json(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"prompts: there is no file {file}; give a JSON file or an inline list such as [[120, 84]]")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: {file} is not valid JSON ({error})") from error


def _entry(item: Any, number: int) -> dict[str, Any]:
    keys = {"point", "points", "box", "mask"}
    if isinstance(item, Mapping):
        beside = {"points": {"labels"}, "mask": {"label"}}
        kinds = keys & item.keys()
        if len(kinds) != 1 or item.keys() - kinds - {"id"} - beside.get(next(iter(kinds)), set()):
            raise InputError(
                f"prompts: number {number} has the keys {sorted(item)}; expected exactly one of {sorted(keys)}, and "
                "beside it only 'id', 'labels' (with 'points') or 'label' (with 'mask')"
            )
        return {"id": str(number), **item}
    nested = isinstance(item, Sequence) and len(item) > 0 and isinstance(item[0], Sequence)
    return {"id": str(number), ("box" if nested else "point"): item}


def given_prompts(
    entries: list[dict[str, Any]],
    shape: tuple[int, ...],
    to_voxel: Tensor | None,
    masks: Mapping[str, Tensor],
    *,
    side: str = "moving",
) -> list[GivenPrompt]:
    """Check entries of `read_given` against the image they were given on.

    Args:
        entries: plain entries.
        shape: size of the image.
        to_voxel: `[D+1, D+1]` matrix from world millimetres when prompts are in world space, else None.
        masks: label maps `[*shape]` by the path an entry names.
        side: "moving" or "fixed", for messages.

    Raises:
        InputError: for a wrong number of coordinates, wrong labels, an empty box or mask, or a point outside the image.
    """
    prompts = []
    for entry in entries:
        name = f"prompts: '{entry['id']}'"
        if "mask" in entry:
            prompts += _from_mask(entry, masks[entry["mask"]], name)
            continue
        box = "box" in entry
        raw = entry["box"] if box else entry.get("points", [entry.get("point")])
        points = _points(raw, len(shape), name, side)
        if to_voxel is not None:
            points = transform_points(to_voxel, points.T.double()).T.float()
        _check_inside(points, shape, name, side)
        labels = None if box else _labels(entry.get("labels"), len(points), name)
        if box:
            if len(points) != 2:
                raise InputError(f"{name}: a box needs two corners, got {len(points)} points")
            points = torch.stack([points.amin(0), points.amax(0)])  # world axes may run against the array's
            if (points[1] - points[0]).amin() <= 0:
                raise InputError(
                    f"{name}: the box {points.tolist()} is empty; its corners must differ along every axis"
                )
        prompts.append(GivenPrompt(str(entry["id"]), points, labels))
    repeated = sorted({p.id for p in prompts if sum(q.id == p.id for q in prompts) > 1})
    if repeated:
        raise InputError(f"prompts: the ids {repeated} are used more than once; ids must differ")
    return prompts


def _points(raw: Any, dims: int, name: str, side: str) -> Tensor:
    try:
        points = torch.tensor(raw, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: {raw!r} is no list of points; expected {dims} numbers per point") from error
    if points.ndim != 2 or points.shape[1] != dims:
        raise InputError(
            f"{name}: {raw!r} has the wrong length; the {side} image has {dims} axes, so a point is {dims} numbers"
        )
    if not points.isfinite().all():
        raise InputError(f"{name}: {raw!r} holds NaN or infinite coordinates")
    return points


def _labels(raw: Any, count: int, name: str) -> Tensor:
    labels = [1] * count if raw is None else raw
    if not isinstance(labels, Sequence) or len(labels) != count or any(label not in (0, 1) for label in labels):
        raise InputError(
            f"{name}: labels are {raw!r}; expected one of 1 (inside) or 0 (outside) for each of {count} points"
        )
    if 1 not in labels:
        raise InputError(f"{name}: all labels are 0; at least one point must lie inside the structure (label 1)")
    return torch.tensor(labels)


def _check_inside(points: Tensor, shape: tuple[int, ...], name: str, side: str) -> None:
    last = torch.tensor(shape) - 1
    for point in points:
        if (point < -0.5).any() or (point > last + 0.5).any():
            place = [round(x, 2) for x in point.tolist()]
            raise InputError(f"{name}: voxel {place} lies outside the {side} image of size {list(shape)}")


def _from_mask(entry: dict[str, Any], mask: Tensor, name: str) -> list[GivenPrompt]:
    present = [int(v) for v in mask.unique() if v != 0]
    if not isinstance(entry.get("label", 1), int):
        raise InputError(f"{name}: label is {entry['label']!r}, expected a whole number")
    wanted = [int(entry["label"])] if "label" in entry else present
    if not present or not set(wanted) <= set(present):
        raise InputError(f"{name}: the mask {entry['mask']} has the labels {present}, but {wanted or 'one'} is needed")
    boxes = {label: bounding_box(mask == label) for label in wanted}
    ids = {label: str(entry["id"]) if "label" in entry else f"{entry['id']}:{label}" for label in wanted}
    # Half a voxel outwards: a box spans voxels, not their centres, and a thin structure must not get an empty one.
    outwards = torch.tensor([[-0.5], [0.5]])
    return [GivenPrompt(ids[label], box + outwards, None) for label, box in boxes.items() if box is not None]


def batched(prompts: list[GivenPrompt]) -> Prompts | None:
    """The prompts as one batch when all are clicks or all are boxes, else None. Missing points get the label -1."""
    if all(p.labels is None for p in prompts):
        return Prompts(torch.stack([p.points for p in prompts]))
    if any(p.labels is None for p in prompts):
        return None
    return concatenated([Prompts(p.points[None], None if p.labels is None else p.labels[None]) for p in prompts])


def concatenated(parts: list[Prompts]) -> Prompts:
    """Prompts of one kind, without masks, as one batch. Missing points get the label -1."""
    longest = max(part.coordinates.shape[1] for part in parts)
    points, labels = [], []
    for part in parts:
        missing = longest - part.coordinates.shape[1]
        points.append(torch.cat([part.coordinates, part.coordinates[:, :1].expand(-1, missing, -1)], dim=1))
        if part.labels is not None:
            labels.append(torch.cat([part.labels, part.labels.new_full((len(part), missing), -1)], dim=1))
    return Prompts(torch.cat(points), torch.cat(labels) if labels else None)
