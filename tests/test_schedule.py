# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Which levels a grid can resolve, on how many voxels, how stiff; wrong settings fail before any work."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from scripts.errors import InputError
from scripts.grid import Grid
from scripts.schedule import Fit, Level, schedule

BAR, SHEET = Grid((96, 48, 48), (1.0, 1.0, 1.0)), Grid((96, 48), (1.0, 1.0))
FIT = Fit(
    levels=[Level(48, 8, 1), Level(96, 16, 1), Level(72, 48, 1)],
    smoothness=[1.0, 2.0],
    voxels=48 * 24 * 24,
    fine=48,
    both_ways=16,
)


def test_a_fine_level_of_a_volume_gets_a_grid_of_its_own() -> None:
    """48 intervals need 72 voxels, 72 x 36 x 36 in a bar; one voxel fewer is too few, and so is the usual grid."""

    def shapes(fit: Fit) -> list[tuple[int, ...]]:
        return [stage.grid.shape for stage in schedule(fit, BAR)]

    usual = shapes(replace(FIT, fine=None))
    assert len(usual) == 2 and all(prod(shape) <= FIT.voxels for shape in usual)
    assert shapes(FIT) == [*usual, (72, 36, 36)]
    assert shapes(replace(FIT, levels=[*FIT.levels[:2], Level(71, 48, 1)])) == usual


def test_a_fine_level_measures_bending_in_its_own_intervals_and_goes_one_way() -> None:
    volume, picture = schedule(FIT, BAR), schedule(FIT, SHEET)
    assert [stage.bending for stage in volume] == pytest.approx([2 / 16**2, 2 / 16**2, 2 / 48**2])
    assert [stage.both_ways for stage in volume] == [False, True, False]
    assert [stage.bending for stage in picture] == pytest.approx([1 / 48**2] * 3)
    assert [stage.both_ways for stage in picture] == [False, True, True]


def test_lengths_may_be_each_level_s_own() -> None:
    """Half as many intervals, each twice as long: the same bend costs four times as much."""
    own = replace(FIT, lengths="own")
    assert [stage.bending for stage in schedule(own, SHEET)] == pytest.approx([1 / 8**2, 1 / 16**2, 1 / 48**2])
    assert [stage.bending for stage in schedule(own, BAR)] == pytest.approx([2 / 8**2, 2 / 16**2, 2 / 48**2])
    assert schedule(replace(FIT, lengths="finest"), BAR) == schedule(FIT, BAR)


@pytest.mark.parametrize("value", ["coarsest", ["own", "finest"], None, True])
def test_lengths_are_words(value: object) -> None:
    with pytest.raises(InputError, match=r"fit: lengths is .* expected 'finest' or 'own'"):
        Fit(levels=[Level(16, 4, 5)], lengths=value)


def test_no_level_is_fine_that_has_two_voxels_an_interval_on_the_usual_grid() -> None:
    wide = replace(FIT, voxels=96 * 48 * 48, levels=[*FIT.levels[:2], Level(96, 48, 1)])
    stages = schedule(wide, BAR)
    assert stages[-1].both_ways and [stage.bending for stage in stages] == pytest.approx([2 / 48**2] * 3)
    assert not schedule(replace(wide, levels=[*FIT.levels[:2], Level(95, 48, 1)]), BAR)[-1].both_ways


def test_pictures_and_volumes_may_take_steps_of_their_own() -> None:
    fit = replace(FIT, levels=[Level(16, 8, [7, 3]), Level(32, 16, 5)])
    assert [stage.steps for stage in schedule(fit, SHEET)] == [7, 5]
    assert [stage.steps for stage in schedule(fit, BAR)] == [3, 5]


def test_a_level_of_no_steps_is_left_out() -> None:
    fit = replace(FIT, levels=[Level(16, 8, [7, 0]), Level(32, 16, 5), Level(72, 48, [0, 4])])
    assert [stage.level.controls for stage in schedule(fit, SHEET)] == [8, 16]
    assert [stage.level.controls for stage in schedule(fit, BAR)] == [16, 48]


def test_an_affine_needs_no_intervals() -> None:
    stages = schedule(replace(FIT, kind="affine"), BAR, every=True)
    assert [stage.level.controls for stage in stages] == [8, 16, 48]
    assert all(prod(stage.grid.shape) <= FIT.voxels for stage in stages) and stages[-1].both_ways


@pytest.mark.parametrize(
    "level",
    [
        {"size": "x"},
        {"controls": 8.5},
        {"controls": -1},
        {"steps": 0},
        {"steps": [5]},
        {"steps": [5, -1]},
        {"size": True},
    ],
)
def test_levels_are_whole_numbers(level: dict) -> None:
    with pytest.raises(InputError, match=r"fit: levels are .* expected whole sizes"):
        Fit(levels=[{"size": 16, "controls": 4, "steps": 5} | level])


@pytest.mark.parametrize("value", [0, -1.0, "abc", True, float("nan"), None])
def test_the_step_is_a_number_above_zero(value: object) -> None:
    with pytest.raises(InputError, match=r"fit: step is .* expected a number above 0"):
        Fit(levels=[Level(16, 4, 5)], step=value)


@pytest.mark.parametrize("value", [-1, "abc", True, 1.5e5])
@pytest.mark.parametrize("name", ["voxels", "fine", "both_ways"])
def test_bounds_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"fit: {name} is .* expected a whole number"):
        Fit(levels=[Level(16, 4, 5)], **{name: value})


@pytest.mark.parametrize("value", [-1.0, "abc", True, float("nan")])
@pytest.mark.parametrize("name", ["smoothness", "stiffness"])
def test_weights_are_numbers_from_zero_on(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"fit: {name} is"):
        Fit(levels=[Level(16, 4, 5)], **{name: value})


def test_an_unknown_kind_fails_before_any_work() -> None:
    with pytest.raises(InputError, match="unknown kind 'tps'"):
        Fit(kind="tps")


def test_an_affine_that_is_not_there_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="a level of 0 controls"):
        Fit(kind="bspline", levels=[Level(16, 0, 5)], affine_first=False)
    Fit(kind="affine", levels=[Level(16, 0, 5)], affine_first=False)
