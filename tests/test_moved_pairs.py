"""Pairs that are moved on purpose: where a place goes, and what the lists say."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from scripts.datalist import read_datalists
from scripts.errors import InputError
from scripts.moved_pairs import moved, moved_volume, run


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    picture = np.zeros((41, 61), np.uint8)
    picture[20, 40] = 7  # ten to the right of the middle
    for name in ("fixed", "moving", "fixed_label", "moving_label"):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    files = {name: f"{name}.png" for name in ("fixed", "moving", "fixed_label", "moving_label")}
    path = tmp_path / "datalist.json"
    path.write_text(
        json.dumps({"name": "dots", "label_groups": {"dot": [7]}, "pairs": [{"id": "a", **files, "spacing": [1, 2]}]})
    )
    return path


def test_a_turn_and_a_shift_carry_a_place_where_they_say(datalist: Path) -> None:
    picture = np.array(moved(datalist.parent / "moving_label.png", 90, 0.1, labels=True))
    assert np.argwhere(picture == 7).tolist() == [[20 - 10 + 6, 30 + 6]]  # counterclockwise, then down and right


@pytest.mark.parametrize("mirrored", [1, -1])
@pytest.mark.parametrize(("axis", "there"), [(2, (15, 20, 8)), (0, (20, 20, 13)), (1, (20, 25, 8))])
def test_a_volume_is_turned_about_an_axis_of_its_array(
    tmp_path: Path, axis: int, there: tuple[int, int, int], mirrored: int
) -> None:
    """By 90 degrees about the middle (20, 20, 8), whatever the directions."""
    array = np.zeros((41, 41, 17), np.uint8)
    array[20, 25, 8] = 7
    affine = np.diag([-1.0, 1.0, mirrored, 1.0])
    affine[:3, 3] = 30, -20, 10
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "label.nii.gz")
    volume = moved_volume(tmp_path / "label.nii.gz", 90, 0.0, axis, labels=True)
    assert volume.GetOrigin() == sitk.ReadImage(str(tmp_path / "label.nii.gz")).GetOrigin()
    assert np.argwhere(sitk.GetArrayFromImage(volume).T == 7).tolist() == [list(there)]
    shifted = sitk.GetArrayFromImage(moved_volume(tmp_path / "label.nii.gz", 90, 0.1, axis, labels=True)).T
    assert np.abs(np.argwhere(shifted == 7) - np.array(there) - [4, 4, 0]).max() <= 1


def test_the_list_holds_moved_moving_images_beside_the_fixed_ones(datalist: Path, tmp_path: Path) -> None:
    run(str(datalist), str(tmp_path / "out"), turn=90)
    (entry,) = read_datalists(str(tmp_path / "out" / "dots" / "datalist.json"))
    assert (entry.set, entry.id, entry.spacing) == ("dots_moved", "a", (1.0, 2.0))
    assert (entry.unit, entry.groups) == ("mm", {"dot": [7]})
    assert np.array(Image.open(entry.files["fixed_label"]))[20, 40] == 7
    assert np.array(Image.open(entry.files["moving_label"]))[10, 30] == 7


def test_what_cannot_be_moved_is_named(datalist: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="turn: 'much'"):
        run(str(datalist), str(tmp_path / "out"), turn="much")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no pair without landmarks called \['b'\]"):
        run(str(datalist), str(tmp_path / "out"), ids=["b"])
    with pytest.raises(InputError, match="axis: 3, expected 0, 1 or 2"):
        run(str(datalist), str(tmp_path / "out"), axis=3)
    (tmp_path / "moving.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputError, match=r"moving\.nii\.gz: cannot be moved, expected a picture or a volume"):
        moved_volume(tmp_path / "moving.nii.gz", 20, 0.0)
    (tmp_path / "moving.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"moving\.png: cannot be moved"):
        run(str(datalist), str(tmp_path / "out"))
