# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A pair's folder is complete and readable, or it is as it was before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.images import read_image, read_label
from scripts.outputs import region_map, write_outputs
from scripts.prompts import Prompts
from scripts.registration import ImageInfo, RegionPairs, Registration
from scripts.staging import check_writable

FIXED, MOVING = (10, 12), (14, 9)
COMPLETE = {"moved", "ddf.nii.gz", "regions_moving", "regions_fixed", "prompts.json", "run.json"}


def block(shape: tuple[int, ...], start: int, stop: int, value: float = 0.9) -> torch.Tensor:
    """`value` where every index is in [start, stop), the thin third axis whole."""
    region = torch.zeros(shape)
    region[(slice(start, stop),) * 2] = value
    return region


def make(kind: str = "picture", *, boxes: bool = False) -> Registration:
    """Three pairs: the second was not found, the third overlaps the first with more confidence."""
    generator = torch.Generator().manual_seed(0)
    dims = 2 if kind == "picture" else 3
    fixed_shape, moving_shape = FIXED + (4,) * (dims - 2), MOVING + (5,) * (dims - 2)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]).double()) if dims == 3 else torch.eye(3).double()
    spacing = (2.0, 3.0, 4.0) if dims == 3 else (1.0, 1.0)
    fixed_info = ImageInfo("f", kind, ".png" if dims == 2 else ".nii.gz", affine, spacing)
    moving_info = ImageInfo("m", kind, ".jpg" if dims == 2 else ".mha", affine, spacing)
    labels = None if boxes else torch.tensor([[1, 0], [1, -1], [1, 1]])
    coordinates = torch.arange(3 * 2 * dims).reshape(3, 2, dims).float()
    pairs = RegionPairs(
        moving_prompts=Prompts(coordinates, labels),
        fixed_prompts=Prompts(coordinates + 1, labels),
        moving_regions=torch.stack(
            [block(moving_shape, a, b, v) for a, b, v in ((0, 4, 0.6), (6, 8, 0.7), (2, 5, 0.9))]
        ),
        fixed_regions=torch.stack([block(fixed_shape, a, b, v) for a, b, v in ((1, 5, 0.6), (6, 8, 0.7), (3, 6, 0.9))]),
        confidence=torch.tensor([0.8, 0.0, 0.6]),
        cues={"similarity": torch.tensor([0.7, float("nan"), 0.5])},
        found=torch.tensor([True, False, True]),
        ids=("liver", "2", "3"),
    )
    return Registration(
        fixed=torch.randint(0, 256, (1, *fixed_shape), generator=generator).float(),
        moving=torch.randint(0, 256, (1, *moving_shape), generator=generator).float(),
        moved=255 * torch.rand((1, *fixed_shape), generator=generator),
        fixed_info=fixed_info,
        moving_info=moving_info,
        ddf=torch.randn((dims, *fixed_shape), generator=generator),
        inverse=torch.zeros((dims, *fixed_shape)),
        to_moving=torch.eye(dims + 1),
        pairs=pairs,
        folding_percent=0.5,
        seconds={"encode": 1.0, "fit": 2.0},
        counts={"encodes": 2},
        settings={"seed": 3, "weight": torch.tensor(0.5)},
    )


def test_picture_folder_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pair"
    write_outputs(make(), folder, probabilities=True, report=lambda _, path: path.write_text("page", encoding="utf-8"))
    names = {"moved.png", "ddf.nii.gz", "regions_moving.png", "regions_fixed.png", "prompts.json", "run.json"}
    names |= {"probabilities_moving.npz", "probabilities_fixed.npz", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "report.html").read_text(encoding="utf-8") == "page"
    moved, _ = read_image(folder / "moved.png", name="moved")
    assert (moved - make().moved).abs().max() <= 0.5
    fixed = read_label(folder / "regions_fixed.png", name="x", shape=FIXED)
    moving = read_label(folder / "regions_moving.png", name="x", shape=MOVING)
    assert fixed.unique().tolist() == [0, 1, 3]
    assert moving.unique().tolist() == [0, 1, 2, 3]
    assert (fixed[2, 2], fixed[3, 3], fixed[7, 7]) == (1, 3, 0)  # in the overlap the more probable one
    with np.load(folder / "probabilities_fixed.npz") as saved:
        assert saved["probabilities"].shape == (3, *FIXED)
        assert saved["probabilities"].dtype == np.float16
        assert not saved["probabilities"][1].any()


