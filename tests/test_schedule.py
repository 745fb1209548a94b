# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Which levels a grid can resolve, on how many voxels, how stiff; wrong settings fail before any work."""

from __future__ import annotations

from math import prod

import pytest

from scripts.errors import InputError
from scripts.grid import Grid
from scripts.schedule import Fit, Level, schedule

CUBE, BAR = Grid((96, 96, 96), (1.0, 1.0, 1.0)), Grid((96, 48, 48), (1.0, 1.0, 1.0))
LEVELS = [Level(48, 8, 1), Level(96, 16, 1), Level(96, 48, 1)]


def test_a_level_beyond_the_usual_grid_gets_what_its_intervals_need() -> None:
    """48 intervals need 72 voxels: 48 of the usual grid are too few, 72 x 36 x 36 = 93 312 are enough, for a bar."""

    def shapes(fine_voxels: int | None, grid: Grid) -> list[tuple[int, ...]]:
        fit = Fit(levels=LEVELS, voxels=48 * 24 * 24, fine_voxels=fine_voxels)
        return [sampled.shape for _, sampled, _ in schedule(fit, grid)]

    usual = shapes(None, BAR)
    assert len(usual) == 2 and all(prod(shape) <= 48 * 24 * 24 for shape in usual)
    assert shapes(93_311, BAR) == usual
    assert shapes(93_312, BAR) == [*usual, (72, 36, 36)]
    assert shapes(93_312, CUBE) == shapes(None, CUBE)


def test_bending_is_measured_in_the_finest_intervals_of_the_usual_grid_and_beyond_it_in_the_level_s_own() -> None:
    fit = Fit(levels=LEVELS, smoothness=[1.0, 2.0], voxels=48 * 24 * 24, fine_voxels=100_000)
    assert [weight for *_, weight in schedule(fit, BAR)] == pytest.approx([2 / 16**2, 2 / 16**2, 2 / 48**2])


def test_an_affine_needs_no_intervals() -> None:
    fit = Fit(kind="affine", levels=LEVELS, voxels=48 * 24 * 24)
    assert [level.controls for level, *_ in schedule(fit, BAR, every=True)] == [8, 16, 48]


@pytest.mark.parametrize("level", [{"size": "x"}, {"controls": 8.5}, {"controls": -1}, {"steps": 0}, {"size": True}])
def test_levels_are_whole_numbers(level: dict) -> None:
    with pytest.raises(InputError, match=r"fit: levels are .* expected whole sizes"):
        Fit(levels=[{"size": 16, "controls": 4, "steps": 5} | level])


@pytest.mark.parametrize("value", [0, -1.0, "abc", True, float("nan"), None])
def test_the_step_is_a_number_above_zero(value: object) -> None:
    with pytest.raises(InputError, match=r"fit: step is .* expected a number above 0"):
        Fit(levels=[Level(16, 4, 5)], step=value)


@pytest.mark.parametrize("value", [-1, "abc", True, 1.5e5])
@pytest.mark.parametrize("name", ["voxels", "fine_voxels", "both_ways"])
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
