# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Lists of pairs to evaluate: one JSON file per set, with the truth that scores them.

    {"name": "slices2d", "application": "prostate", "unit": "px", "pairs": [
        {"id": "s1_s2", "fixed": "s1.png", "moving": "s2.png", "fixed_label": "l1.png", "moving_label": "l2.png"}, ...]}

Paths are relative to the file's own folder. Per pair, all optional: "fixed_label" and "moving_label" (label maps),
"fixed_landmarks" and "moving_landmarks" (CSV, header `i,j` or `i,j,k`, voxels), "spacing" and "moving_spacing" (mm;
pictures only, volumes know theirs), "no_truth". Per set: "label_groups" (name -> labels merged for an extra score).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

TRUTH = ("fixed_label", "moving_label", "fixed_landmarks", "moving_landmarks")
SAFE = re.compile(r"[\w][\w .+=,-]*")  # ids become names of folders


@dataclass(frozen=True)
class PairEntry:
    """One pair of a list.

    Attributes:
        id: its name, unique in the set; set: "application/name" of the list.
        unit: of distances, "mm", "px" or "vox".
        files: paths by role: "fixed", "moving" and those of `TRUTH` that there are.
        spacing, moving_spacing: voxel sizes that pictures do not store themselves; None: as the image says.
        groups: name -> labels that count as one in an extra score.
    """

    id: str
    set: str
    unit: str
    files: dict[str, Path]
    spacing: tuple[float, ...] | None = None
    moving_spacing: tuple[float, ...] | None = None
    groups: dict[str, list[int]] = field(default_factory=dict)

    def exchanged(self) -> PairEntry:
        """The same pair with the roles of its images exchanged, in a set of its own: tables and folders must say so."""
        other = {"fixed": "moving", "moving": "fixed"}
        files = {re.sub("fixed|moving", lambda side: other[side[0]], role): path for role, path in self.files.items()}
        name, spacing, moving_spacing = f"{self.set}_exchanged", self.moving_spacing, self.spacing
        return replace(self, set=name, files=files, spacing=spacing, moving_spacing=moving_spacing)

    def digest(self) -> str:
        """SHA-256 of the contents of the pair's files; a missing one counts as such."""
        total = hashlib.sha256()
        for role, path in sorted(self.files.items()):
            content = path.read_bytes() if path.is_file() else b"missing"
            if path.is_dir():  # a DICOM series
                content = b"".join(
                    hashlib.sha256(p.read_bytes()).digest() for p in sorted(path.iterdir()) if p.is_file()
                )
            total.update(role.encode() + hashlib.sha256(content).digest())
        return total.hexdigest()


def read_datalists(paths: str | Sequence[str]) -> list[PairEntry]:
    """Pairs of one or more lists, in order.

    Args:
        paths: a JSON file, or several.

    Raises:
        InputError: no such file, not in this form, an id twice or not fit for a folder's name.
    """
    chosen = [paths] if isinstance(paths, str | Path) else list(paths or [])
    if not chosen or not all(chosen):
        raise InputError("datalist: none given; expected the path of a datalist.json, or a list of paths")
    entries = [entry for path in chosen for entry in _read(Path(path))]
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.set, entry.id) in seen:
            raise InputError(f"datalist: the pair '{entry.id}' of the set '{entry.set}' is there twice; rename one")
        seen.add((entry.set, entry.id))
    return entries


def by_set(entries: Sequence[PairEntry]) -> dict[str, list[PairEntry]]:
    """Pairs by the name of their set, in order."""
    sets: dict[str, list[PairEntry]] = defaultdict(list)
    for entry in entries:
        sets[entry.set].append(entry)
    return sets


def write_datalist(folder: Path, like: PairEntry, kind: str, pairs: list[dict[str, Any]]) -> Path:
    """Write `folder`/datalist.json of pairs made from the set of `like`, called that set's name and `_kind`."""
    application, _, last = like.set.rpartition("/")
    about = {"name": f"{last}_{kind}", "application": application, "unit": like.unit, "label_groups": like.groups}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datalist.json").write_text(json.dumps({**about, "pairs": pairs}, indent=1), encoding="utf-8")
    return folder / "datalist.json"


def read_landmarks(path: Path, dims: int, *, axes: str = "ijk") -> Tensor:
    """Landmarks `[D, N]` in voxels, array order, from a CSV with the header `i,j` or `i,j,k`.

    Args:
        path: the file.
        dims: axes of its image.
        axes: names of the columns; "xyz" for points in RAS millimetres.

    Raises:
        InputError: another header, no rows, or values that are no finite numbers.
    """
    header = ",".join(axes[:dims])
    try:
        first, *rows = path.read_text(encoding="utf-8").split()
        points = np.array([row.split(",") for row in rows], dtype=np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as landmarks ({error}); expected CSV with header {header}") from error
    if first != header or points.ndim != 2 or points.shape[1] != dims or not np.isfinite(points).all():
        raise InputError(f"{path}: no landmarks of this image; expected CSV with header {header} and finite numbers")
    return torch.from_numpy(points.T.copy())


def _read(path: Path) -> list[PairEntry]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"datalist: {path}: cannot be read as JSON ({error})") from error
    pairs = content.get("pairs") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
        raise InputError(f'datalist: {path}: expected {{"name": ..., "pairs": [{{"id", "fixed", "moving"}}, ...]}}')
    parts = [content.get("application"), content.get("name") or path.resolve().parent.name]
    name = "/".join(str(part) for part in parts if part)
    if not all(SAFE.fullmatch(part) for part in name.split("/")):
        raise InputError(f"datalist: {path}: '{name}' cannot name a folder; use letters, digits, '_' and '-'")
    return [_entry(path, name, content, pair) for pair in pairs]


def _entry(path: Path, name: str, content: dict[str, Any], pair: dict[str, Any]) -> PairEntry:
    lacking = [key for key in ("id", "fixed", "moving") if not isinstance(pair.get(key), str) or not pair[key]]
    if lacking:
        raise InputError(f"datalist: {path}: a pair lacks {lacking}: {json.dumps(pair)[:100]}")
    if not SAFE.fullmatch(pair["id"]):
        raise InputError(f"datalist: {path}: the id '{pair['id']}' cannot name a folder; use letters, digits, '_', '-'")
    if ("fixed_landmarks" in pair) != ("moving_landmarks" in pair):
        raise InputError(f"datalist: {path}: pair '{pair['id']}' has landmarks on one side only; give both or none")
    roles = ("fixed", "moving", *([] if pair.get("no_truth") else TRUTH))
    sizes = {key: tuple(map(float, pair[key])) for key in ("spacing", "moving_spacing") if pair.get(key)}
    return PairEntry(
        id=pair["id"],
        set=name,
        unit=str(content.get("unit", "mm")),
        files={role: path.parent / pair[role] for role in roles if pair.get(role)},
        spacing=sizes.get("spacing"),
        moving_spacing=sizes.get("moving_spacing", sizes.get("spacing")),
        groups={str(group): list(labels) for group, labels in (content.get("label_groups") or {}).items()},
    )
