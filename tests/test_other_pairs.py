"""Pairs that a list does not name: which they are, and slices that are where they should be."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.datalist import read_datalists
from scripts.errors import InputError
from scripts.other_pairs import others, slices


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    pairs = [{"id": "a_b", "fixed": "a_image.png", "moving": "b_image.png"}]
    pairs += [{"id": "b_c", "fixed": "b_image.png", "moving": "c_image.png", "moving_label": "c_label.png"}]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"name": "few", "application": "test", "unit": "px", "pairs": pairs}))
    return path


def test_other_pairs_are_those_that_are_listed_in_neither_direction(pictures: Path, tmp_path: Path) -> None:
    others(str(pictures), str(tmp_path / "out"))
    entries = read_datalists(str(tmp_path / "out" / "test" / "few_others" / "datalist.json"))
    assert [(entry.set, entry.id, entry.unit) for entry in entries] == [
        ("test/few_others", "a_c", "px"),
        ("test/few_others", "c_a", "px"),
    ]
    assert entries[1].files == {
        "fixed": tmp_path / "c_image.png",
        "fixed_label": tmp_path / "c_label.png",
        "moving": tmp_path / "a_image.png",
    }
    others(str(pictures), str(tmp_path / "one"), most=1)
    assert len(read_datalists(str(tmp_path / "one" / "test" / "few_others" / "datalist.json"))) == 1


def test_numbers_are_whole(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="most: 0, expected a whole number from 1 on"):
        others(str(pictures), str(tmp_path / "out"), most=0)


def test_a_set_that_names_every_pair_has_no_others(pictures: Path, tmp_path: Path) -> None:
    content = json.loads(pictures.read_text())
    pictures.write_text(json.dumps({**content, "pairs": content["pairs"][:1]}))
    with pytest.raises(InputError, match="'test/few' names every pair"):
        others(str(pictures), str(tmp_path / "out"))


def test_slices_are_cut_across_the_coarsest_axis(tmp_path: Path) -> None:
    """One bright voxel of label 7 in slice 3, whose voxels are 5 mm apart along the array's second axis."""
    volume = np.zeros((20, 8, 24), np.float32)
    volume[11, 3, 17] = 900
    for name, values in (("a", volume), ("b", volume), ("label", (volume > 0) * 7.0)):
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 5.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    files = {"fixed": "a.nii.gz", "moving": "b.nii.gz", "fixed_label": "label.nii.gz", "moving_label": "label.nii.gz"}
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"name": "thick", "pairs": [{"id": "p", **files}]}))
    slices(str(path), str(tmp_path / "out"), at=[2, 3])
    empty, lit = read_datalists(str(tmp_path / "out" / "thick_slices" / "datalist.json"))
    assert (lit.id, lit.spacing, lit.moving_spacing) == ("p_3", (1.0, 2.0), (1.0, 2.0))
    for role, value in (("fixed", 255), ("moving_label", 7)):
        assert np.argwhere(np.array(Image.open(lit.files[role])) == value).tolist() == [[11, 17]]
        assert not np.array(Image.open(empty.files[role])).any()
    with pytest.raises(InputError, match=r"at: \[3, 8\] are no slices"):
        slices(str(path), str(tmp_path / "none"), at=[3, 8])
    with pytest.raises(InputError, match="at: 3, expected whole numbers"):
        slices(str(path), str(tmp_path / "none"), at=3)  # type: ignore[arg-type]
    nib.save(nib.Nifti1Image((volume > 0) * 300.0, np.diag([1.0, 5.0, 2.0, 1.0])), tmp_path / "label.nii.gz")
    with pytest.raises(InputError, match="labels beyond 0 to 255"):
        slices(str(path), str(tmp_path / "none"), at=[3])
    assert not (tmp_path / "none").exists()
