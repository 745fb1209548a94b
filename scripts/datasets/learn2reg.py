# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Learn2Reg lung CT: NLST and LungCT, one layout.

Documented by the challenge's own evaluation (github.com/MDL-UzL/L2R, `evaluation/`): `imagesTr/NLST_0001_0000.nii.gz`
is fixed, `..._0001.nii.gz` moving; `masksTr`, `keypointsTr`, `landmarksTr` have the same names (the latter two .csv);
`compute_tre` there takes a row of a CSV, without header, as array indices of the stored volume, 0-based. The pairs are
in `*_dataset.json`: "training_paired_images", "registration_val" (repeated in the former), "registration_test".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .builder import Card, DataSet, Entry, Request, chosen, entry, existing, first_folder
from .files import grid, read_json, write_landmarks

SPLITS = {
    "val": ("registration_val",),
    "train": ("training_paired_images",),
    "test": ("registration_test", "test_paired_images"),
}


def _lung(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, ".")
    pairs, remark = _by_name(home) if request.split == "all" else _official(card, home, request.split)
    made, kinds = [], set()
    for fixed, moving in chosen(card, home, pairs, request):
        images = [existing(card, home / name) for name in (fixed, moving)]
        masks = [_beside(path, "masks", ".nii.gz") for path in images]
        labels = masks if masks[1].exists() else masks[:1]
        points = []
        for kind in ("landmarks", "keypoints"):
            files = [_beside(path, kind, ".csv") for path in images]
            if any(file.exists() for file in files):
                points = _converted(card, files, images, request.output_dir / kind)
                kinds.add(kind)
                break
        name = images[0].name.removesuffix(".nii.gz").removesuffix("_0000")
        made.append(
            entry(card, name, images[0], images[1], labels=labels if labels[0].exists() else (), landmarks=points)
        )
    return made, f"{remark} Points: {' and '.join(sorted(kinds)) or 'none'}."


def _official(card: Card, home: Path, split: str) -> tuple[list[tuple[str, str]], str]:
    """The challenge's own pairs; those for training without the ones for validation."""
    found = sorted(home.glob("*dataset*.json"))
    if len(found) != 1:
        raise InputError(
            f"{card.name}: {home}: {len(found)} files *_dataset.json, so the split '{split}' is unknown; add the "
            "official one, or take --split all, which pairs *_0000 with *_0001"
        )
    content = read_json(found[0])

    def listed(names: tuple[str, ...]) -> list[tuple[str, str]]:
        rows: list[dict[str, str]] = next((content[name] for name in names if content.get(name)), [])
        try:
            return [(row["fixed"], row["moving"]) for row in rows]
        except (TypeError, KeyError) as error:
            raise InputError(f'{card.name}: {found[0]}: expected {names[0]}: [{{"fixed", "moving"}}, ...]') from error

    left_out = set(listed(SPLITS["val"])) if split == "train" else set()
    pairs = [pair for pair in dict.fromkeys(listed(SPLITS[split])) if pair not in left_out]
    return pairs, f"Pairs of {found[0].name}, split {split}."


def _by_name(home: Path) -> tuple[list[tuple[str, str]], str]:
    fixed = [path.relative_to(home).as_posix() for path in sorted(home.glob("images*/*_0000.nii.gz"))]
    return [(name, name.replace("_0000.nii.gz", "_0001.nii.gz")) for name in fixed], "Paired by name."


def _beside(image: Path, kind: str, ending: str) -> Path:
    """imagesTr/X.nii.gz -> <kind>Tr/X<ending>."""
    folder = image.parent.parent / image.parent.name.replace("images", kind, 1)
    return folder / (image.name.removesuffix(".nii.gz") + ending)


def _converted(card: Card, files: list[Path], images: list[Path], target: Path) -> list[Path]:
    """The points with our header; row n of one file belongs to row n of the other."""
    points = []
    for file, image in zip(files, images, strict=True):
        try:
            rows = np.loadtxt(existing(card, file), delimiter=",", ndmin=2)
        except ValueError as error:
            raise InputError(f"{card.name}: {file}: is no CSV of i,j,k without header ({error})") from error
        shape = grid(image)[0]
        if rows.shape[1] != 3 or (rows < -0.5).any() or (rows > np.array(shape) - 0.5).any():
            raise InputError(f"{card.name}: {file}: holds points that are no voxels of {image}, shape {shape}")
        points.append(rows)
    if len(points[0]) != len(points[1]):
        raise InputError(f"{card.name}: {files[0]}: {len(points[0])} points, {files[1]} has {len(points[1])}")
    return [write_landmarks(target / file.name, rows) for file, rows in zip(files, points, strict=True)]


LUNG = DataSet(
    Card(
        name="lung",
        application="lung",
        dim=3,
        kind="intra",
        origin="Learn2Reg, tasks NLST and LungCT, https://learn2reg.grand-challenge.org/Datasets/",
        licence="NLST: terms of the National Lung Screening Trial and TCIA; LungCT: as its Zenodo page says "
        "(doi 10.5281/zenodo.3835682)",
        citation="Hering et al., Learn2Reg, IEEE TMI 42(3), 2023; NLST: doi 10.7937/TCIA.HMQ8-J677; LungCT: Hering, "
        "Murphy, van Ginneken, doi 10.5281/zenodo.3835682",
        unit="mm",
        note="Two breathing states of one person. Key points were found automatically, landmarks (where there are any) "
        "set by hand; landmarks are preferred. The label is the lung mask.",
        access="by hand, free",
        layout="*_dataset.json, imagesTr/X_0000.nii.gz (fixed) and X_0001.nii.gz (moving), masksTr/, keypointsTr/*.csv",
        label_names={"1": "lung"},
        splits=("val", "train", "test", "all"),
        paper=True,
    ),
    _lung,
)
