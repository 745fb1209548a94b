# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Lists of pairs: what is read, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.datalist import read_datalists, read_landmarks
from scripts.errors import InputError


def write(path: Path, **content: Any) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def pair(**more: Any) -> dict[str, Any]:
    return {"id": "a", "fixed": "f.png", "moving": "m.png", **more}


def test_a_list_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.json",
        name="slices",
        application="brain",
        unit="px",
        label_groups={"left": [1, 2]},
        pairs=[pair(fixed_label="l.png", spacing=[2, 3])],
    )
    (entry,) = read_datalists(path)
    assert (entry.id, entry.set, entry.unit) == ("a", "brain/slices", "px")
    assert entry.files == {"fixed": tmp_path / "f.png", "moving": tmp_path / "m.png", "fixed_label": tmp_path / "l.png"}
    assert entry.spacing == (2, 3) and entry.moving_spacing == (2, 3) and entry.groups == {"left": [1, 2]}


def test_an_exchanged_pair_keeps_what_belongs_to_each_image(tmp_path: Path) -> None:
    truth = {"moving_label": "ml.png", "fixed_landmarks": "f.csv", "moving_landmarks": "m.csv"}
    (entry,) = read_datalists(write(tmp_path / "d.json", pairs=[pair(**truth, spacing=[1, 2], moving_spacing=[3, 4])]))
    exchanged = entry.exchanged()
    names = {role: path.name for role, path in exchanged.files.items()}
    assert names == {
        "fixed": "m.png",
        "moving": "f.png",
        "fixed_label": "ml.png",
        "fixed_landmarks": "m.csv",
        "moving_landmarks": "f.csv",
    }
    assert (exchanged.spacing, exchanged.moving_spacing) == ((3, 4), (1, 2))
    assert exchanged.set == f"{entry.set}_exchanged" and exchanged.exchanged().files == entry.files
    assert exchanged.digest() != entry.digest()


def test_pairs_without_truth_have_none(tmp_path: Path) -> None:
    (entry,) = read_datalists(write(tmp_path / "d.json", pairs=[pair(fixed_label="l.png", no_truth=True)]))
    assert set(entry.files) == {"fixed", "moving"} and entry.set == tmp_path.name


def test_the_digest_follows_the_contents(tmp_path: Path) -> None:
    (entry,) = read_datalists(write(tmp_path / "d.json", pairs=[pair()]))
    missing = entry.digest()
    (tmp_path / "f.png").write_bytes(b"1")
    first = entry.digest()
    (tmp_path / "f.png").write_bytes(b"2")
    assert len({missing, first, entry.digest()}) == 3
    (tmp_path / "f.png").write_bytes(b"1")
    assert entry.digest() == first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"pairs": []}, "expected"),
        ({"pairs": "x"}, "expected"),
        ({"pairs": [{"id": "a", "fixed": "f.png"}]}, "lacks \\['moving'\\]"),
        ({"pairs": [{**pair(), "id": "../a"}]}, "cannot name a folder"),
        ({"pairs": [pair()], "name": ".."}, "cannot name a folder"),
        ({"pairs": [pair(), pair()]}, "twice"),
        ({"pairs": [{**pair(), "fixed_landmarks": "p.csv"}]}, "one side only"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_datalists(write(tmp_path / "d.json", **content))


@pytest.mark.parametrize("path", ["", [], "nowhere.json"])
def test_no_list_is_refused(path: Any) -> None:
    with pytest.raises(InputError, match="datalist"):
        read_datalists(path)


def test_landmarks_have_the_coordinate_first(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("i,j\n1.5,2\n3,4\n5,6\n", encoding="utf-8")
    assert torch.equal(read_landmarks(path, 2), torch.tensor([[1.5, 3, 5], [2, 4, 6]]))


@pytest.mark.parametrize("text", ["j,i\n1,2\n", "i,j\n", "i,j\n1\n", "i,j\n1,x\n", "i,j\n1,nan\n", ""])
def test_wrong_landmarks_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"p\.csv"):
        read_landmarks(path, 2)
