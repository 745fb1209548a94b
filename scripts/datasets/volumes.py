# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Volumes in NIfTI: ACDC, MSD Task04 Hippocampus, prostate MR in scan/mask folders.

Layouts as documented:
- ACDC: `training/patientXXX/{Info.cfg, patientXXX_frameNN.nii.gz, patientXXX_frameNN_gt.nii.gz}` (challenge page
  https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html; two patients are in github.com/sqhuang0103/SAMReg).
- MSD: `dataset.json` with "training": [{"image", "label"}], `imagesTr`, `labelsTr` (arXiv 1902.09063).
- Prostate: `scan/<name>.nii.gz` and `mask/<name>.nii.gz`, names `Patient<number>_study_<n>`, as the authors of the
  paper lay out their samples (github.com/sqhuang0103/SAMReg, `prostate_mri`). The layout in which PROMIS itself is
  handed out is not published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..atomic import written_atomically
from ..errors import InputError
from .builder import Card, DataSet, Entry, Request, chosen, cycle, entry, existing, first_folder
from .files import read_json


def _acdc(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, request.split, *(["."] if request.folder.name == request.split else []))
    patients = sorted(p for p in home.glob("patient*") if p.is_dir())
    made, copied = [], 0
    for patient in chosen(card, home, patients, request):
        frames = _acdc_frames(card, existing(card, patient / "Info.cfg"))
        files = [patient / f"{patient.name}_frame{frame:02d}{kind}.nii.gz" for kind in ("", "_gt") for frame in frames]
        placed = [_true_spacing(existing(card, file), request.output_dir) for file in files]
        copied += sum(a != b for a, b in zip(files, placed, strict=True))
        made.append(entry(card, f"{patient.name}_ed_es", placed[0], placed[1], labels=placed[2:]))
    return made, f"{copied} of {4 * len(made)} files had to be rewritten with the spacing of pixdim." if copied else ""


def _acdc_frames(card: Card, path: Path) -> tuple[int, int]:
    """Numbers of the end-diastolic and the end-systolic frame."""
    fields = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    try:
        return int(fields["ED"]), int(fields["ES"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{card.name}: {path}: has no whole numbers 'ED:' and 'ES:'; give the official file"
        ) from error


def _true_spacing(path: Path, output_dir: Path) -> Path:
    """The file itself, or a copy whose affine has the voxel sizes of pixdim.

    ACDC files seen had an sform of unit scale, which readers trust, beside the true sizes in pixdim.
    """
    image: Any = nib.load(path)
    sizes = np.asarray(image.header["pixdim"][1:4], dtype=np.float64)
    columns = nib.affines.voxel_sizes(image.affine)
    if np.allclose(columns, sizes, rtol=1e-3):
        return path
    affine = image.affine.copy()
    affine[:3, :3] *= sizes / columns
    target = output_dir / path.name
    with written_atomically(target) as unfinished:
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), unfinished)
    return target


def _hippocampus(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, "Task04_Hippocampus", ".")
    listed = read_json(existing(card, home / "dataset.json")).get("training")
    if not isinstance(listed, list) or not all(isinstance(c, dict) and {"image", "label"} <= set(c) for c in listed):
        raise InputError(f'{card.name}: {home / "dataset.json"}: expected "training": [{{"image", "label"}}, ...]')
    cases = {Path(c["image"]).name.removesuffix(".nii.gz"): (home / c["image"], home / c["label"]) for c in listed}
    made = []
    for fixed, moving in cycle(card, home, sorted(cases), request):
        (a, label_a), (b, label_b) = cases[fixed], cases[moving]
        name = f"{fixed}_{moving.removeprefix('hippocampus_')}"
        made.append(entry(card, name, a, b, labels=(label_a, label_b)))
    return made, ""


def _prostate(card: Card, request: Request) -> tuple[list[Entry], str]:
    scans = first_folder(card, request.folder, "scan")
    masks = first_folder(card, request.folder, "mask")
    studies: dict[str, Path] = {}
    for path in sorted(scans.glob("*.nii.gz")):
        existing(card, masks / path.name)
        studies.setdefault(path.name.removesuffix(".nii.gz").split("_study_")[0], path)
    made = []
    for fixed, moving in cycle(card, scans, sorted(studies), request):
        a, b = studies[fixed], studies[moving]
        made.append(entry(card, f"{fixed}_{moving}", a, b, labels=(masks / a.name, masks / b.name)))
    return made, "Of a subject with several studies the first is taken."


ACDC = DataSet(
    Card(
        name="acdc",
        application="cardiac",
        dim=3,
        kind="intra",
        origin="ACDC, https://www.creatis.insa-lyon.fr/Challenge/acdc/",
        licence="ACDC terms: research use, citation mandatory; do not redistribute",
        citation="Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation and "
        "Diagnosis, IEEE TMI 37(11) 2514-2525, 2018, doi 10.1109/TMI.2018.2837502",
        unit="mm",
        note="Fixed: end-diastole, moving: end-systole of the same patient. The challenge has no registration pairs.",
        access="by hand, free after registration",
        layout="training/ or testing/ with patientXXX/{Info.cfg, patientXXX_frameNN.nii.gz, ..._frameNN_gt.nii.gz}",
        label_names={"1": "right ventricle cavity", "2": "left ventricle myocardium", "3": "left ventricle cavity"},
        splits=("training", "testing"),
    ),
    _acdc,
)
HIPPOCAMPUS = DataSet(
    Card(
        name="hippocampus",
        application="hippocampus",
        dim=3,
        kind="inter",
        origin="Medical Segmentation Decathlon, Task04_Hippocampus, http://medicaldecathlon.com/",
        licence="CC-BY-SA 4.0",
        citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022; "
        "Simpson et al., arXiv 1902.09063",
        unit="mm",
        note="Pairs of different cases of the training part (the test part has no labels), seeded: a cycle at first. "
        "Two cases may be the two sides of one person; the files do not tell.",
        access="by hand, free",
        layout="dataset.json, imagesTr/hippocampus_NNN.nii.gz, labelsTr/hippocampus_NNN.nii.gz",
        label_names={"1": "anterior hippocampus", "2": "posterior hippocampus"},
    ),
    _hippocampus,
)
PROSTATE = DataSet(
    Card(
        name="prostate",
        application="prostate",
        dim=3,
        kind="inter",
        origin="T2 prostate MR such as PROMIS, arranged as in github.com/sqhuang0103/SAMReg (prostate_mri)",
        licence="PROMIS: on request from its owners, under their terms; do not redistribute",
        citation="Ahmed et al., Lancet 2017 (PROMIS), doi 10.1016/S0140-6736(16)32401-1",
        unit="mm",
        note="Pairs of different subjects as in the paper, whose own list is not published: seeded here, a cycle at "
        "first.",
        access="by hand, on request",
        layout="scan/Patient<number>_study_<n>.nii.gz and mask/ with the same file names",
        label_names={"1": "prostate"},
        paper=True,
    ),
    _prostate,
)
