# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Each builder on a tiny tree in the layout documented for its data set: pairs, labels, order of axes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.datasets.__main__ import DATASETS, build
from scripts.errors import InputError
from scripts.images import read_image, read_label
from tests.data_trees import (
    SHAPE,
    acdc,
    anhir,
    built,
    chaos,
    cima,
    fire,
    hippocampus,
    lung,
    points,
    prostate,
    read,
    text,
)


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


def test_prostate_pairs_different_subjects_only(tmp_path: Path) -> None:
    _, pairs = built("prostate", prostate(tmp_path / "in"))
    assert sorted(p.id for p in pairs) == ["Patient001_Patient002", "Patient002_Patient001"]
    assert all(p.files["fixed_label"].parent.name == "mask" for p in pairs)


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


def test_fire_points_turn_from_x_y_to_row_column(tmp_path: Path) -> None:
    _, pairs = built("fire", fire(tmp_path / "in"))
    assert [p.id for p in pairs] == ["A01", "S02"] and pairs[0].unit == "px"
    assert pairs[0].files["fixed"].name == "A01_1.jpg"
    assert points(pairs[0], "fixed").tolist() == [[3, 25], [18, 7.5]]
    assert points(pairs[0], "moving").tolist() == [[4, 21], [19, 6]]
    assert [p.id for p in built("fire", tmp_path / "in", split="S")[1]] == ["S02"]


def test_anhir_target_is_fixed_and_points_are_those_both_have(tmp_path: Path) -> None:
    _, pairs = built("anhir", anhir(tmp_path / "in"))
    assert [p.id for p in pairs] == ["3_lung_1"] and pairs[0].files["fixed"].name == "b.jpg"
    assert points(pairs[0], "fixed").tolist() == [[5, 10], [6, 11]]
    assert points(pairs[0], "moving").tolist() == [[1, 20], [2, 21]]
    content, withheld = built("anhir", tmp_path / "in", split="evaluation")
    assert content["pairs"][0]["no_truth"] is True and "fixed_landmarks" not in withheld[0].files


def test_cima_pairs_every_two_stains_of_a_set(tmp_path: Path) -> None:
    _, pairs = built("cima", cima(tmp_path / "in"))
    assert len(pairs) == 3 and points(pairs[0], "moving").tolist() == [[13, 26], [11, 25]]
    assert pairs[0].id == "lung-lesion_1__cc10__he"


def test_the_list_names_source_licence_and_download_of_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    build()
    listed = capsys.readouterr().out
    assert len(DATASETS) == 12
    for data_set in DATASETS.values():
        card = data_set.card
        assert card.licence and card.citation and card.note
        assert all(part in listed for part in (card.name, card.origin, card.licence, "by hand"))
