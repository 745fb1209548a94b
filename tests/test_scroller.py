# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A volume slice by slice: the right axis, the right slices, and the areas that were planted in them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import scroller
from scripts.drawing import draw_prompt, panels
from scripts.geometry import identity_points
from scripts.prompts import Prompts
from scripts.registration import ImageInfo, RegionPairs, Registration
from scripts.report import write_report
from scripts.scroller import slice_frames, slices_of, thinned, through_plane_axis
from scripts.sections import section_areas, sections_figure

RADIUS, CENTRE = 12.0, torch.tensor([20.0, 22.0, 9.0])  # mm, voxels
SPACING = torch.tensor([1.0, 1.5, 2.0])


def ball(shape: tuple[int, ...], centre: torch.Tensor) -> torch.Tensor:
    """1 within `RADIUS` mm of a voxel, else 0."""
    distance = ((identity_points(shape) - centre.reshape(3, 1, 1, 1)) * SPACING.reshape(3, 1, 1, 1)).norm(dim=0)
    return (distance <= RADIUS).float()


def planted(shift: tuple[float, ...] = (4.0, -3.0, 2.0), *, shape: tuple[int, ...] = (40, 44, 18)) -> Registration:
    """A ball in the fixed volume and the same ball shifted in the moving one, which the map knows; two pairs, one
    found.
    """
    moving_shape, offset = tuple(n + 8 for n in shape), torch.tensor(shift)
    info = ImageInfo("", "volume", ".nii.gz", torch.diag(torch.tensor([1.0, 1.5, 2.0, 1.0]).double()), (1.0, 1.5, 2.0))
    fixed, moving = ball(shape, CENTRE), ball(moving_shape, CENTRE + offset)
    prompts = Prompts(CENTRE.repeat(2, 1, 1), torch.ones(2, 1, dtype=torch.int64))
    found, regions = torch.tensor([True, False]), (moving.repeat(2, 1, 1, 1), fixed.repeat(2, 1, 1, 1))
    pairs = RegionPairs(prompts, prompts, *regions, found.float(), {}, found, ("ball", "lost"))
    # Half of the shift is in the field, half in the images' own alignment.
    ddf = (offset / 2).reshape(3, 1, 1, 1).expand(3, *shape).clone()
    to_moving = torch.eye(4)
    to_moving[:3, 3] = offset / 2
    images = fixed[None] + 0.1, moving[None] + 0.1, fixed[None] + 0.1
    return Registration(*images, info, info, ddf, -ddf, to_moving, pairs, 0.0, {}, {})


def test_through_plane_axis_is_the_thickest_then_the_shortest() -> None:
    assert through_plane_axis((9, 99, 99), (1.0, 1.0, 3.0)) == 2
    assert through_plane_axis((99, 9, 99), (3.0, 1.0, 1.0)) == 0
    assert through_plane_axis((99, 9, 99), (1.0, 1.0, 1.0)) == 1
    assert through_plane_axis((99, 9, 99), (1.0, 1.0, 1.000001)) == 1
    assert through_plane_axis((9, 9, 9), (1.0, 1.0, 1.0)) == 2


def test_thinned_slices_are_spread_evenly_from_end_to_end() -> None:
    assert thinned(3) == [0, 1, 2] and thinned(40) == list(range(40))
    many = thinned(201)
    assert len(many) == 40 and many[0] == 0 and many[-1] == 200
    assert set(np.diff(many)) == {5, 6}


def test_planted_ball_has_its_section_areas_on_both_sides() -> None:
    areas = section_areas(planted())
    heights = 2.0 * (torch.arange(18) - CENTRE[2])
    expected = math.pi * (RADIUS**2 - heights.square()).clamp(min=0)
    assert areas.shape == (2, 2, 18)
    assert torch.equal(areas[0], areas[1])  # a shift by whole voxels changes nothing
    assert (areas[0, 0] - expected).abs().max() < 0.05 * math.pi * RADIUS**2
    assert torch.equal(areas[0, 0] > 0, heights.abs() <= RADIUS)
    assert float(areas[0, 0].sum()) == pytest.approx(float(expected.sum()), rel=0.02)


