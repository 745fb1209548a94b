# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prompts as people give them, every way of getting one wrong, and sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import DiscSegmenter, box_around, disc

from scripts.errors import InputError
from scripts.prompt_sampling import (
    Sampling,
    foreground,
    intersection_over_union,
    promote_clicks,
    sample_prompts,
    sharpness,
    stable_boxes,
)
from scripts.prompts import GivenPrompt, Prompts, batched, given_prompts, read_given

SHAPE = (64, 48)


def parsed(source: Any, shape: tuple[int, ...] = SHAPE, to_voxel: Tensor | None = None) -> list[GivenPrompt]:
    mask = torch.zeros(shape)
    mask[4:10, 20:31] = 3.0
    mask[40:43, 5:8] = 7.0
    entries = read_given(source)
    assert entries is not None
    known = {"m.png": mask, "blank.png": torch.zeros(shape)}
    masks = {entry["mask"]: known[Path(entry["mask"]).name] for entry in entries if "mask" in entry}
    return given_prompts(entries, shape, to_voxel, masks)


@pytest.mark.parametrize(
    ("source", "points", "labels"),
    [
        ([[12, 8]], [[12, 8]], [1]),
        ([[[12, 8], [20, 30]]], [[12, 8], [20, 30]], None),
        ([{"point": [12, 8]}], [[12, 8]], [1]),
        ([{"points": [[12, 8], [13, 9]]}], [[12, 8], [13, 9]], [1, 1]),
        ([{"points": [[12, 8], [13, 9]], "labels": [1, 0]}], [[12, 8], [13, 9]], [1, 0]),
        ([{"box": [[20, 8], [12, 30]]}], [[12, 8], [20, 30]], None),
        ([{"mask": "m.png", "label": 3}], [[3.5, 19.5], [9.5, 30.5]], None),
        ({"prompts": [{"point": [1.5, -0.5]}]}, [[1.5, -0.5]], [1]),
    ],
)
def test_accepted_forms(source: Any, points: list, labels: list | None, tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(source), encoding="utf-8")
    for given in (source, file, str(file)):
        (prompt,) = parsed(given)
        assert prompt.id == "1"
        assert prompt.points.tolist() == points
        assert (None if prompt.labels is None else prompt.labels.tolist()) == labels


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_prompts_mean_sampling(nothing: Any) -> None:
    assert read_given(nothing) is None


def test_ids_are_given_or_numbered() -> None:
    prompts = parsed([[1, 2], {"id": "liver", "point": [3, 4]}, {"id": "all", "mask": "m.png"}])
    assert [p.id for p in prompts] == ["1", "liver", "all:3", "all:7"]
    assert prompts[3].points.tolist() == [[39.5, 4.5], [42.5, 7.5]]


