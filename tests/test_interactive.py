# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A session with the analytic segmenter: clicks in either image, known answers, and what a click costs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from test_inferer import FIT, click, inferer, scene
from test_inferer import info as info_of
from toy import DiscSegmenter, box_around, disc

from scripts.errors import InputError
from scripts.geometry import identity_points, invert, transform_points
from scripts.interactive import MOST, Session
from scripts.prior import Prior
from scripts.prompts import GivenPrompt, given_prompts
from scripts.request import PairRequest

INFO = info_of((1.0, 1.0))
FIXED, MOVING = scene((64, 64), (36.0, 30.0), 12.0), scene((64, 64), (30.0, 34.0), 12.0)
PAIR = PairRequest(FIXED, MOVING, INFO, INFO)


def session(request: PairRequest = PAIR, model: DiscSegmenter | None = None) -> Session:
    return Session(inferer(), request, model or DiscSegmenter())


def box(name: str, centre: tuple[float, ...], radius: float) -> list[GivenPrompt]:
    return [GivenPrompt(name, box_around(centre, radius), None)]


def named(name: str, *place: float) -> list[GivenPrompt]:
    return [replace(click(*place)[0], id=name)]


def test_a_click_in_either_image() -> None:
    one = session()
    there = one.counterpart(named("a", 30.0, 34.0))
    assert there.ids == ("a",) and there.found.all() and there.confidence[0] > 0.5
    assert torch.allclose(there.fixed_prompts.coordinates[0, 0], torch.tensor([36.0, 30.0]), atol=3.0)
    back = one.counterpart(named("b", 36.0, 30.0), "fixed")
    assert back.found.all() and torch.equal(back.fixed_prompts.coordinates[0, 0], torch.tensor([36.0, 30.0]))
    assert torch.allclose(back.moving_prompts.coordinates[0, 0], torch.tensor([30.0, 34.0]), atol=3.0)
    for regions, truth in ((back.moving_regions, MOVING), (back.fixed_regions, FIXED)):
        assert ((regions[0] > 0.5) == (truth[0] > 0.5)).float().mean() > 0.97
    assert one.sides() == {"a": "moving", "b": "fixed"} and one.pairs().ids == ("a", "b")


def test_a_click_costs_decodes_alone() -> None:
    one = session()
    before = dict(one.pair.metered.counts)
    first = one.counterpart(named("a", 30.0, 34.0))
    asked = one.pair.metered.counts["decodes"] - before["decodes"]
    one.counterpart(named("b", 29.0, 33.0))
    assert one.pair.metered.counts["encodes"] == before["encodes"] == 2
    assert one.pair.metered.counts["decodes"] - before["decodes"] <= 2 * asked + 4
    assert torch.equal(one.pairs().fixed_regions[:1], first.fixed_regions)


def test_what_is_missing_has_no_counterpart() -> None:
    moving = scene((64, 64), (20.0, 20.0), 8.0) + 0.4 * disc((64, 64), (46.0, 46.0), 8.0)
    fixed = scene((64, 64), (22.0, 20.0), 8.0)
    one = session(PairRequest(fixed, moving, INFO, INFO))
    assert one.counterpart(box("there", (20.0, 20.0), 9.0)).found.all()
    absent = one.counterpart(box("absent", (46.0, 46.0), 9.0))
    assert not absent.found.any() and absent.confidence.item() == 0


def test_a_model_of_boxes_answers_a_click_with_a_click() -> None:
    model = DiscSegmenter()
    model.spec = replace(model.spec, trained_with=frozenset({"box"}))
    one = session(model=model)
    for side, at, there in (("moving", (28.0, 36.0), (34.0, 32.0)), ("fixed", (38.0, 27.0), (32.0, 31.0))):
        pair = one.counterpart(named(side, *at), side)
        found = pair.fixed_prompts if side == "moving" else pair.moving_prompts
        assert found.kind == "point" and pair.found.all()
        assert torch.allclose(found.coordinates[0, 0], torch.tensor(there), atol=2.5)


