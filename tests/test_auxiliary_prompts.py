# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Auxiliary prompts (Eq. 2): directed distances, the rule for points and boxes, and refinement that never does harm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import directed_hausdorff
from torch import Tensor
from toy import DiscSegmenter, box_around, disc

from scripts.auxiliary_prompts import (
    Auxiliary,
    Disagreement,
    auxiliary_point,
    contour,
    disagreement,
    move_nearest_edge,
    refine,
)
from scripts.errors import InputError
from scripts.prompt_inversion import Inverse, evaluate
from scripts.prompts import Prompts
from scripts.prototypes import area_weights, centred_features, prototype
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.metered import Metered


def rectangle(first: tuple[int, int], last: tuple[int, int], shape: tuple[int, int] = (40, 50)) -> Tensor:
    mask = torch.zeros(shape)
    mask[first[0] : last[0] + 1, first[1] : last[1] + 1] = 1.0
    return mask


def found(difference: Disagreement | None) -> Disagreement:
    assert difference is not None
    return difference


def test_contour_of_a_square() -> None:
    mask = rectangle((2, 3), (5, 7), (10, 12)).bool().numpy()
    assert len(contour(mask)) == 4 * 5 - 2 * 3
    assert len(contour(np.ones((4, 4), dtype=bool))) == 12  # the image's border counts as outside


@pytest.mark.parametrize("second", [((5, 8), (30, 20)), ((10, 10), (20, 45)), ((0, 0), (39, 49)), ((12, 12), (14, 14))])
def test_directed_distances_are_those_of_scipy(second: tuple) -> None:
    moving, fixed = rectangle((10, 10), (20, 20)), rectangle(*second)
    x, y = contour(moving.bool().numpy()), contour(fixed.bool().numpy())
    difference = found(disagreement(moving, fixed))
    assert difference.missing == pytest.approx(directed_hausdorff(x, y)[0])
    assert difference.spill == pytest.approx(directed_hausdorff(y, x)[0])
    assert np.linalg.norm(y - difference.at, axis=1).min() == pytest.approx(difference.missing)
    assert np.linalg.norm(x - difference.spill_at, axis=1).min() == pytest.approx(difference.spill)
    assert difference.distance == max(difference.missing, difference.spill)


def test_alignment_takes_a_shift_away() -> None:
    moving, fixed = rectangle((10, 10), (20, 20)), rectangle((15, 25), (25, 35))
    assert found(disagreement(moving, fixed)).distance > 10
    assert found(disagreement(moving, fixed, align="centroid")).distance < 1e-4
    assert disagreement(moving, torch.zeros(40, 50)) is None


def test_a_missing_part_gives_a_positive_point_inside_it() -> None:
    moving, fixed = rectangle((10, 10), (20, 40)), rectangle((10, 10), (20, 20))
    difference = found(disagreement(moving, fixed))
    point, label = auxiliary_point(difference, np.array([15.0, 25.0]), 2.0)
    assert label == 1
    assert difference.at[1] == 40 and difference.missing == 20
    assert np.linalg.norm(point - difference.at) == pytest.approx(2.0)
    assert moving[tuple(point.round().astype(int))] == 1 and point[1] < 40


def test_a_spill_gives_a_negative_point_on_it() -> None:
    difference = found(disagreement(rectangle((10, 10), (20, 20)), rectangle((10, 10), (20, 40))))
    point, label = auxiliary_point(difference, np.array([15.0, 15.0]), 2.0)
    assert label == 0
    assert point[1] == 40 and np.array_equal(point, difference.spill_at)


@pytest.mark.parametrize(
    ("point", "label", "expected"),
    [
        ((15.0, 45.0), 1, [[10, 10], [20, 45]]),  # beyond the last edge of axis 1: outwards
        ((3.0, 12.0), 1, [[3, 10], [20, 30]]),
        ((15.0, 28.0), 0, [[10, 10], [20, 28]]),  # just inside it: inwards
        ((11.0, 20.0), 0, [[11, 10], [20, 30]]),
        ((15.0, 20.0), 1, [[10, 10], [20, 30]]),  # missing, but inside the box: no edge helps
    ],
)
def test_the_nearest_edge_moves_to_the_point(point: tuple, label: int, expected: list) -> None:
    box = np.array([[10.0, 10.0], [20.0, 30.0]])
    assert np.array_equal(move_nearest_edge(box, np.array(point), label), np.array(expected, dtype=float))
    assert np.array_equal(box, [[10, 10], [20, 30]])  # the given box is untouched


def setting(prompts: Prompts, *, by_intensity: bool) -> tuple[Metered, Embedding, Tensor, Tensor, Tensor, Inverse]:
    """A disc as the moving region and what `prompts` select of the same disc on the fixed image."""
    toy = Metered(DiscSegmenter(by_intensity=by_intensity))
    carried = disc((64, 64), (32.0, 34.0), 14.0)[None]
    fixed = toy.encode([0.1 + 0.8 * carried])[0]
    features = centred_features(fixed)
    targets = prototype(features, area_weights(carried, (32, 32)))
    inverse = evaluate(toy, fixed, features, prompts, targets)
    toy.counts["decodes"] = 0
    return toy, fixed, features, targets, carried, inverse


