# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""CHAOS abdominal MR: DICOM slices and a stack of grey PNG pictures as ground truth, both converted to NIfTI.

Layout: `Train_Sets/MR/<number>/T2SPIR/{DICOM_anon/*.dcm, Ground/*.png}` and `T1DUAL/{DICOM_anon/{InPhase,
OutPhase}/*.dcm, Ground/*.png}`, one Ground for both phases (https://chaos.grand-challenge.org/Data/; the same in
github.com/jonasteuwen/chaos-challenge, `build_chaos_dataset.py`, which also has the grey values): liver 63 (above 55,
to 70), right kidney 126 (110-135), left kidney 189 (175-200), spleen 252 (240-255). A ground-truth picture has the file
name of its DICOM slice (of the in-phase one in T1DUAL, whose files have even numbers); where names differ, as for the
out-of-phase series, the n-th picture by number belongs to the n-th slice by number.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from ..atomic import written_atomically
from ..errors import InputError
from .builder import Card, DataSet, Entry, Request, cycle, entry, existing, first_folder

SERIES = {
    "t2": ("T2SPIR/DICOM_anon", "T2SPIR/Ground"),
    "t1in": ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground"),
    "t1out": ("T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground"),
}
GREYS = ((55, 70), (110, 135), (175, 200), (240, 255))  # above the first, up to the second: label 1, 2, 3, 4


def _chaos(card: Card, request: Request) -> tuple[list[Entry], str]:
    home = first_folder(card, request.folder, "Train_Sets/MR", "MR", ".")
    subjects = sorted((p.name for p in home.iterdir() if p.is_dir() and p.name.isdigit()), key=int)
    pairs = cycle(card, home, subjects, request)
    files = {
        subject: _converted(card, home / subject, request.split, request.output_dir)
        for subject in sorted({name for pair in pairs for name in pair}, key=int)
    }
    made = []
    for fixed, moving in pairs:
        (a, label_a), (b, label_b) = files[fixed], files[moving]
        made.append(entry(card, f"{request.split}_{fixed}_{moving}", a, b, labels=(label_a, label_b)))
    return made, f"Series {request.split}, converted from DICOM and PNG to NIfTI."


def _converted(card: Card, subject: Path, series: str, output_dir: Path) -> tuple[Path, Path]:
    """NIfTI image and label map of one subject."""
    dicom, ground = (existing(card, subject / part) for part in SERIES[series])
    slices = sorted(dicom.glob("*.dcm"), key=_number)
    truths = sorted(ground.glob("*.png"), key=_number)
    if len(slices) < 2 or len(slices) != len(truths):
        raise InputError(
            f"{card.name}: {subject}: {len(slices)} DICOM slices, {len(truths)} PNG; expected {card.layout}"
        )
    if {p.stem for p in slices} == {p.stem for p in truths}:
        truths = [ground / f"{path.stem}.png" for path in slices]
    order = np.argsort([_position(card, path) for path in slices])
    image = sitk.ReadImage([str(slices[k]) for k in order])
    labels = [_labels(card, truths[k]) for k in order]
    shape = image.GetSize()[1::-1]
    for k, stack in zip(order, labels, strict=True):
        if stack.shape != shape:
            raise InputError(f"{card.name}: {truths[k]}: has shape {stack.shape}; its slice {slices[k]} has {shape}")
    label = sitk.GetImageFromArray(np.stack(labels))
    label.CopyInformation(image)
    targets = [output_dir / f"{series}_{subject.name}_{kind}.nii.gz" for kind in ("image", "label")]
    for volume, target in zip((image, label), targets, strict=True):
        with written_atomically(target) as unfinished:
            sitk.WriteImage(volume, str(unfinished))
    return targets[0], targets[1]


def _number(path: Path) -> int:
    """The last number in a file's name."""
    return int((re.findall(r"\d+", path.stem) or ["0"])[-1])


def _position(card: Card, path: Path) -> float:
    """Where a slice lies along its normal, mm."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        along = np.array(reader.GetMetaData("0020|0037").split("\\"), dtype=np.float64).reshape(2, 3)
        return float(np.cross(*along) @ np.array(reader.GetMetaData("0020|0032").split("\\"), dtype=np.float64))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{card.name}: {path}: is no DICOM slice with position and orientation") from error


def _labels(card: Card, path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    labels = np.zeros_like(grey)
    for label, (above, to) in enumerate(GREYS, 1):
        labels[(grey > above) & (grey <= to)] = label
    unknown = np.unique(grey[(labels == 0) & (grey > 0)])
    if unknown.size:
        raise InputError(f"{card.name}: {path}: has the grey values {unknown[:5].tolist()}, which name no organ")
    return labels


CHAOS = DataSet(
    Card(
        name="chaos",
        application="abdomen",
        dim=3,
        kind="inter",
        origin="CHAOS, https://chaos.grand-challenge.org/, doi 10.5281/zenodo.3431873",
        licence="CC-BY-SA 4.0 as on its Zenodo page, check there",
        citation="Kavur et al., CHAOS Challenge - combined (CT-MR) healthy abdominal organ segmentation, Medical Image "
        "Analysis 69, 2021, doi 10.1016/j.media.2020.101950",
        unit="mm",
        note="Pairs of different subjects of the training part, as in the paper, whose own list and sequence are not "
        "published: seeded here, a cycle at first.",
        access="by hand, free",
        layout="Train_Sets/MR/<number>/{T2SPIR/{DICOM_anon/*.dcm, Ground/*.png}, "
        "T1DUAL/{DICOM_anon/{InPhase,OutPhase}/*.dcm, Ground/*.png}}, as many PNG as slices",
        label_names={"1": "liver", "2": "right kidney", "3": "left kidney", "4": "spleen"},
        splits=tuple(SERIES),
        paper=True,
    ),
    _chaos,
)
