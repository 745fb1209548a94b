# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pictures with landmarks: FIRE, ANHIR (and CIMA by a table of pairs), CIMA by its folders.

Pictures are used where they lie; landmark files (x first) become CSV files in our order.

Layouts as documented:
- FIRE: `Images/A01_1.jpg`, `Ground Truth/control_points_A01_1_2.txt`, a row "x1 y1 x2 y2" per point, in pixels of the
  full size (https://projects.ics.forth.gr/cvrl/fire/). Taken as 0-based.
- ANHIR: a table with "Source image", "Source landmarks", "Target image", "Target landmarks" and, in the challenge's
  own, "status" (https://anhir.grand-challenge.org/Data/; tables and examples in github.com/Borda/BIRL); paths relative
  to the table. Landmarks: CSV ",X,Y", origin in the top left corner (github.com/Borda/dataset-histology-landmarks).
- CIMA: `<set>/scale-<n>pc/<image>.jpg` with `<image>.csv` beside it (the same repository's README).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from .builder import Card, DataSet, Entry, Request, chosen, entry, existing, first_folder, within
from .files import read_rows, write_landmarks

SIDES = ("Target", "Source")  # ANHIR warps the source to the target: fixed and moving


def _fire(card: Card, request: Request) -> tuple[list[Entry], str]:
    images, truth = (first_folder(card, request.folder, name) for name in ("Images", "Ground Truth"))
    kind = "?" if request.split == "all" else request.split
    files = sorted(truth.glob(f"control_points_{kind}*.txt"))
    made = []
    for file in chosen(card, truth, files, request):
        parts = file.stem.removeprefix("control_points_").split("_")
        if len(parts) != 3:
            raise InputError(f"{card.name}: {file}: is not named control_points_<id>_<a>_<b>.txt")
        name, *numbers = parts
        try:
            rows = np.loadtxt(file, ndmin=2)
        except ValueError as error:
            raise InputError(f"{card.name}: {file}: has no rows of four numbers x1 y1 x2 y2 ({error})") from error
        if rows.shape[1] != 4:
            raise InputError(f"{card.name}: {file}: has {rows.shape[1]} columns; expected x1 y1 x2 y2")
        points = [
            write_landmarks(request.output_dir / f"{name}_{number}.csv", rows[:, [2 * side + 1, 2 * side]])
            for side, number in enumerate(numbers)
        ]
        pictures = [images / f"{name}_{number}.jpg" for number in numbers]
        made.append(entry(card, name, pictures[0], pictures[1], landmarks=points))
    return made, ""


def _anhir(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, ".")
    needed = {f"{side} {what}" for side in SIDES for what in ("image", "landmarks")}
    tables = [path for path in sorted(home.glob("*.csv")) if needed <= set(read_rows(path)[0])]
    if len(tables) != 1:
        raise InputError(f"{card.name}: {home}: {len(tables)} tables of pairs, 1 needed; expected {card.layout}")
    rows = [
        (k, row)
        for k, row in enumerate(read_rows(tables[0])[1])
        if request.split in ("all", row.get("status") or "training")
    ]
    made = []
    for k, row in chosen(card, tables[0], rows, request):
        name = f"{row.get('') or k}_{_safe(row['Target image'].split('/')[0])}"
        points = [row[f"{side} landmarks"] for side in SIDES]
        files = [_landmark_file(home, path) if path else None for path in points]
        pictures = [home / row[f"{side} image"] for side in SIDES]
        landmarks = []
        if row.get("status") != "evaluation" or all(file and file.exists() for file in files):
            both = [_xy(card, file or home / "landmarks") for file in files]
            landmarks = _common(both, request.output_dir, name)
        made.append(entry(card, name, pictures[0], pictures[1], landmarks=landmarks))
    return made, f"Table {tables[0].name}, status {request.split}."


def _landmark_file(home: Path, path: str) -> Path:
    """Landmarks come in an archive of their own: beside the images or in `landmarks/`."""
    return home / path if (home / path).exists() else home / "landmarks" / path


def _cima(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, "dataset", ".")
    pairs = []
    for folder in sorted(home.glob(f"*/scale-{request.split}")):
        images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")}
        pairs += [(folder.parent.name, images[a], images[b]) for a, b in within(list(images))]
    made = []
    for group, fixed, moving in chosen(card, home, pairs, request):
        name = _safe(f"{group}__{fixed.stem}__{moving.stem}")
        points = [_xy(card, existing(card, path.with_suffix(".csv"))) for path in (fixed, moving)]
        made.append(entry(card, name, fixed, moving, landmarks=_common(points, request.output_dir, name)))
    return made, f"Scale {request.split}, every unordered pair within a set."


def _xy(card: Card, path: Path) -> np.ndarray:
    """Points `[N, 2]` (i, j) of a CSV with columns X and Y."""
    names, rows = read_rows(existing(card, path))
    try:
        points = np.array([[row["Y"], row["X"]] for row in rows], dtype=np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{card.name}: {path}: has the columns {names}; expected X and Y with numbers") from error
    if not len(points):
        raise InputError(f"{card.name}: {path}: has no points; expected rows of X and Y")
    return points


def _common(points: list[np.ndarray], output_dir: Path, name: str) -> list[Path]:
    """Two landmark files of one pair: some annotators placed more points in one image, added at the end."""
    count = min(len(p) for p in points)
    sides = zip(("fixed", "moving"), points, strict=True)
    return [write_landmarks(output_dir / "landmarks" / f"{name}_{side}.csv", p[:count]) for side, p in sides]


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", text)


FIRE = DataSet(
    Card(
        name="fire",
        application="retina",
        dim=2,
        kind="intra",
        origin="FIRE, https://projects.ics.forth.gr/cvrl/fire/",
        licence="FIRE: research use, cite; do not redistribute",
        citation="Hernandez-Matas et al., FIRE: Fundus Image Registration Dataset, Journal for Modeling in "
        "Ophthalmology 2017",
        unit="px",
        note="Fixed: the first picture of a file of control points, moving: the second. Classes by the first letter: S "
        "large overlap, P small overlap, A change in anatomy.",
        access="by hand, free",
        layout="Images/A01_1.jpg and 'Ground Truth/control_points_A01_1_2.txt' with rows x1 y1 x2 y2",
        splits=("all", "S", "P", "A"),
    ),
    _fire,
)
_HISTOLOGY = {
    "application": "histology",
    "dim": 2,
    "kind": "multimodal",
    "unit": "px",
    "access": "by hand, free (ANHIR: after registration)",
}
ANHIR = DataSet(
    Card(
        name="anhir",
        origin="ANHIR, https://anhir.grand-challenge.org/, or another table of pairs in its form (CIMA, BIRL)",
        licence="each of its data sets has its own, see https://anhir.grand-challenge.org/Data/",
        citation="Borovec et al., ANHIR, IEEE TMI 39(10), 2020, doi 10.1109/TMI.2020.2986331",
        note="The challenge's pairs: fixed is the target, moving the source. The first points that both images have "
        "are used. Landmarks of its evaluation part are not public.",
        layout="a table *.csv with Source/Target image/landmarks, images and landmarks at its paths (or landmarks/)",
        splits=("training", "evaluation", "all"),
        **_HISTOLOGY,  # type: ignore[arg-type]
    ),
    _anhir,
)
CIMA = DataSet(
    Card(
        name="cima",
        origin="CIMA histology landmarks, http://cmp.felk.cvut.cz/~borovji3/?page=dataset and "
        "https://github.com/Borda/dataset-histology-landmarks",
        licence="BSD-style licence of Borda/dataset-histology-landmarks",
        citation="Borovec et al., ANHIR, IEEE TMI 2020; Borovec et al., BIRL, 2018",
        note="Neighbouring sections in different stains. The first points that both images have are used.",
        layout="<set>/scale-<n>pc/<image>.jpg (or .png) and <image>.csv with X,Y beside it",
        splits=("10pc", "5pc", "25pc", "50pc", "100pc"),
        **_HISTOLOGY,  # type: ignore[arg-type]
    ),
    _cima,
)
