# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Each builder on a tiny tree in the layout documented for its data set: pairs, labels, order of axes, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from skimage.io import imsave
from skimage.transform import SimilarityTransform, warp
from torch import Tensor

from scripts.datalist import PairEntry, read_datalists, read_landmarks
from scripts.datasets.__main__ import DATASETS, build
from scripts.datasets.turned import drawn, exact_landmarks, rigid
from scripts.errors import InputError
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


# --- volumes


def acdc(folder: Path) -> Path:
    patient = folder / "training" / "patient007"
    text(patient / "Info.cfg", "ED: 1\nES: 12\nGroup: NOR\nNbFrame: 30\n")
    for frame in ("01", "12"):
        volume(patient / f"patient007_frame{frame}.nii.gz")
        volume(patient / f"patient007_frame{frame}_gt.nii.gz", mask(label=3))
    return folder


def test_acdc_pairs_end_diastole_with_end_systole_where_the_files_lie(tmp_path: Path) -> None:
    content, pairs = built("acdc", acdc(tmp_path / "in"))
    official = tmp_path / "in" / "training" / "patient007"
    assert [p.id for p in pairs] == ["patient007_ed_es"]
    assert pairs[0].files["fixed"].resolve() == (official / "patient007_frame01.nii.gz").resolve()
    assert pairs[0].files["moving_label"].name == "patient007_frame12_gt.nii.gz"
    assert not Path(content["pairs"][0]["fixed"]).is_absolute()
    assert content["pairs"][0]["spacing"] == [1, 2, 3] and content["label_names"]["3"] == "left ventricle cavity"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["datalist.json"]


def test_acdc_file_whose_sform_lost_the_voxel_size_is_rewritten_with_it(tmp_path: Path) -> None:
    path = acdc(tmp_path / "in") / "training" / "patient007" / "patient007_frame01.nii.gz"
    image = nib.load(path)
    image.header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=2)  # as in the files of the challenge seen
    image.header.set_qform(None, code=0)
    image.header["pixdim"][1:4] = (1.5, 1.25, 10)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    assert read_image(path, name="as it is")[1].spacing == (1, 1, 1)
    content, pairs = built("acdc", tmp_path / "in")
    fixed, info = read(pairs[0], "fixed")
    assert info.spacing == pytest.approx((1.5, 1.25, 10)) and info.affine[0, 0] < 0
    assert np.array_equal(fixed[0].numpy(), np.arange(np.prod(SHAPE)).reshape(SHAPE))
    assert "1 of 4 files" in content["note"]


def hippocampus(folder: Path, cases: int = 3) -> Path:
    names = [f"hippocampus_{k:03d}.nii.gz" for k in range(1, cases + 1)]
    for k, name in enumerate(names):
        volume(folder / "imagesTr" / name, np.random.default_rng(k).random((*SHAPE[:2], 4 + k)).astype(np.float32))
        volume(folder / "labelsTr" / name, mask((*SHAPE[:2], 4 + k), 2))
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    text(folder / "dataset.json", json.dumps({"training": training, "test": []}))
    return folder


def test_hippocampus_pairs_are_a_seeded_cycle_of_different_cases(tmp_path: Path) -> None:
    _, pairs = built("hippocampus", hippocampus(tmp_path / "in"))
    assert sorted(p.files["fixed"].name for p in pairs) == sorted(p.files["moving"].name for p in pairs)
    assert all(p.files["fixed"].name != p.files["moving"].name for p in pairs) and len(pairs) == 3
    _, again = built("hippocampus", tmp_path / "in", pairs=2)
    assert [p.id for p in again] == [p.id for p in pairs][:2]
    _, most = built("hippocampus", tmp_path / "in", pairs=6)
    assert len({p.id for p in most}) == 6
    orders = [tuple(p.id for p in built("hippocampus", tmp_path / "in", seed=seed)[1]) for seed in range(6)]
    assert len(set(orders)) > 1


def prostate(folder: Path) -> Path:
    for name in ("Patient001_study_0", "Patient001_study_1", "Patient002_study_0"):
        volume(folder / "scan" / f"{name}.nii.gz")
        volume(folder / "mask" / f"{name}.nii.gz", mask())
    return folder


def test_prostate_pairs_different_subjects_only(tmp_path: Path) -> None:
    _, pairs = built("prostate", prostate(tmp_path / "in"))
    assert sorted(p.id for p in pairs) == ["Patient001_Patient002", "Patient002_Patient001"]
    assert all(p.files["fixed_label"].parent.name == "mask" for p in pairs)


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


