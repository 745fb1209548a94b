# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Patches of tissue cores and of Zurich as published for evaluating registration, and cores from the original record.

The paper's samples (github.com/sqhuang0103/SAMReg: `zh7_01_04_R.png`, `1B_I2_T.tif`) are evaluation patches of Zenodo
5557568, made from Zurich Summer and from Zenodo 4550300 (github.com/MIDA-group/MultiRegEval, `Datasets/README.md` and
`utils/`, which document these layouts): R is the reference, T the patch after a rigid transformation of level n = 1 to
4: a rotation of 5(n-1) to 5n degrees and, per axis, a shift of 7(n-1) to 7n px (Zurich) or 20(n-1) to 20n px (tissue).
Its tables hold the corners of T, x first, and where they lie in R.

Zenodo 4550300 holds bright-field and second-harmonic pictures of the SAME 134 cores (`HighRes_Splits/WSI/test/
<id>_BF.tif`, `<id>_SHG.tif`), no consecutive sections: `tma` makes such pairs of the bright-field pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .builder import Card, DataSet, Entry, Request, chosen, entry, existing, first_folder
from .files import grid, read_rows
from .turned import LEVELS, MADE, turned_pair, write_exact_landmarks

CORE_PATCH, CORE_SHIFT = 834, 20  # pixels; shift per level


def _tma(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, "HighRes_Splits/WSI/test", "WSI/test", "test", ".")
    made = []
    for path in chosen(card, home, sorted(home.glob("*_BF.tif")), request):
        shape = grid(path)[0]
        if min(shape) < CORE_PATCH:
            raise InputError(f"{card.name}: {path}: has shape {shape}; at least {CORE_PATCH} px a side are needed")
        with Image.open(path) as file:
            picture = np.asarray(file.convert("RGB"))
        corner = [(side - CORE_PATCH) // 2 for side in shape]
        name = path.stem.removesuffix("_BF")
        made.append(
            turned_pair(card, request, name, picture, None, (corner[0], corner[1]), size=CORE_PATCH, step=CORE_SHIFT)
        )
    return made, f"Level {request.split}."


def _patches(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, card.layout.split("/")[0], ".")
    rows = [
        (path.parent, row)
        for path in sorted(home.glob(f"**/patch_tlevel{request.split}/info_test.csv"))
        for row in read_rows(path)[1]
    ]
    made = []
    for folder, row in chosen(card, home, rows, request):
        name = row["Filename"]
        images = [next(iter(sorted((folder / "B" / "test").glob(f"{name}_{side}.*"))), None) for side in "RT"]
        fixed, moving = (
            image or existing(card, folder / "B" / "test" / f"{name}_{side}")
            for image, side in zip(images, "RT", strict=True)
        )
        points = write_exact_landmarks(request.output_dir, name, grid(fixed)[0][0], _recorded(card, folder, row))
        made.append(entry(card, name, fixed, moving, landmarks=points))
    return made, f"Level {request.split}, modality B on both sides."


def _recorded(card: Card, folder: Path, row: dict[str, str]) -> np.ndarray:
    """Matrix of `rigid` from the corners in the record's table, which are x first."""
    try:
        corners = {k: [[float(row[f"{axis}{n}_{k}"]) for axis in "YX"] for n in (1, 2, 3, 4)] for k in ("Ref", "Trans")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{card.name}: {folder / 'info_test.csv'}: has no corners X1_Ref ... Y4_Trans") from error
    before = np.column_stack([corners["Ref"], np.ones(4)])
    matrix = np.eye(3)
    matrix[:2] = np.linalg.lstsq(before, np.array(corners["Trans"]), rcond=None)[0].T
    return matrix


_RECORD = "Lu et al., Is Image-to-Image Translation the Panacea for Multimodal Image Registration?, PLOS ONE 2022, doi "
_COMMON = {"dim": 2, "kind": "semi-synthetic", "unit": "px", "splits": LEVELS, "paper": True}
TMA = DataSet(
    Card(
        name="tma",
        application="histology",
        origin="Zenodo 4550300, bright-field pictures of tissue cores, https://zenodo.org/record/4550300",
        licence="as its Zenodo page says",
        citation="Eliceiri et al., Multimodal Biomedical Dataset for Evaluating Registration Methods (Full-Size TMA "
        "Cores), doi 10.5281/zenodo.4550300",
        note=MADE + "Patches of 834 px from the middle, so that the round border does not show.",
        access="by hand, free",
        layout="HighRes_Splits/WSI/test/<id>_BF.tif",
        **_COMMON,  # type: ignore[arg-type]
    ),
    _tma,
)
ZURICH_PATCHES = DataSet(
    Card(
        name="zurich_patches",
        application="aerial",
        origin="Zenodo 5557568, Zurich_patches, https://zenodo.org/record/5557568",
        licence="as its Zenodo page says",
        citation=_RECORD + "10.1371/journal.pone.0276196",
        note="Fixed: the reference patch R, moving: T. Semi-synthetic, landmarks exact. Channels are "
        "stored blue first.",
        access="by hand, free",
        layout="Zurich_patches/fold<1-3>/patch_tlevel<1-4>/{info_test.csv, B/test/<id>_R.png, B/test/<id>_T.png}",
        **_COMMON,  # type: ignore[arg-type]
    ),
    _patches,
)
TMA_PATCHES = DataSet(
    Card(
        name="tma_patches",
        application="histology",
        origin="Zenodo 5557568, Eliceiri_patches, https://zenodo.org/record/5557568",
        licence="as its Zenodo page says",
        citation=_RECORD + "10.1371/journal.pone.0276196",
        note="Fixed: the reference patch R, moving: T. Semi-synthetic, landmarks exact.",
        access="by hand, free",
        layout="Eliceiri_patches/patch_tlevel<1-4>/{info_test.csv, B/test/<id>_R.tif, B/test/<id>_T.tif}",
        **_COMMON,  # type: ignore[arg-type]
    ),
    _patches,
)