def test_clicks_beside_boxes_become_boxes() -> None:
    one = session()
    one.counterpart(box("box", (30.0, 34.0), 13.0))
    one.counterpart([GivenPrompt("two", torch.tensor([[30.0, 34.0], [5.0, 5.0]]), torch.tensor([1, 0]))])
    pairs = one.pairs()
    assert pairs.moving_prompts.kind == pairs.fixed_prompts.kind == "box" and pairs.found.all()
    middle = pairs.fixed_prompts.coordinates.mean(1)
    assert torch.allclose(middle, torch.tensor([[36.0, 30.0]] * 2), atol=2.0)


def test_points_of_different_number_go_together() -> None:
    one = session()
    one.counterpart(named("one", 30.0, 34.0))
    one.counterpart([GivenPrompt("two", torch.tensor([[30.0, 34.0], [5.0, 5.0]]), torch.tensor([1, 0]))])
    assert one.pairs().moving_prompts.labels.tolist() == [[1, -1], [1, 0]]


def test_a_registration_of_the_session_is_that_of_the_inferer() -> None:
    given = named("a", 30.0, 34.0)
    one = session()
    one.counterpart(given)
    result, whole = one.register(at_least=1), inferer().register(replace(PAIR, prompts=given), DiscSegmenter())
    assert torch.allclose(result.ddf, whole.ddf, atol=1e-4)
    assert torch.allclose(result.pairs.confidence, whole.pairs.confidence)
    assert result.counts == whole.counts and result.settings == whole.settings
    assert torch.allclose(result.ddf[:, 36, 30], torch.tensor([-6.0, 4.0]), atol=1.0)


def test_too_few_prompts_are_joined_by_sampled_ones() -> None:
    one = session()
    one.counterpart(named("a", 36.0, 30.0), "fixed")
    result = one.register()
    assert result.pairs.ids == ("a", "sampled 1", "sampled 2", "sampled 3", "sampled 4")
    assert one.pairs().ids == ("a",)
    assert torch.allclose(result.pairs.moving_prompts.coordinates[0, 0], torch.tensor([30.0, 34.0]), atol=3.0)
    assert session().register(at_least=2).pairs.ids == ("sampled 1", "sampled 2")


def test_settings_may_change_between_questions() -> None:
    one = session()
    one.counterpart(named("a", 30.0, 34.0))
    two = one.fresh()
    two.go_on_with(inferer(fit=replace(FIT, kind="rigid")))
    two.counterpart(named("a", 30.0, 34.0))
    assert two.register(at_least=1).settings["fit"]["kind"] == "rigid"
    assert one.register(at_least=1).settings["fit"]["kind"] == "affine" and one.pair.fixed is two.pair.fixed


def test_without_same_scene_the_fit_decides_the_map() -> None:
    one = session()
    one._prepared = one.pair = replace(one.pair, edges=(torch.zeros(2, 64, 64), torch.zeros(2, 64, 64)))
    one.counterpart(named("a", 30.0, 34.0))
    assert one.register(at_least=1).hypothesis == "one scene"
    one.go_on_with(inferer())
    found = one.register(at_least=1)
    assert found.hypothesis == "features" and torch.allclose(found.ddf[:, 36, 30], torch.tensor([-6.0, 4.0]), atol=1.0)


def test_prompts_vouch_for_each_other_and_can_be_removed() -> None:
    one = session()
    for k in range(6):
        one.counterpart(named(str(k), 26.0 + k, 38.0 - k))
    assert "consensus" in one.pairs().cues
    one.remove("0", "1")
    assert one.pairs().ids == ("2", "3", "4", "5") and "consensus" not in one.pairs().cues
    one.counterpart(named("0", 30.0, 34.0))
    assert one.pairs().ids[-1] == "0"