def test_lung_follows_the_official_pairs_and_keeps_array_order(tmp_path: Path) -> None:
    _, pairs = built("lung", lung(tmp_path / "in"))
    assert [p.id for p in pairs] == ["NLST_0003"]
    assert points(pairs[0], "moving", 3).tolist() == [[7, 1.5, 3], [3, 8, 0]]
    assert {"fixed_label", "moving_label"} <= set(pairs[0].files)
    _, train = built("lung", tmp_path / "in", split="train")
    assert [p.id for p in train] == ["NLST_0001", "NLST_0002"]


def test_lung_prefers_landmarks_and_without_a_json_pairs_by_name_only_when_told(tmp_path: Path) -> None:
    folder = lung(tmp_path / "in")
    (folder / "NLST_dataset.json").unlink()
    for phase in (0, 1):
        text(folder / "landmarksTr" / f"NLST_0002_{phase:04d}.csv", "1,2,3\n")
    with pytest.raises(InputError, match=r"split 'val' is unknown.*--split all"):
        built("lung", folder)
    content, pairs = built("lung", folder, split="all")
    assert points(pairs[1], "fixed", 3).tolist() == [[1, 2, 3]] and len(pairs) == 3
    assert "Paired by name. Points: keypoints and landmarks." in content["note"]


# --- CHAOS


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


@pytest.mark.parametrize("split", ["t1in", "t1out"])
def test_chaos_slices_and_ground_truth_become_volumes_on_one_grid(split: str, tmp_path: Path) -> None:
    _, pairs = built("chaos", chaos(tmp_path / "in"), split=split)
    assert sorted(p.id for p in pairs) == [f"{split}_13_1", f"{split}_1_13"]
    image, info = read(pairs[0], "fixed")
    label = read_label(pairs[0].files["fixed_label"], name="label", shape=image.shape[1:])
    assert image.shape == (1, 10, 8, 3) and info.spacing == pytest.approx((2, 1, 5))
    assert image[0, 9, 7].tolist() == [79, 179, 279]  # slices lie by position
    assert [label[..., k].unique().tolist() for k in range(3)] == [[0, 1], [0, 2], [0, 4]]
    assert label[2:7, 1, 2].tolist() == [4] * 5 and label.bool().sum() == 3 + 4 + 5
    assert nib.load(pairs[0].files["fixed_label"]).affine == pytest.approx(info.affine.numpy())


# --- pictures


def fire(folder: Path) -> Path:
    for name in ("A01", "S02"):
        picture(folder / "Images" / f"{name}_1.jpg")
        picture(folder / "Images" / f"{name}_2.jpg")
        text(folder / "Ground Truth" / f"control_points_{name}_1_2.txt", "25.0 3.0 21.0 4.0 \n7.5 18.0 6.0 19.0 \n")
    return folder


def test_fire_points_turn_from_x_y_to_row_column(tmp_path: Path) -> None:
    _, pairs = built("fire", fire(tmp_path / "in"))
    assert [p.id for p in pairs] == ["A01", "S02"] and pairs[0].unit == "px"
    assert pairs[0].files["fixed"].name == "A01_1.jpg"
    assert points(pairs[0], "fixed").tolist() == [[3, 25], [18, 7.5]]
    assert points(pairs[0], "moving").tolist() == [[4, 21], [19, 6]]
    assert [p.id for p in built("fire", tmp_path / "in", split="S")[1]] == ["S02"]


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


def test_anhir_target_is_fixed_and_points_are_those_both_have(tmp_path: Path) -> None:
    _, pairs = built("anhir", anhir(tmp_path / "in"))
    assert [p.id for p in pairs] == ["3_lung_1"] and pairs[0].files["fixed"].name == "b.jpg"
    assert points(pairs[0], "fixed").tolist() == [[5, 10], [6, 11]]
    assert points(pairs[0], "moving").tolist() == [[1, 20], [2, 21]]
    content, withheld = built("anhir", tmp_path / "in", split="evaluation")
    assert content["pairs"][0]["no_truth"] is True and "fixed_landmarks" not in withheld[0].files


def cima(folder: Path) -> Path:
    for name in ("he", "cc10", "ki67"):
        home = folder / "lung-lesion_1" / "scale-10pc"
        picture(home / f"{name}.jpg")
        text(home / f"{name}.csv", ",X,Y\n1,26,13\n2,25,11\n")
    return folder


def test_cima_pairs_every_two_stains_of_a_set(tmp_path: Path) -> None:
    _, pairs = built("cima", cima(tmp_path / "in"))
    assert len(pairs) == 3 and points(pairs[0], "moving").tolist() == [[13, 26], [11, 25]]
    assert pairs[0].id == "lung-lesion_1__cc10__he"


# --- turned pairs


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """Values that tell where a pixel is: red grows with the row, green with the column."""
    i, j = np.meshgrid(np.arange(900), np.arange(860), indexing="ij")
    return np.stack([i / 4, j / 4, (i + j) / 8], -1).astype(np.uint8)


