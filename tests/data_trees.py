# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A tiny tree in the layout documented for each data set, and what its builder made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image
from skimage.io import imsave
from skimage.transform import SimilarityTransform, warp
from torch import Tensor

from scripts.datalist import PairEntry, read_datalists, read_landmarks
from scripts.datasets.__main__ import build
from scripts.images import read_image, read_label
from scripts.registration import ImageInfo

SHAPE = (8, 9, 4)


def volume(path: Path, array: np.ndarray | None = None, sizes: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if array is None else array
    nib.save(nib.Nifti1Image(values, np.diag([*sizes, 1.0])), path)
    return path


def mask(shape: tuple[int, ...] = SHAPE, label: int = 1) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[2:5, 3:6] = label
    return array


def picture(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8) if array is None else array).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def built(name: str, folder: Path, **options: Any) -> tuple[dict[str, Any], list[PairEntry]]:
    """Content of the datalist and its pairs, every file of which our readers have read."""
    out = folder.parent / "out"
    build(name, str(folder), str(out), **options)
    pairs = read_datalists(str(out / "datalist.json"))
    for pair in pairs:
        for side in ("fixed", "moving"):
            image, _ = read(pair, side)
            if f"{side}_label" in pair.files:
                label = read_label(pair.files[f"{side}_label"], name="label", shape=image.shape[1:])
                assert label.max() > 0
            if f"{side}_landmarks" in pair.files:
                read_landmarks(pair.files[f"{side}_landmarks"], image.ndim - 1)
    return json.loads((out / "datalist.json").read_text(encoding="utf-8")), pairs


def read(pair: PairEntry, side: str) -> tuple[Tensor, ImageInfo]:
    return read_image(pair.files[side], name=side)


def points(pair: PairEntry, side: str, dims: int = 2) -> np.ndarray:
    """`[N, D]`."""
    return read_landmarks(pair.files[f"{side}_landmarks"], dims).numpy().T


def acdc(folder: Path) -> Path:
    patient = folder / "training" / "patient007"
    text(patient / "Info.cfg", "ED: 1\nES: 12\nGroup: NOR\nNbFrame: 30\n")
    for frame in ("01", "12"):
        volume(patient / f"patient007_frame{frame}.nii.gz")
        volume(patient / f"patient007_frame{frame}_gt.nii.gz", mask(label=3))
    return folder


def hippocampus(folder: Path, cases: int = 3) -> Path:
    names = [f"hippocampus_{k:03d}.nii.gz" for k in range(1, cases + 1)]
    for k, name in enumerate(names):
        volume(folder / "imagesTr" / name, np.random.default_rng(k).random((*SHAPE[:2], 4 + k)).astype(np.float32))
        volume(folder / "labelsTr" / name, mask((*SHAPE[:2], 4 + k), 2))
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    text(folder / "dataset.json", json.dumps({"training": training, "test": []}))
    return folder


def prostate(folder: Path) -> Path:
    for name in ("Patient001_study_0", "Patient001_study_1", "Patient002_study_0"):
        volume(folder / "scan" / f"{name}.nii.gz")
        volume(folder / "mask" / f"{name}.nii.gz", mask())
    return folder


def lung(folder: Path) -> Path:
    for case in (1, 2, 3):
        for phase in (0, 1):
            name = f"NLST_{case:04d}_{phase:04d}"
            volume(folder / "imagesTr" / f"{name}.nii.gz")
            volume(folder / "masksTr" / f"{name}.nii.gz", mask())
            text(folder / "keypointsTr" / f"{name}.csv", f"7.000,{phase}.500,3.000\n{case}.000,8.000,0.000\n")
    rows = [
        {"fixed": f"./imagesTr/NLST_{k:04d}_0000.nii.gz", "moving": f"./imagesTr/NLST_{k:04d}_0001.nii.gz"}
        for k in (1, 2, 3)
    ]
    text(folder / "NLST_dataset.json", json.dumps({"training_paired_images": rows, "registration_val": rows[2:]}))
    return folder