def test_a_volume_and_a_model_of_pictures() -> None:
    shape, info = (48, 48, 12), info_of((1.0, 1.0, 3.0))
    to_mm = torch.tensor([1.0, 1.0, 3.0])

    def ball(centre: tuple[float, ...]) -> torch.Tensor:
        offset = (identity_points(shape) - torch.tensor(centre).reshape(3, 1, 1, 1)) * to_mm.reshape(3, 1, 1, 1)
        return (0.1 + 0.8 * torch.sigmoid(2 * (10 - offset.norm(dim=0))))[None]

    fixed, moving = ball((26.0, 22.0, 6.0)), ball((22.0, 25.0, 6.0))
    one = Session(inferer(), PairRequest(fixed, moving, info, info), DiscSegmenter(2, 48))
    encoded = one.pair.metered.counts["encodes"]
    for side, at, there in (("moving", (22.0, 25.0, 6.0), (26.0, 22.0)), ("fixed", (26.0, 22.0, 6.0), (22.0, 25.0))):
        pair = one.counterpart(named(side, *at), side)
        regions = pair.fixed_regions if side == "moving" else pair.moving_regions
        place = (regions[0] > 0.5).nonzero().float().mean(0)
        assert pair.found.all() and torch.allclose(place[:2], torch.tensor(there), atol=2.0)
    assert one.pair.metered.counts["encodes"] == encoded


def test_a_reversed_prior_leads_back() -> None:
    grid = identity_points((40, 32))
    ddf = torch.stack([2 * torch.sin(grid[1] / 8), 1.5 * torch.cos(grid[0] / 9)])
    to_moving = torch.tensor([[0.0, 1.5, 3.0], [2.0, 0.0, -4.0], [0.0, 0.0, 1.0]])
    prior = Prior(ddf, invert(ddf), to_moving)
    back = prior.reversed((50, 78))
    fixed = torch.tensor([[12.0, 10.0], [25.0, 20.0]])
    at = fixed.long().T
    moving = transform_points(to_moving, fixed.T + ddf[:, at[0], at[1]]).T
    assert torch.allclose(back.carry_points(fixed), moving, atol=0.05)
    assert torch.allclose(prior.carry_points(moving), fixed, atol=0.05)
    place = moving.round()
    pulled = transform_points(back.to_moving, place.T + back.ddf[:, place[:, 0].long(), place[:, 1].long()]).T
    assert torch.allclose(pulled, prior.carry_points(place), atol=0.05)


@pytest.mark.parametrize(
    ("prompts", "side", "message"),
    [
        (named("a", 3.0, 3.0), "left", "side: unknown 'left'"),
        (named("taken", 3.0, 3.0), "fixed", "ids must differ"),
        (named("a", 3.0, 3.0) * 2, "fixed", "ids must differ"),
        ([], "moving", "0 given"),
        ([replace(p, id=str(k)) for k, p in enumerate(click(3.0, 3.0) * MOST)], "moving", "a session takes from 1"),
    ],
)
def test_wrong_questions(prompts: list[GivenPrompt], side: str, message: str) -> None:
    one = session(replace(PAIR, prompts=named("taken", 30.0, 34.0)))
    with pytest.raises(InputError, match=message):
        one.counterpart(prompts, side)
    assert one.pairs().ids == ("taken",)
    with pytest.raises(InputError, match="none with the ids"):
        one.remove("unknown")


def test_messages_name_the_image() -> None:
    with pytest.raises(InputError, match="outside the fixed image"):
        given_prompts([{"id": "1", "point": [70, 3]}], (64, 64), None, {}, side="fixed")
    with pytest.raises(InputError, match="none given yet"):
        session().pairs()


def test_sessions_in_threads_do_not_mix() -> None:
    model = DiscSegmenter()
    places = [(30.0 + k, 34.0 - k) for k in range(-4, 4)]

    def ask(place: tuple[float, float]) -> torch.Tensor:
        moving = scene((64, 64), place, 10.0)
        return session(replace(PAIR, moving=moving), model).counterpart(named("1", *place)).fixed_regions

    alone = [ask(place) for place in places]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, places))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
