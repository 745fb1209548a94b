# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Inverse prompts (Eq. 1) with a model by formula: derivatives, steps and planted discs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import DiscSegmenter, box_around, disc

from scripts.errors import InputError
from scripts.geometry import centroid, identity_points
from scripts.prompt_inversion import (
    Inverse,
    Inversion,
    damped_solve,
    evaluate,
    gauss_newton_step,
    invert_prompts,
    starting_prompts,
)
from scripts.prompts import Prompts
from scripts.prototypes import Features, area_weights, centred_features, prototype, similarity
from scripts.region_pairs import soft_dice

TWO = torch.tensor([[[20.0, 18.0], [40.0, 44.0]], [[8.0, 30.0], [30.0, 50.0]]])
PROMPTS = {"box": Prompts(TWO), "points": Prompts(TWO, torch.tensor([[1, 0], [1, 1]]))}


def scene(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Tensor:
    """A bright disc, a grey one that stays in a corner, dark ground: `[1, *shape]`."""
    grey = disc(shape, (9.0,) * len(shape), 6.0)
    return (0.1 + 0.8 * disc(shape, centre, radius) + 0.35 * grey)[None]


def varied(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Tensor:
    """A bright disc on a ground that gets lighter from corner to corner, `[1, *shape]`."""
    ground = 0.5 * identity_points(shape).sum(0) / sum(shape)
    return (ground + (1 - ground) * disc(shape, centre, radius))[None]


def by_match(index: Tensor, candidates: Inverse) -> Tensor:
    return candidates.match


def textured() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(1, 1, 9, 9, generator=generator), (64, 64), mode="bicubic")[0]


@pytest.mark.parametrize("kind", ["box", "points"])
def test_jacobian_is_the_derivative(kind: str) -> None:
    toy = DiscSegmenter().double()
    embedding = toy.encode([textured().repeat_interleave(2, 1).repeat_interleave(2, 2)])[0]  # 128 voxels shown on 64
    prompts = PROMPTS[kind].at(2 * TWO)
    logits, jacobian = toy.decode_jacobian(embedding, prompts)
    assert logits.shape == (2, 64, 64) and jacobian.shape == (2, 4, 64, 64)
    assert torch.allclose(logits, toy.decode(embedding, prompts).logits, atol=1e-5)
    for q in range(4):
        step = torch.zeros(4)
        step[q] = 0.1
        ahead, behind = (
            toy.decode(embedding, prompts.at(prompts.coordinates + s * step.reshape(2, 2))).logits for s in (1, -1)
        )
        assert jacobian[:, q].abs().max() > 0.01
        assert torch.allclose(jacobian[:, q], (ahead - behind) / 0.2, atol=0.02 * jacobian[:, q].abs().max().item())


@pytest.mark.parametrize("kind", ["box", "points"])
def test_differences_agree_with_forward_mode(kind: str) -> None:
    image = textured()
    results = []
    for differentiable in (True, False):
        toy = DiscSegmenter(differentiable=differentiable, chunk=1)
        results.append(toy.decode_jacobian(toy.encode([image])[0], PROMPTS[kind]))
    (logits, exact), (logits_too, differences) = results
    assert torch.allclose(logits, logits_too, atol=1e-5)
    assert (differences - exact).norm() < 0.05 * exact.norm()


def test_damped_solve_is_the_pseudo_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    exact = (torch.linalg.pinv(matrix) @ target[..., None])[..., 0]

    def solved(matrix: Tensor, damping: float) -> Tensor:
        return damped_solve(matrix.mT @ matrix, (matrix.mT @ target[..., None])[..., 0], damping)

    assert torch.allclose(solved(matrix, 1e-12), exact, atol=1e-6)
    assert (solved(matrix, 1.0).norm(dim=1) < 0.6 * exact.norm(dim=1)).all()
    flat = torch.cat([matrix[..., :3], matrix[..., :1]], dim=-1)  # rank 3 of 4
    minimal = (torch.linalg.pinv(flat) @ target[..., None])[..., 0]
    assert torch.allclose(solved(flat, 1e-10), minimal, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_goes_towards_the_disc(dims: int) -> None:
    size = 64 if dims == 2 else 32
    centre, radius = (0.5 * size,) * dims, 0.2 * size
    toy = DiscSegmenter(dims, size, by_intensity=False)
    embedding = toy.encode([varied((size,) * dims, centre, radius)])[0]
    features = centred_features(embedding)
    there, off = Prompts(box_around(centre, radius)[None]), Prompts(box_around(centre, radius)[None] + 0.1 * size)
    target = evaluate(toy, embedding, features, there, torch.zeros(1, features.shape[0])).probability
    targets = prototype(features, area_weights(target, tuple(features.shape[1:])))
    logits, jacobian = toy.decode_jacobian(embedding, off)
    change = gauss_newton_step(Features(features), targets, logits.sigmoid(), jacobian, 1e-2).reshape(2, dims)
    assert (change.mean(0) < -0.01 * size).all()  # back along every axis
    before, after = (
        evaluate(toy, embedding, features, p, targets).match.item() for p in (off, off.at(off.coordinates + change))
    )
    assert after > before + 0.25 * (1 - before)
    nothing = gauss_newton_step(Features(features), targets, *_state(toy, embedding, there), 1e-2)
    assert nothing.abs().max() < 1e-2


def _state(toy: DiscSegmenter, embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
    logits, jacobian = toy.decode_jacobian(embedding, prompts)
    return logits.sigmoid(), jacobian


@pytest.mark.parametrize("kind", ["box", "point"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_planted_disc_is_found_from_the_peak(dims: int, kind: str) -> None:
    size = 64 if dims == 2 else 32
    toy = DiscSegmenter(dims, size)
    shape = (size,) * dims
    place, radius = (0.45 * size, *[0.6 * size] * (dims - 1)), 0.25 * size
    there, size_there = (0.62 * size, *[0.5 * size] * (dims - 1)), 0.2 * size
    moving, fixed = toy.encode([scene(shape, place, radius), scene(shape, there, size_there)])
    if kind == "box":
        prompts = Prompts(box_around(place, 1.1 * radius)[None])
    else:
        prompts = Prompts(torch.tensor([[place]]), torch.ones(1, 1, dtype=torch.long))
    moving_features, fixed_features = centred_features(moving), centred_features(fixed)
    grid = tuple(moving_features.shape[1:])
    region = toy.decode(moving, prompts).logits.sigmoid()
    targets = prototype(moving_features, area_weights(region, grid))
    how = Inversion(starts=("peak",), steps=3, step_below=1.0)
    starts, index = starting_prompts(prompts, moving.to_image(region), similarity(fixed_features, targets), fixed, how)
    assert index.tolist() == [0]
    reach = torch.full((1, dims), 0.1 * size)
    found = invert_prompts(toy, fixed, Features(fixed_features), targets, starts, index, by_match, how, reach)
    mask = fixed.to_image(found.probability)
    assert found.match.item() > 0.9
    assert (centroid((mask[0] > 0.5).float()) - torch.tensor(there)).norm() < 0.03 * size
    assert soft_dice(mask, disc(shape, there, size_there)[None]).item() > 0.8


def displaced() -> tuple[DiscSegmenter, tuple]:
    """A box beside the disc as the only start; the last three arguments are left to the caller."""
    toy = DiscSegmenter(by_intensity=False)
    fixed = toy.encode([varied((64, 64), (32.0, 32.0), 12.0)])[0]
    features = centred_features(fixed)
    right = toy.decode(fixed, Prompts(box_around((32.0, 32.0), 12.0)[None])).logits.sigmoid()
    targets = prototype(features, area_weights(right, (32, 32)))
    start = Prompts(box_around((38.0, 37.0), 12.0)[None])
    return toy, (fixed, Features(features), targets, start, torch.tensor([0]))


def test_steps_never_make_the_kept_score_worse() -> None:
    toy, arguments = displaced()
    reach = torch.full((1, 2), 8.0)
    scores = [
        invert_prompts(toy, *arguments, by_match, Inversion(steps=n, step_below=1.0), reach).match.item()
        for n in range(4)
    ]
    assert scores == sorted(scores)
    assert scores[3] > scores[0] + 0.02


@pytest.mark.parametrize(("keep", "moves"), [("best", False), ("last", True)])
def test_keep_decides_about_a_step_that_scores_worse(keep: str, moves: bool) -> None:
    toy, arguments = displaced()
    start = arguments[3].coordinates

    def stay(index: Tensor, candidates: Inverse) -> Tensor:
        return 1 - (candidates.prompts.coordinates - start).abs().flatten(1).amax(1) / 100

    how = Inversion(steps=1, step_below=1.0, keep=keep)
    found = invert_prompts(toy, *arguments, stay, how, torch.full((1, 2), 3.0))
    moved = (found.prompts.coordinates - start).abs().max().item()
    assert (moved > 0.1) == moves
    assert moved <= 3.0 + 1e-4  # the longest step allowed


def test_confident_starts_take_no_steps() -> None:
    toy, arguments = displaced()
    found = invert_prompts(toy, *arguments, by_match, Inversion(steps=3, step_below=0.0), torch.full((1, 2), 8.0))
    assert torch.equal(found.prompts.coordinates, arguments[3].coordinates)


def test_carried_starts_are_theboxes_of_the_carried_region() -> None:
    toy = DiscSegmenter()
    fixed = toy.encode([scene((64, 64), (32.0, 40.0), 10.0)])[0]
    carried = torch.zeros(1, 64, 64)
    carried[0, 20:31, 40:61] = 1.0
    prompts = Prompts(box_around((30.0, 30.0), 5.0)[None])
    how = Inversion(starts=("carried",), margins=(1.0, 1.2))
    starts, index = starting_prompts(prompts, carried, torch.zeros(1, 32, 32), fixed, how)
    expected = torch.tensor([[[20.0, 40.0], [30.0, 60.0]], [[19.0, 38.0], [31.0, 62.0]]])
    assert index.tolist() == [0, 0]
    assert torch.allclose(starts.coordinates, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"starts": ("peak", "random")}, r"unknown starts \['random'\]"),
        ({"margins": []}, r"margins are \[\], expected a list of numbers above 0"),
        ({"margins": [1.1, -1]}, r"margins are \[1.1, -1\]"),
        ({"margins": 1.1}, "margins are 1.1"),
        ({"starts": ()}, "expected some of"),
        ({"keep": "first"}, "keep is 'first'"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Inversion(**settings)