def test_rigid_maps_as_the_record_made_its_patches() -> None:
    """scikit-image's warp samples the reference at tform(p), x first, composed as in Zenodo 5557568's scripts."""
    size, degrees, tx, ty = 61, 17.0, 4.0, -6.0
    centre = np.array([size, size]) / 2 - 0.5
    chain = [
        SimilarityTransform(translation=(tx, ty)),
        SimilarityTransform(translation=-centre),
        SimilarityTransform(rotation=np.deg2rad(degrees)),
        SimilarityTransform(translation=centre),
    ]
    matrix = rigid(size, -degrees, (ty, tx))  # the axes change places, so the sense of rotation does
    swapped = matrix[[1, 0, 2]][:, [1, 0, 2]]
    assert swapped == pytest.approx((chain[0] + chain[1] + chain[2] + chain[3]).params)
    reference = np.fromfunction(lambda i, j: 3 * i + j, (size, size))
    transformed = warp(reference, SimilarityTransform(swapped), preserve_range=True)
    fixed, moving = exact_landmarks(size, matrix)
    assert len(fixed) > 10
    seen = transformed[tuple(np.round(moving).astype(int).T)]
    expected = np.round(moving) @ matrix[:2, :2].T + matrix[:2, 2]
    assert seen == pytest.approx(3 * expected[:, 0] + expected[:, 1], abs=1e-6)


def test_levels_bound_rotation_and_shift() -> None:
    for level in (1, 4):
        for seed in range(20):
            matrix = drawn(300, level, 7, np.random.default_rng(seed))
            turn = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
            shift = np.linalg.solve(matrix[:2, :2], matrix[:2] @ [149.5, 149.5, 1] - 149.5)
            assert 5 * (level - 1) <= abs(turn) <= 5 * level
            assert (7 * (level - 1) <= np.abs(shift)).all() and (np.abs(shift) <= 7 * level).all()


def shows_the_same(pair: PairEntry, tolerance: float) -> None:
    """Landmarks of both sides lie on the same colour."""
    values = []
    for side in ("fixed", "moving"):
        at = tuple(np.round(points(pair, side)).astype(int).T)
        values.append(read(pair, side)[0].numpy()[(slice(None), *at)])
    assert values[0].shape[1] > 10
    assert np.abs(values[0] - values[1]).max() <= tolerance
    assert np.abs(points(pair, "fixed") - points(pair, "moving")).mean() > 5


def test_tissue_cores_are_paired_with_themselves_turned(smooth: np.ndarray, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "HighRes_Splits" / "WSI" / "test" / "1B_A4_BF.tif", smooth)
    content, pairs = built("tma", tmp_path / "in")
    assert [p.id for p in pairs] == ["1B_A4"] and content["kind"] == "semi-synthetic"
    assert read(pairs[0], "moving")[0].shape == (3, 834, 834)
    shows_the_same(pairs[0], tolerance=2)


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


def test_published_patches_get_exact_landmarks_from_their_table(smooth: np.ndarray, tmp_path: Path) -> None:
    _, pairs = built("zurich_patches", patches(tmp_path / "in", smooth))
    assert [p.id for p in pairs] == ["zh7_01_04"] and pairs[0].files["fixed"].name == "zh7_01_04_R.png"
    shows_the_same(pairs[0], tolerance=2)


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


def test_zurich_tiles_have_colours_classes_and_exact_truth(tmp_path: Path) -> None:
    content, pairs = built("zurich", zurich(tmp_path / "in"))
    assert [p.id for p in pairs] == ["zh3_01_01", "zh3_01_02"]
    fixed, _ = read(pairs[0], "fixed")
    assert fixed.shape == (3, 300, 300) and (fixed[0].diff(dim=1) >= 0).all()  # red comes first and grows to the right
    labels = {s: read_label(pairs[0].files[f"{s}_label"], name=s, shape=(300, 300)) for s in ("fixed", "moving")}
    assert {s: v.unique().tolist() for s, v in labels.items()} == {"fixed": [0, 5], "moving": [0, 5]}
    assert content["label_names"]["5"] == "bare soil"
    seen = [labels[s][tuple(np.round(points(pairs[0], s)).astype(int).T)] for s in ("fixed", "moving")]
    assert (seen[0] == seen[1]).float().mean() > 0.9 and seen[0].max() == 5
    assert built("zurich", tmp_path / "in")[0] == content  # seeded


# --- errors


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


def test_the_list_names_source_licence_and_download_of_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    build()
    listed = capsys.readouterr().out
    assert len(DATASETS) == 12
    for data_set in DATASETS.values():
        card = data_set.card
        assert card.licence and card.citation and card.note
        assert all(part in listed for part in (card.name, card.origin, card.licence, "by hand"))
