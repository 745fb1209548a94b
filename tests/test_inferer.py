# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The whole method with a small analytic segmenter: pictures, volumes, other grids, models that know only clicks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import DiscSegmenter, box_around, disc

from scripts.correspond import Method
from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.inferer import PromptRegInferer, understood
from scripts.objectives import Objective
from scripts.prompt_sampling import Sampling
from scripts.prompts import GivenPrompt
from scripts.registration import ImageInfo
from scripts.request import PairRequest
from scripts.schedule import Fit, Level

FEATURES = Objective([{"term": "features"}])
FIT = Fit(kind="affine", levels=[Level(16, 0, 40), Level(32, 0, 40)])


def info(spacing: tuple[float, ...]) -> ImageInfo:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return ImageInfo("", "volume", ".nii.gz", affine, spacing)


def inferer(**options: object) -> PromptRegInferer:
    arguments = {"sampling": Sampling(how="grid", count=4), "method": Method(), "prior_objective": FEATURES}
    arguments |= {"prior_fit": FIT, "objective": Objective([{"term": "roi"}]), "fit": FIT}
    return PromptRegInferer(**(arguments | options))


def click(*place: float) -> list[GivenPrompt]:
    return [GivenPrompt("1", torch.tensor([place]), torch.ones(1, dtype=torch.long))]


def scene(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> torch.Tensor:
    return (0.1 + 0.8 * disc(shape, centre, radius))[None]


def test_a_shifted_disc_in_a_picture() -> None:
    fixed, moving = scene((64, 64), (36.0, 30.0), 12.0), scene((64, 64), (30.0, 34.0), 12.0)
    request = PairRequest(fixed, moving, info((1.0, 1.0)), info((1.0, 1.0)), click(30.0, 34.0))
    result = inferer().register(request, DiscSegmenter())
    assert result.pairs.found.all()
    assert torch.allclose(result.ddf[:, 36, 30], torch.tensor([-6.0, 4.0]), atol=1.0)
    assert torch.allclose(result.pairs.fixed_prompts.coordinates[0, 0], torch.tensor([36.0, 30.0]), atol=3.0)


def test_a_volume_goes_the_same_way() -> None:
    shape = (32, 32, 32)
    fixed, moving = scene(shape, (18.0, 15.0, 16.0), 7.0), scene(shape, (15.0, 17.0, 14.0), 7.0)
    box = [GivenPrompt("1", box_around((15.0, 17.0, 14.0), 8.0), None)]
    request = PairRequest(fixed, moving, info((1.0, 1.0, 1.0)), info((1.0, 1.0, 1.0)), box)
    result = inferer().register(request, DiscSegmenter(3, 32))
    assert result.pairs.found.all()
    at = torch.tensor([18.0, 15.0, 16.0])
    place = transform_points(result.to_moving, (at + result.ddf[:, 18, 15, 16])[:, None])[:, 0]
    assert torch.allclose(place, torch.tensor([15.0, 17.0, 14.0]), atol=1.0)


def test_grids_of_different_spacing() -> None:
    """The moving image shows the same scene at half the resolution: the field is zero where headers are right."""
    fixed, moving = scene((64, 48), (30.0, 24.0), 12.0), scene((32, 24), (15.0, 12.0), 6.0)
    request = PairRequest(fixed, moving, info((1.0, 1.0)), info((2.0, 2.0)), click(15.0, 12.0))
    result = inferer(objective=Objective([{"term": "roi"}, {"term": "lncc", "kernel": 5}])).register(
        request, DiscSegmenter()
    )
    assert result.pairs.found.all()
    assert result.ddf[:, 20:40, 14:34].abs().max() < 1.5
    assert result.moved.shape == fixed.shape


def test_a_model_that_knows_only_clicks_is_asked_with_clicks() -> None:
    model = DiscSegmenter()
    model.spec = replace(model.spec, trained_with=frozenset({"point"}))
    image = scene((64, 64), (30.0, 34.0), 12.0)
    box = [GivenPrompt("1", box_around((30.0, 34.0), 13.0), None)]
    request = PairRequest(image, image.roll(2, 1), info((1.0, 1.0)), info((1.0, 1.0)), box)
    asked = understood(model, model.encode([image])[0], box, Sampling())
    assert asked.kind == "point" and torch.allclose(asked.coordinates[0, 0], torch.tensor([30.0, 34.0]))
    assert inferer().register(request, model).pairs.found.all()
    with pytest.raises(InputError, match="'stable' asks with boxes"):
        inferer(sampling=Sampling(how="stable")).register(replace(request, prompts=None), model)


def test_boxes_are_asked_a_little_larger_and_returned_as_drawn() -> None:
    model, image = DiscSegmenter(), scene((64, 64), (30.0, 34.0), 12.0)
    box = [GivenPrompt("1", torch.tensor([[18.0, 22.0], [42.0, 46.0]]), None)]
    asked = understood(model, model.encode([image])[0], box, Sampling(margin=1.25))
    assert torch.allclose(asked.coordinates, torch.tensor([[[15.0, 19.0], [45.0, 49.0]]]))
    request = PairRequest(image, image.roll(2, 1), info((1.0, 1.0)), info((1.0, 1.0)), box)
    assert torch.equal(inferer().register(request, model).pairs.moving_prompts.coordinates[0], box[0].points)


def test_centres_are_put_together() -> None:
    fixed, moving = scene((64, 64), (31.5, 31.5), 12.0), scene((96, 80), (47.5, 39.5), 12.0)
    request = PairRequest(fixed, moving, info((1.0, 1.0)), info((1.0, 1.0)))
    assert torch.allclose(request.to_moving("centre")[:2, 2], torch.tensor([16.0, 8.0]))
    assert torch.equal(request.to_moving("world"), torch.eye(3))


def test_a_level_without_a_term_is_told_before_any_work() -> None:
    with pytest.raises(InputError, match="no term takes part in the level with 0 control intervals"):
        inferer(objective=Objective([{"term": "lncc", "controls": [16, 99]}]))
    volumes_only = inferer(objective=Objective([{"term": "lncc", "weight": [0.0, 1.0]}]))
    picture = scene((64, 64), (31.5, 31.5), 12.0)
    with pytest.raises(InputError, match="no term takes part in the level with 0 control intervals"):
        volumes_only.check(PairRequest(picture, picture, info((1.0, 1.0)), info((1.0, 1.0))), DiscSegmenter())