def test_volume_folder_is_complete(tmp_path: Path) -> None:
    write_outputs(make("volume"), tmp_path)
    assert {path.name.removesuffix(".mha").removesuffix(".nii.gz") for path in tmp_path.iterdir()} == {
        name.removesuffix(".nii.gz") for name in COMPLETE
    }
    moved, info = read_image(tmp_path / "moved.nii.gz", name="moved")
    assert torch.allclose(moved, make("volume").moved)
    assert torch.equal(info.affine, make("volume").fixed_info.affine)
    assert read_label(tmp_path / "regions_moving.mha", name="x", shape=(*MOVING, 5)).max() == 3


def test_prompts_record(tmp_path: Path) -> None:
    write_outputs(make("volume"), tmp_path)
    first, second, third = json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8"))
    assert (first["id"], first["region"], first["kind"], first["status"]) == ("liver", 1, "point", "corresponding")
    assert first["moving"] == {"voxel": [[0, 1, 2], [3, 4, 5]], "world_mm": [[0, 3, 8], [6, 12, 20]], "labels": [1, 0]}
    assert first["fixed"]["voxel"] == [[1, 2, 3], [4, 5, 6]]
    assert (second["found"], second["fixed"], second["status"]) == (False, None, "no correspondence")
    assert second["moving"]["labels"] == [1]  # without padding
    assert (second["cues"], third["cues"]) == ({"similarity": None}, {"similarity": 0.5})


def test_boxes_and_pictures_have_no_labels_and_no_world(tmp_path: Path) -> None:
    write_outputs(make(boxes=True), tmp_path)
    first = json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8"))[0]
    assert first["kind"] == "box"
    assert first["moving"] == {"voxel": [[0, 1], [2, 3]], "world_mm": None, "labels": None}


def test_run_record(tmp_path: Path) -> None:
    write_outputs(make(), tmp_path)
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert (run["fixed_image"], run["moving_image"], run["seed"]) == ("f", "m", 3)
    assert run["settings"] == {"seed": 3, "weight": 0.5}
    assert set(run["versions"]) == {"python", "torch", "monai", "numpy", "scipy", "SimpleITK", "segment-anything"}
    assert run["seconds"] == {"encode": 1, "fit": 2}
    assert 50 < run["peak_memory_mb"] < 1e5


def test_no_region_at_all() -> None:
    assert region_map(torch.zeros(0, 4, 5), torch.zeros(0, dtype=torch.bool)).shape == (4, 5)
    assert region_map(torch.ones(2, 4, 5), torch.zeros(2, dtype=torch.bool)).sum() == 0


def fail(registration: Registration, path: Path) -> None:
    path.write_text("half", encoding="utf-8")
    raise RuntimeError("no page")


def test_failure_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no page"):
        write_outputs(make(), tmp_path / "new" / "pair", report=fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "moved.png").write_text("earlier", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no page"):
        write_outputs(make(), tmp_path, report=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["moved.png"]
    assert (tmp_path / "moved.png").read_text(encoding="utf-8") == "earlier"


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"run\.json"):
        write_outputs(make(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"^output_dir: .*cannot be written"):
            check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_results_of_an_earlier_run_under_other_endings_go(tmp_path: Path) -> None:
    for name in ("moved.tif", "probabilities_fixed.npz", "notes.txt"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    write_outputs(make(), tmp_path)
    assert not (tmp_path / "moved.tif").exists() and not (tmp_path / "probabilities_fixed.npz").exists()
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "old"