def test_a_slice_that_is_lost_shows_in_the_areas() -> None:
    registration = planted()
    registration.pairs.fixed_regions[0, :, :, 9] = 0
    areas = section_areas(registration)[:, 0]
    assert areas[0, 9] == 0 and areas[1, 9] == pytest.approx(math.pi * RADIUS**2, rel=0.05)
    assert torch.equal(areas[0, :9], areas[1, :9]) and torch.equal(areas[0, 10:], areas[1, 10:])


def test_areas_of_a_map_that_is_off_by_a_slice() -> None:
    registration = planted()
    registration.ddf[2] += 1  # the map looks one slice too far
    areas = section_areas(registration)[:, 0]
    assert torch.equal(areas[1, :-1], areas[0, 1:])


def test_plot_draws_both_areas_of_each_pair_found() -> None:
    registration = planted()
    areas = section_areas(registration)
    figure = sections_figure(areas, registration.pairs, 2.0)
    (panel,) = figure.axes
    fixed, carried = panel.lines
    assert panel.get_title() == "ball" and fixed.get_linestyle() == "-" and carried.is_dashed()
    assert fixed.get_xdata().tolist() == [2.0 * at for at in range(18)]
    assert np.array_equal(fixed.get_ydata(), areas[0, 0]) and np.array_equal(carried.get_ydata(), areas[1, 0])
    left, right = panel.get_xlim()
    assert 2.0 < left < 4.0 and 32.0 < right < 34.0  # the ball's slices, 3 to 15, and one to each side, of 2 mm
    nothing = replace(registration.pairs, found=torch.zeros(2, dtype=torch.bool))
    assert sections_figure(areas, nothing, 2.0) is None


def test_scroller_has_a_frame_for_every_slice_and_names_its_place(tmp_path: Path) -> None:
    write_report(planted(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    labels = re.findall(r'data-label="([^"]+)"', page)
    assert labels == [f"Slice {at} · {2 * at:.1f} mm" for at in range(18)]
    visible = re.findall(r'data-label="Slice (\d+)[^"]*" src=', page)  # the others are hidden until asked for
    assert visible == ["9"] and page.count(" hidden src=") == 17
    assert "<output>Slice 9 · 18.0 mm</output>" in page and 'max="17" value="9"' in page
    assert "All of the 18 axial slices" in page


def test_scroller_of_a_long_volume_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scroller, "thinned", lambda count: thinned(count, 4))
    write_report(planted(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'data-label="Slice (\d+) · ([\d.]+) mm"', page) == [
        ("0", "0.0"),
        ("6", "12.0"),
        ("11", "22.0"),
        ("17", "34.0"),
    ]
    assert "4 of the 18 axial slices" in page and "<output>Slice 11 · 22.0 mm</output>" in page


def test_names_are_no_formulas(tmp_path: Path) -> None:
    registration = planted()
    write_report(replace(registration, pairs=replace(registration.pairs, ids=("$\\x$", "b"))), tmp_path / "report.html")
    assert "<b>$\\x$</b>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_frames_show_what_lies_in_their_slice() -> None:
    frames = list(slice_frames(planted()))
    named = [frame.slice for frame in frames if any(text.get_text() == "ball" for text in frame.figure.axes[0].texts)]
    assert named == [9]  # the click's own slice alone
    outlined = [[len(panel.collections) > 0 for panel in frame.figure.axes] for frame in frames]
    cut = [4 <= frame.slice <= 14 for frame in frames]  # 12 mm are 6 slices; the outermost is a point
    assert [row[0] for row, inside in zip(outlined, cut, strict=True) if inside] == [True] * 11
    assert [row[:2] for row in outlined] == [[row[0]] * 2 for row in outlined]
    assert not any(row[2] for row in outlined)


def test_boxes_are_shown_in_the_slices_they_span() -> None:
    box = Prompts(torch.stack([CENTRE - 3, CENTRE + 3])[None])
    shown = []
    for at, plane in enumerate(slices_of(planted())):
        _, axes = panels([[plane]], ["fixed"])
        draw_prompt(axes[0, 0], plane, box, 0, "red", "box", reach=0.5)
        if axes[0, 0].patches:
            shown.append(at)
            assert len(axes[0, 0].texts) == len(axes[0, 0].collections) == (at == 9)  # name and star at its centre
    assert shown == list(range(6, 13))


def test_pictures_have_no_slices() -> None:
    registration = planted()
    flat = replace(registration, fixed=registration.fixed[..., 0])
    assert slices_of(flat) == [] and list(slice_frames(flat)) == []