def distance(carried: Tensor, inverse: Inverse, fixed: Embedding) -> float:
    return found(disagreement(carried[0], fixed.to_image(inverse.probability)[0])).distance


SHORT = Prompts(torch.tensor([[[18.0, 20.0], [46.0, 34.0]]]))  # covers half of the disc
LONG = Prompts(torch.tensor([[[18.0, 20.0], [46.0, 62.0]]]))  # reaches far beyond it
PAIR_SIZED = Auxiliary(sigma=1.0, epsilon=1.0, scale=64.0, steps=3, align="none")


@pytest.mark.parametrize("prompts", [SHORT, LONG], ids=["missing", "spill"])
def test_a_box_is_repaired(prompts: Prompts) -> None:
    segmenter, fixed, features, targets, carried, inverse = setting(prompts, by_intensity=False)
    after = refine(segmenter, fixed, features, targets, carried, inverse, PAIR_SIZED)
    assert distance(carried, after, fixed) < 0.7 * distance(carried, inverse, fixed)
    assert abs(after.prompts.coordinates[0, 1, 1] - 48) < 5  # the edge that was wrong
    assert torch.equal(after.prompts.coordinates[0, :, 0], prompts.coordinates[0, :, 0])


@pytest.mark.parametrize("align", ["none", "centroid"])
@pytest.mark.parametrize("seed", range(6))
def test_refinement_is_never_worse(seed: int, align: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    box = box_around((32.0, 34.0), 14.0) + 16 * (torch.rand(2, 2, generator=generator) - 0.5)
    segmenter, fixed, features, targets, carried, inverse = setting(Prompts(box[None]), by_intensity=False)
    how = Auxiliary(sigma=1.0, scale=64.0, steps=3, align=align)
    after = refine(segmenter, fixed, features, targets, carried, inverse, how)
    before, now = (
        found(disagreement(carried[0], fixed.to_image(i.probability)[0], align=align)).distance
        for i in (inverse, after)
    )
    assert now <= before
    again = evaluate(segmenter, fixed, features, after.prompts, targets)
    assert torch.allclose(again.probability, after.probability, atol=1e-5)  # prompt and region belong together


def test_a_point_gets_help_and_stays_one_point() -> None:
    """Two discs of unlike tone are one moving region; a click selects the one, an auxiliary point adds the other."""
    toy = Metered(DiscSegmenter())
    parts = disc((64, 64), (32.0, 22.0), 9.0), disc((64, 64), (32.0, 44.0), 9.0)
    fixed = toy.encode([(0.9 * parts[0] + 0.45 * parts[1])[None]])[0]
    features = centred_features(fixed)
    carried = (parts[0] + parts[1]).clamp(max=1)[None]
    targets = prototype(features, area_weights(carried, (32, 32)))
    click = Prompts(torch.tensor([[[32.0, 22.0]]]), torch.tensor([[1]]))
    inverse = evaluate(toy, fixed, features, click, targets)
    how = Auxiliary(sigma=3.0, epsilon=4.0, scale=64.0, steps=1, align="none")
    after = refine(toy, fixed, features, targets, carried, inverse, how)
    assert inverse.probability[0, 32, 44] < 0.5 < after.probability[0, 32, 44]
    assert distance(carried, after, fixed) < 0.5 * distance(carried, inverse, fixed)
    assert torch.equal(after.prompts.coordinates, click.coordinates)


def test_agreement_within_sigma_asks_nothing() -> None:
    segmenter, *rest = setting(SHORT, by_intensity=False)
    inverse = rest[-1]
    assert refine(segmenter, *rest, Auxiliary(sigma=64.0, scale=64.0, steps=3, align="none")) is inverse
    assert segmenter.counts["decodes"] == 0


def test_sigma_is_relative_to_the_scale() -> None:
    segmenter, *rest = setting(SHORT, by_intensity=False)
    refine(segmenter, *rest, Auxiliary(sigma=20.0 * 64, scale=64.0 * 64, steps=1, align="none"))
    assert segmenter.counts["decodes"] == 0  # 20 voxels of this image
    refine(segmenter, *rest, Auxiliary(sigma=20.0, scale=64.0 * 64, steps=1, align="none"))
    assert segmenter.counts["decodes"] == 1  # a third of a voxel


def test_no_steps_do_nothing() -> None:
    segmenter, *rest = setting(SHORT, by_intensity=False)
    assert refine(segmenter, *rest, Auxiliary(sigma=0.0, steps=0)) is rest[-1]
    assert segmenter.counts["decodes"] == 0


def test_unknown_alignment() -> None:
    with pytest.raises(InputError, match="align is 'rigid'"):
        Auxiliary(align="rigid")
