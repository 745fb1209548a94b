"""Pairs that are moved on purpose: where a place goes, and what the lists say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.datalist import read_datalists
from scripts.errors import InputError
from scripts.moved_pairs import moved, run


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
    (tmp_path / "moving.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"moving\.png: cannot be moved"):
        run(str(datalist), str(tmp_path / "out"))