def test_world_space() -> None:
    to_voxel = torch.tensor([[0.0, 0.5, 0.0], [-1.0, 0.0, 40.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    click, box = parsed([[10, 24], [[10, 20], [30, 60]]], to_voxel=to_voxel)
    assert click.points.tolist() == [[12, 30]]
    assert box.points.tolist() == [[10, 10], [30, 30]]  # corners ordered although an axis runs backwards


def test_three_axes() -> None:
    (click,) = given_prompts(read_given([[1, 2, 3]]) or [], (4, 5, 6), None, {})
    assert click.points.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least one prompt"),
        (7, "expected a list"),
        ("nowhere.json", "there is no file nowhere.json"),
        ([{"circle": [1, 2]}], r"number 1 has the keys \['circle'\]"),
        ([{"point": [1, 2], "box": [[1, 2], [3, 4]]}], "expected exactly one of"),
        ([{"point": [1, 2], "colour": "red"}], "beside it only"),
        ([[1, 2, 3]], r"'1': \[\[1, 2, 3\]\] has the wrong length; the moving image has 2 axes"),
        ([[[1, 2, 3], [4, 5, 6]]], "has the wrong length"),
        ([["a", 2]], "no list of points; expected 2 numbers per point"),
        ([{"point": None}], "no list of points"),
        ([5], "wrong length"),
        ([[float("nan"), 2]], "NaN or infinite"),
        ([[64, 2]], r"voxel \[64.0, 2.0\] lies outside the moving image of size \[64, 48\]"),
        ([[-1, 2]], "lies outside the moving image"),
        ([{"box": [[1, 2], [3, 4], [5, 6]]}], "two corners, got 3 points"),
        ([{"box": [[1, 2], [1, 9]]}], "is empty; its corners must differ along every axis"),
        ([{"points": [[1, 2]], "labels": [1, 0]}], r"labels are \[1, 0\]; expected one of 1"),
        ([{"points": [[1, 2]], "labels": [2]}], r"labels are \[2\]"),
        ([{"points": [[1, 2]], "labels": [0]}], "all labels are 0"),
        ([{"mask": "m.png", "label": 5}], r"has the labels \[3, 7\], but \[5\] is needed"),
        ([{"mask": "blank.png"}], r"has the labels \[\], but one is needed"),
        ([{"id": "a", "point": [1, 2]}, {"id": "a", "point": [3, 4]}], r"the ids \['a'\] are used more than once"),
    ],
)
def test_wrong_prompts_are_told(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(source)


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[[1, 2]", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        read_given(tmp_path / "p.json")


def test_batched() -> None:
    clicks = parsed([[1, 2], {"points": [[3, 4], [5, 6]], "labels": [1, 0]}])
    both = batched(clicks)
    assert both is not None and both.kind == "point"
    assert both.labels is not None and both.labels.tolist() == [[1, -1], [1, 0]]
    assert both.coordinates[1].tolist() == [[3, 4], [5, 6]] and both.coordinates[0, 0].tolist() == [1, 2]
    boxes = parsed([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    together = batched(boxes)
    assert together is not None and together.kind == "box" and together.coordinates.shape == (2, 2, 2)
    assert batched(clicks + boxes) is None


def test_prompts_are_carried_by_matrices() -> None:
    matrix = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    moved = Prompts(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[1], [0]])).transformed(matrix)
    assert moved.coordinates.tolist() == [[[3, 6]], [[7, 12]]]
    assert moved[1:].labels is not None and len(moved[1:]) == 1


DISCS = (((20.0, 20.0), 10.0, 0.9), ((44.0, 42.0), 12.0, 0.5))


def two_discs() -> tuple[DiscSegmenter, Tensor]:
    toy = DiscSegmenter()
    return toy, sum(tone * disc((64, 64), centre, radius) for centre, radius, tone in DISCS)[None]


def sampled(how: str, count: int = 20, seed: int = 0, label: Tensor | None = None) -> list[GivenPrompt]:
    toy, image = two_discs()
    embedding = toy.encode([image])[0]
    return sample_prompts(
        toy, embedding, image, Sampling(how=how, count=count), torch.Generator().manual_seed(seed), label
    )


def values_at(mask: Tensor, prompts: list[GivenPrompt]) -> list[bool]:
    return [bool(mask[tuple(p.points[0].long())]) for p in prompts]


@pytest.mark.parametrize("how", ["uniform", "grid"])
def test_clicks_fall_on_the_foreground(how: str) -> None:
    prompts = sampled(how)
    assert len(prompts) == 20 and len({p.id for p in prompts}) == 20
    assert all(values_at(foreground(two_discs()[1]), prompts))
    assert len({tuple(p.points[0].tolist()) for p in prompts}) > 15


@pytest.mark.parametrize(("how", "inside"), [("inside", True), ("outside", False)])
def test_clicks_inside_and_outside_a_label(how: str, inside: bool) -> None:
    label = (disc((64, 64), *DISCS[0][:2]) > 0.5).int()
    prompts = sampled(how, label=label)
    assert values_at(label, prompts) == [inside] * 20
    assert all(values_at(foreground(two_discs()[1]), prompts))
    with pytest.raises(InputError, match="needs a moving label map"):
        sampled(how)
    with pytest.raises(InputError, match="needs a moving label map"):
        sampled(how, label=torch.zeros(64, 64))


@pytest.mark.parametrize("how", ["stable", "uniform", "inside"])
def test_the_seed_decides(how: str) -> None:
    label = (two_discs()[1][0] > 0.3).int()
    first, again, other = ([p.points for p in sampled(how, 8, seed, label)] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(first) != len(other) or not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def box_iou(a: Tensor, b: Tensor) -> float:
    common = (torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0])).clamp(min=0).prod()
    return (common / ((a[1] - a[0]).prod() + (b[1] - b[0]).prod() - common)).item()


def test_stable_boxes_cover_both_discs() -> None:
    toy, image = two_discs()
    how = Sampling(count=6, candidates=6.0, margin=1.0)
    boxes = stable_boxes(toy, toy.encode([image])[0], image, how, torch.Generator().manual_seed(0))
    assert 2 <= len(boxes) <= 6
    for centre, radius, _ in DISCS:
        assert max(box_iou(b.points, box_around(centre, radius)) for b in boxes) > 0.7


def test_nothing_stable_is_told() -> None:
    toy, image = two_discs()
    how = Sampling(count=1, candidates=1.0, sizes=(0.9, 0.95))  # larger than half of the image: never plausible
    with pytest.raises(InputError, match="no stable region found"):
        stable_boxes(toy, toy.encode([image])[0], image, how, torch.Generator().manual_seed(0))


def test_a_click_becomes_the_box_of_what_was_clicked() -> None:
    toy, image = two_discs()
    embedding = toy.encode([image])[0]
    box = parsed([[[5, 6], [15, 26]]])[0]
    clicks = [GivenPrompt("a", torch.tensor([[22.0, 18.0]]), torch.tensor([1])), box]
    clicks.append(GivenPrompt("b", torch.tensor([[44.0, 44.0], [20.0, 20.0]]), torch.tensor([1, 0])))
    boxes = promote_clicks(toy, embedding, clicks, Sampling(margin=1.0)).coordinates
    assert box_iou(boxes[0], box_around(*DISCS[0][:2])) > 0.7
    assert torch.equal(boxes[1], box.points)
    assert box_iou(boxes[2], box_around(*DISCS[1][:2])) > 0.7


def test_sharpness_and_overlap() -> None:
    a = torch.tensor([[True, True, False, False]])
    assert intersection_over_union(a, torch.tensor([[False, True, True, False]])).item() == pytest.approx(1 / 3)
    assert sharpness(torch.tensor([[9.0, 0.5, -0.5, -9.0]])).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("settings", "message"), [({"how": "random"}, "unknown way 'random'"), ({"count": 0}, "count is 0")]
)
def test_wrong_sampling(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_masks_of_a_file_are_found_beside_it(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"mask": "labels.png"}]), encoding="utf-8-sig")
    entries = read_given(tmp_path / "p.json")
    assert entries is not None and entries[0]["mask"] == str(tmp_path / "labels.png")
