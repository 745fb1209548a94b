"""Pairs that are moved on purpose: where a place goes, and what the lists say."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from scripts.datalist import read_datalists, read_landmarks
from scripts.errors import InputError
from scripts.moved_pairs import Motion, run


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
    there = [20 - 10 + 6, 30 + 6]  # counterclockwise, then down and right
    picture, ahead = Motion(90, shift=0.1).picture(datalist.parent / "moving_label.png", labels=True)
    assert np.argwhere(picture == 7).tolist() == [there]
    assert ahead @ [20, 40, 1] == pytest.approx([*there, 1])


def test_a_scale_leaves_the_middle_where_it_is(datalist: Path) -> None:
    picture, ahead = Motion(scale=2).picture(datalist.parent / "moving_label.png", labels=True)
    places = np.argwhere(picture == 7)
    assert places.mean(0) == pytest.approx([20, 50], abs=0.5) and len(places) in (1, 2, 4)
    assert ahead @ [20, 40, 1] == pytest.approx([20, 50, 1])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (np.array([[0, 300], [50_800, 65_535]], np.uint16), "deep.png"),
        (np.array([[[0, 30, 60], [90, 120, 150]], [[1, 2, 3], [250, 251, 252]]], np.uint8), "colour.png"),
        (np.array([[0.25, -3.5], [1e6, 7]], np.float32), "float.tif"),
        (np.array([[0, -70_000], [70_000, 5]], np.int32), "whole.tif"),
    ],
)
def test_values_are_kept_as_they_are_stored(tmp_path: Path, values: np.ndarray, name: str) -> None:
    Image.fromarray(values).save(tmp_path / name)
    for labels in (False, True):
        same, _ = Motion().picture(tmp_path / name, labels=labels)
        assert same.dtype == values.dtype and np.array_equal(same, values)
    turned, _ = Motion(turn=90).picture(tmp_path / name)
    assert np.array_equal(turned, np.rot90(values))


def test_what_is_between_pixels_is_interpolated_and_labels_are_not(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0, 100, 100]], np.uint16).repeat(4, 0)).save(tmp_path / "step.png")
    assert set(np.unique(Motion(scale=3).picture(tmp_path / "step.png")[0])) > {0, 100}
    assert set(np.unique(Motion(scale=3).picture(tmp_path / "step.png", labels=True)[0])) == {0, 100}


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
    volume, ahead = Motion(90, axis=axis).volume(tmp_path / "label.nii.gz", labels=True)
    assert volume.GetOrigin() == sitk.ReadImage(str(tmp_path / "label.nii.gz")).GetOrigin()
    assert np.argwhere(sitk.GetArrayFromImage(volume).T == 7).tolist() == [list(there)]
    assert ahead @ [20, 25, 8, 1] == pytest.approx([*there, 1], abs=1e-6)
    volume, ahead = Motion(90, 1.5, 0.1, axis).volume(tmp_path / "label.nii.gz", labels=True)
    place = 1.5 * (np.array(there) - [20, 20, 8]) + [20, 20, 8] + np.array([4.1, 4.1, 0])  # a tenth of 41 voxels
    assert np.abs(np.argwhere(sitk.GetArrayFromImage(volume).T == 7) - place).max() <= 1
    assert ahead @ [20, 25, 8, 1] == pytest.approx([*place, 1], abs=1e-6)


def test_the_list_holds_moved_moving_images_beside_the_fixed_ones(datalist: Path, tmp_path: Path) -> None:
    run(str(datalist), str(tmp_path / "out"), turn=90)
    (entry,) = read_datalists(str(tmp_path / "out" / "dots" / "datalist.json"))
    assert (entry.set, entry.id, entry.spacing) == ("dots_moved", "a", (1.0, 2.0))
    assert (entry.unit, entry.groups) == ("mm", {"dot": [7]})
    assert np.array(Image.open(entry.files["fixed_label"]))[20, 40] == 7
    assert np.array(Image.open(entry.files["moving_label"]))[10, 30] == 7


def test_landmarks_go_along_and_those_that_leave_are_lost_on_both_sides(datalist: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed.csv").write_text("i,j\n1,2\n3,4\n5,6\n")
    (tmp_path / "moving.csv").write_text("i,j\n20,40\n20,0\n20,30\n")
    content = json.loads(datalist.read_text())
    content["pairs"][0] |= {"fixed_landmarks": "fixed.csv", "moving_landmarks": "moving.csv"}
    datalist.write_text(json.dumps(content))
    run(str(datalist), str(tmp_path / "out"), turn=90, ids="a")
    (entry,) = read_datalists(str(tmp_path / "out" / "dots" / "datalist.json"))
    assert read_landmarks(entry.files["fixed_landmarks"], 2).T.tolist() == [[1, 2], [5, 6]]
    assert read_landmarks(entry.files["moving_landmarks"], 2).T.tolist() == [[10, 30], [20, 30]]
    (tmp_path / "moving.csv").write_text("i,j\n0,0\n40,60\n20,30\n")
    run(str(datalist), str(tmp_path / "corners"), turn=180)
    (entry,) = read_datalists(str(tmp_path / "corners" / "dots" / "datalist.json"))
    assert read_landmarks(entry.files["moving_landmarks"], 2).T.tolist() == [[40, 60], [0, 0], [20, 30]]
    with pytest.raises(InputError, match="pair 'a' keeps no landmark inside its frame"):
        run(str(datalist), str(tmp_path / "far"), shift=2)
    (tmp_path / "moving.csv").write_text("i,j\n20,40\n")
    with pytest.raises(InputError, match="pair 'a': 3 fixed and 1 moving ones; rows must belong together"):
        run(str(datalist), str(tmp_path / "few"), turn=90)


def test_what_cannot_be_moved_is_named(datalist: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="turn: 'much'"):
        run(str(datalist), str(tmp_path / "out"), turn="much")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no pair called \['b'\]"):
        run(str(datalist), str(tmp_path / "out"), ids=["b"])
    for axis in (3, 1.0, True):
        with pytest.raises(InputError, match=f"axis: {axis}, expected 0, 1 or 2"):
            run(str(datalist), str(tmp_path / "out"), axis=axis)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scale: 0, expected a number above 0"):
        run(str(datalist), str(tmp_path / "out"), scale=0)
    (tmp_path / "moving.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputError, match=r"moving\.nii\.gz: cannot be moved, expected a picture or a volume"):
        Motion(20).volume(tmp_path / "moving.nii.gz")
    (tmp_path / "moving.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"moving\.png: cannot be moved"):
        run(str(datalist), str(tmp_path / "out"))