def dicom(path: Path, array: np.ndarray, z: float, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array[None])
    image.SetSpacing((2.0, 1.0, 5.0))
    tags = {
        "0008|0060": "MR",
        "0020|000e": f"1.2.826.0.1.3680043.2.1125.{number}",  # a series of its own, as the anonymised files have
        "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
        "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{number}",
        "0020|0037": "1\\0\\0\\0\\1\\0",
        "0020|0032": f"4\\5\\{z}",
        "0020|0013": str(number),
    }
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def chaos(folder: Path) -> Path:
    """Two subjects of 3 slices; the file numbers run against the slices' positions, in-phase numbers are even."""
    for subject in ("1", "13"):
        home = folder / "Train_Sets" / "MR" / subject
        for k, grey in enumerate((63, 126, 252)):
            slices = np.arange(80, dtype=np.int16).reshape(8, 10) + 100 * k
            truth = np.zeros((8, 10), np.uint8)
            truth[1, 2 : 5 + k] = grey
            number = 2 * (3 - k)
            dicom(home / "T1DUAL" / "DICOM_anon" / "InPhase" / f"IMG-0004-{number:05d}.dcm", slices, 5.0 * k, number)
            dicom(
                home / "T1DUAL" / "DICOM_anon" / "OutPhase" / f"IMG-0004-{number - 1:05d}.dcm", slices, 5.0 * k, number
            )
            picture(home / "T1DUAL" / "Ground" / f"IMG-0004-{number:05d}.png", truth)
    return folder


def fire(folder: Path) -> Path:
    for name in ("A01", "S02"):
        picture(folder / "Images" / f"{name}_1.jpg")
        picture(folder / "Images" / f"{name}_2.jpg")
        text(folder / "Ground Truth" / f"control_points_{name}_1_2.txt", "25.0 3.0 21.0 4.0 \n7.5 18.0 6.0 19.0 \n")
    return folder


def anhir(folder: Path) -> Path:
    for name in ("a", "b", "c"):
        picture(folder / "lung_1" / "scale-5pc" / f"{name}.jpg")
    text(folder / "landmarks" / "lung_1" / "scale-5pc" / "a.csv", ",X,Y\n0,20,1\n1,21,2\n2,22,3\n")
    text(folder / "landmarks" / "lung_1" / "scale-5pc" / "b.csv", ",X,Y\n0,10,5\n1,11,6\n")
    at = "lung_1/scale-5pc"
    text(
        folder / "dataset_medium.csv",
        ",Image size [pixels],Source image,Source landmarks,Target image,Target landmarks,status\n"
        f'3,"(20, 30)",{at}/a.jpg,{at}/a.csv,{at}/b.jpg,{at}/b.csv,training\n'
        f'9,"(20, 30)",{at}/a.jpg,{at}/a.csv,{at}/c.jpg,{at}/c.csv,evaluation\n',
    )
    return folder


def cima(folder: Path) -> Path:
    for name in ("he", "cc10", "ki67"):
        home = folder / "lung-lesion_1" / "scale-10pc"
        picture(home / f"{name}.jpg")
        text(home / f"{name}.csv", ",X,Y\n1,26,13\n2,25,11\n")
    return folder


def patches(folder: Path, smooth: np.ndarray) -> Path:
    """One pair as the record has it: table with corners, x first, and both patches."""
    size, home = 120, folder / "Zurich_patches" / "fold1" / "patch_tlevel4"
    centre = np.array([size, size]) / 2 - 0.5
    tform = SimilarityTransform(translation=(9, -11)) + SimilarityTransform(translation=-centre)
    tform = tform + SimilarityTransform(rotation=0.3) + SimilarityTransform(translation=centre)
    corners = np.array([[0, 0], [0, size], [size, size], [size, 0]], float)
    reference = smooth[:size, :size]
    transformed = warp(reference, tform, preserve_range=True).astype(np.uint8)
    picture(home / "B" / "test" / "zh7_01_04_R.png", reference)
    picture(home / "B" / "test" / "zh7_01_04_T.png", transformed)
    columns, values = ["Filename"], ["zh7_01_04"]
    for kind, at in (("Ref", corners), ("Trans", tform(corners))):
        for n, (x, y) in enumerate(at, 1):
            columns += [f"X{n}_{kind}", f"Y{n}_{kind}"]
            values += [repr(float(x)), repr(float(y))]
    text(home / "info_test.csv", ",".join(columns) + "\n" + ",".join(values) + "\n")
    return folder


def zurich(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 2047, (310, 605, 4)).astype(np.uint16)
    bands[..., 2] = np.arange(605)  # red, as the third band
    truth = np.full((310, 605, 3), 255, np.uint8)
    truth[100:250, 100:250] = (150, 80, 0)
    truth[100:250, 400:550] = (0, 0, 150)
    for sub, name, array in (("images_tif", "zh3.tif", bands), ("groundtruth", "zh3_GT.tif", truth)):
        (folder / sub).mkdir(parents=True)
        imsave(folder / sub / name, array, check_contrast=False)
    return folder
