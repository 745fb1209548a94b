# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Folders and options that a builder cannot use: one line says why, and no list is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.io import imsave

from scripts.datasets.__main__ import build
from scripts.errors import InputError
from tests.data_trees import (
    acdc,
    anhir,
    chaos,
    cima,
    fire,
    hippocampus,
    lung,
    mask,
    patches,
    picture,
    prostate,
    text,
    volume,
    zurich,
)


def changed(make: Callable[[Path], Path], change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(folder)
        change(folder)
        return folder

    return made


def table(folder: Path, old: str, new: str) -> None:
    path = next(folder.glob("**/*.csv"))
    path.write_text(path.read_text(encoding="utf-8").replace(old, new))


WRONG: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "no folder": ("fire", lambda d: d, "in: no such folder; expected Images/A01_1.jpg"),
    "acdc without a gt": (
        "acdc",
        changed(acdc, lambda d: (d / "training/patient007/patient007_frame12_gt.nii.gz").unlink()),
        r"patient007_frame12_gt.nii.gz: no such file; expected training/",
    ),
    "acdc cfg": (
        "acdc",
        changed(acdc, lambda d: text(d / "training/patient007/Info.cfg", "Group: NOR\n")),
        "Info.cfg: has no whole numbers 'ED:' and 'ES:'",
    ),
    "acdc empty": ("acdc", lambda d: (d / "training").mkdir(parents=True) or d, "0 usable cases, 1 needed"),
    "label of another shape": (
        "hippocampus",
        changed(hippocampus, lambda d: volume(d / "labelsTr/hippocampus_002.nii.gz", mask((8, 9, 9)))),
        r"hippocampus_002.nii.gz: has shape \(8, 9, 9\); its image .* has \(8, 9, 5\)",
    ),
    "one case": ("hippocampus", lambda d: hippocampus(d, 1), "1 usable cases, 2 needed"),
    "dataset.json": (
        "hippocampus",
        changed(hippocampus, lambda d: text(d / "dataset.json", "{")),
        "dataset.json: cannot be read as JSON",
    ),
    "prostate without mask": (
        "prostate",
        changed(prostate, lambda d: (d / "mask/Patient002_study_0.nii.gz").unlink()),
        "mask/Patient002_study_0.nii.gz: no such file",
    ),
    "points outside": (
        "lung",
        changed(lung, lambda d: text(d / "keypointsTr/NLST_0003_0001.csv", "8,0,0\n1,1,1\n")),
        "NLST_0003_0001.csv: holds points that are no voxels of .*NLST_0003_0001.nii.gz",
    ),
    "points missing": (
        "lung",
        changed(lung, lambda d: text(d / "keypointsTr/NLST_0003_0001.csv", "1,1,1\n")),
        "NLST_0003_0000.csv: 2 points, .*NLST_0003_0001.csv has 1",
    ),
    "chaos grey": (
        "chaos",
        changed(
            chaos,
            lambda d: picture(d / "Train_Sets/MR/1/T1DUAL/Ground/IMG-0004-00004.png", np.full((8, 10), 90, np.uint8)),
        ),
        r"IMG-0004-00004.png: has the grey values \[90\], which name no organ",
    ),
    "chaos without a png": (
        "chaos",
        changed(chaos, lambda d: (d / "Train_Sets/MR/13/T1DUAL/Ground/IMG-0004-00004.png").unlink()),
        "13: 3 DICOM slices, 2 PNG",
    ),
    "fire without a picture": (
        "fire",
        changed(fire, lambda d: (d / "Images/S02_2.jpg").unlink()),
        "S02_2.jpg: no such file",
    ),
    "fire columns": (
        "fire",
        changed(fire, lambda d: text(d / "Ground Truth/control_points_A01_1_2.txt", "1 2 3\n")),
        "control_points_A01_1_2.txt: has 3 columns; expected x1 y1 x2 y2",
    ),
    "anhir without a table": (
        "anhir",
        changed(anhir, lambda d: (d / "dataset_medium.csv").unlink()),
        "0 tables of pairs",
    ),
    "anhir columns": (
        "anhir",
        changed(anhir, lambda d: text(d / "landmarks/lung_1/scale-5pc/b.csv", "a,b\n1,2\n")),
        r"b.csv: has the columns \['a', 'b'\]; expected X and Y",
    ),
    "cima without points": (
        "cima",
        changed(cima, lambda d: (d / "lung-lesion_1/scale-10pc/he.csv").unlink()),
        "he.csv: no such file",
    ),
    "small core": ("tma", lambda d: picture(d / "1B_A4_BF.tif").parent, "at least 834 px a side are needed"),
    "zurich colour": (
        "zurich",
        changed(
            zurich,
            lambda d: imsave(d / "groundtruth/zh3_GT.tif", np.full((310, 605, 3), 7, np.uint8), check_contrast=False),
        ),
        r"zh3_GT.tif: has the colour \[7, 7, 7\], not in its legend",
    ),
    "zurich bands": (
        "zurich",
        changed(
            zurich,
            lambda d: imsave(d / "images_tif/zh3.tif", np.zeros((310, 605, 3), np.uint16), check_contrast=False),
        ),
        r"zh3.tif: has shape \(310, 605, 3\); expected 4 bands",
    ),
    "patches without corners": (
        "zurich_patches",
        changed(
            lambda d: patches(d, np.zeros((200, 200, 3), np.uint8) + np.arange(200, dtype=np.uint8)[:, None, None]),
            lambda d: table(d, "X1_Ref", "other"),
        ),
        "info_test.csv: has no corners",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_folder_is_told_in_one_line_and_leaves_no_list(case: str, tmp_path: Path) -> None:
    name, make, message = WRONG[case]
    folder = make(tmp_path / "in")
    split = {"chaos": "t1in"}.get(name)
    with pytest.raises(InputError, match=message) as error:
        build(name, str(folder), str(tmp_path / "out"), split=split)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "datalist.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "X"}, "split: fire has no 'X'; give one of all, S, P, A"),
        ({"pairs": 3}, "pairs: 3 asked for but fire has 2 here"),
        ({"pairs": 0}, "pairs: 0; give a whole number from 1"),
        ({"seed": "a"}, "seed: 'a'; give a whole number from 0"),
        ({"name": "fires"}, "name: no data set 'fires'; give one of prostate"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build(options.pop("name", "fire"), str(fire(tmp_path / "in")), str(tmp_path / "out"), **options)
