# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Pairs of an image and itself, turned and shifted by known amounts: landmarks are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.transform import SimilarityTransform, warp

from scripts.datalist import PairEntry
from scripts.datasets.turned import drawn, exact_landmarks, rigid
from scripts.images import read_label
from tests.data_trees import built, patches, picture, points, read, zurich


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


def test_published_patches_get_exact_landmarks_from_their_table(smooth: np.ndarray, tmp_path: Path) -> None:
    _, pairs = built("zurich_patches", patches(tmp_path / "in", smooth))
    assert [p.id for p in pairs] == ["zh7_01_04"] and pairs[0].files["fixed"].name == "zh7_01_04_R.png"
    shows_the_same(pairs[0], tolerance=2)


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
