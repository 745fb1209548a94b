# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAMReg with the toy segmenter: what is filtered, what is matched, and that the fit brings planted discs together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import DiscSegmenter, disc

from scripts.errors import InputError
from scripts.geometry import identity_points, sample
from scripts.methods.samreg import Filter, Regions, SAMReg, match
from scripts.objectives import Objective
from scripts.prompt_sampling import Sampling
from scripts.registration import ImageInfo
from scripts.request import PairRequest
from scripts.schedule import Fit, Level

FIT = Fit(kind="svf", levels=[Level(32, 0, 40), Level(32, 4, 40)])
GRID = Sampling(how="grid", count=25, click_sizes=(0.2, 0.4))
AFFINE = torch.eye(3, dtype=torch.float64)
INFO = ImageInfo("", "picture", ".png", AFFINE, (1.0, 1.0))
MOVING = (((20.0, 18.0), 9.0, 0.4), ((40.0, 46.0), 8.0, 0.8))  # centre, radius, brightness
FIXED = (((26.0, 22.0), 9.0, 0.4), ((44.0, 42.0), 8.0, 0.8))


def picture(discs: tuple[tuple[tuple[float, ...], float, float], ...]) -> Tensor:
    return torch.stack([tone * disc((64, 64), centre, radius) for centre, radius, tone in discs]).sum(0)[None]


def request(fixed: Tensor, moving: Tensor) -> PairRequest:
    return PairRequest(fixed, moving, INFO, INFO)


def toy(*kinds: str) -> DiscSegmenter:
    segmenter = DiscSegmenter()
    segmenter.spec = replace(segmenter.spec, trained_with=frozenset(kinds))
    return segmenter


def samreg(network: DiscSegmenter, **options: object) -> SAMReg:
    arguments = {"sampling": GRID, "filter": Filter(quality=0.5, area=(0.01, 0.175), contained=0.9), **options}
    return SAMReg(network, Objective([{"term": "roi"}]), FIT, **arguments)


def overlap(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_match_takes_the_best_one_to_one_pairs_above_the_threshold() -> None:
    angles = torch.deg2rad(torch.tensor([[0.0, 40.0, 120.0], [35.0, 5.0, 200.0]]))
    moving, fixed = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([[[3.0]], [[0.2]]])
    rows, columns, cosine = match(moving, fixed, 0.8)  # lengths do not count; 120 and 200 degrees are no pair
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 0}
    assert torch.allclose(cosine, torch.tensor(5.0).deg2rad().cos())
    assert len(match(moving, fixed, 0.999)[0]) == 0
    assert dict(zip(*(i.tolist() for i in match(moving, fixed, 0.0)[:2]), strict=True)) == {0: 1, 1: 0, 2: 2}


def test_match_prefers_two_good_pairs_to_one_perfect_one() -> None:
    degrees = (torch.tensor([0.0, 30.0]).deg2rad(), torch.tensor([-29.0, 1.0]).deg2rad())
    moving, fixed = (torch.stack([a.cos(), a.sin()], dim=-1) for a in degrees)
    assert match(moving, fixed, 0.7)[1].tolist() == [0, 1]  # 29 degrees twice
    assert match(moving, fixed, 0.9)[0].tolist() == [0]  # 29 degrees are too far: only 1 degree is left
    for mutual in (False, True):
        assert len(match(moving[:0], fixed, 0.7, mutual=mutual)[0]) == 0


def test_match_may_ask_that_both_are_the_others_nearest() -> None:
    degrees = (torch.tensor([0.0, 20.0]).deg2rad(), torch.tensor([5.0, 60.0]).deg2rad())
    a, b = (torch.stack([d.cos(), d.sin()], dim=-1) for d in degrees)  # 20 is nearest to 60, but nearer to 5
    for moving, fixed in ((a, b), (b, a)):
        assert match(moving, fixed, 0.7)[1].tolist() == [0, 1]
        assert [i.tolist() for i in match(moving, fixed, 0.7, mutual=True)[:2]] == [[0], [0]]


def test_filter_drops_poor_copies_parts_and_extremes() -> None:
    shape, centre = (40, 40), (20.0, 20.0)
    masks = [disc(shape, centre, r) > 0.5 for r in (8.0, 8.4, 5.0, 1.0, 19.0)]
    masks += [disc(shape, place, 5.0) > 0.5 for place in ((34.0, 6.0), (6.0, 6.0), (6.0, 34.0))]
    quality = torch.tensor([0.8, 0.9, 0.9, 0.9, 0.9, 0.95, 0.3, 0.9])
    stability = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2])
    how = Filter(quality=0.5, stability=0.5, area=(0.005, 0.4), contained=0.9)
    assert how.kept(torch.stack(masks), quality, stability) == [5, 1]  # best first; 0 is a copy and 2 a part of 1
    assert replace(how, contained=1.0).kept(torch.stack(masks), quality, stability) == [5, 1, 2]


@pytest.mark.parametrize("kind", ["box", "point"])
def test_planted_discs_are_matched_and_brought_together(kind: str) -> None:
    fixed, moving = picture(FIXED), picture(MOVING)
    method = samreg(toy(kind))
    scene = method.paired(request(fixed, moving))
    wanted = [(f, m) for f, m in zip(FIXED, MOVING, strict=True)]
    found = []
    for own, other in zip(scene.fixed.regions > 0.5, scene.moving.regions > 0.5, strict=True):
        for n, (f, m) in enumerate(wanted):
            if overlap(own, disc((64, 64), *f[:2]) > 0.5) > 0.8:
                assert overlap(other, disc((64, 64), *m[:2]) > 0.5) > 0.8
                found.append(n)
    assert sorted(found) == [0, 1]
    points = method(request(fixed, moving)).points
    for f, m in wanted:
        target, source = (disc((64, 64), *d[:2]) for d in (f, m))
        assert overlap(source > 0.5, target > 0.5) < 0.6
        assert overlap(sample(source[None], points)[0] > 0.5, target > 0.5) > 0.9


def test_regions_come_in_pairs_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    method, unit = samreg(toy("box")), torch.eye(3)
    maps = [torch.tensor(values)[:, None, None].expand(-1, 64, 64) for values in ([0.1, 0.2, 0.3], [0.6, 0.5, 0.7])]
    answers = iter([Regions(maps[0], unit), Regions(maps[1], unit[[1, 0, 2]])])  # the moving image comes first
    monkeypatch.setattr(method, "regions", lambda *_: next(answers))
    scene = method.paired(request(picture(FIXED), picture(MOVING)))
    assert torch.allclose(scene.moving.regions[:, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(scene.fixed.regions[:, 0, 0], torch.tensor([0.5, 0.6, 0.7]))
    assert scene.confidence.tolist() == [1, 1, 1]


def test_grids_may_differ() -> None:
    moving = torch.nn.functional.pad(picture(MOVING), (5, 15, 12, 2))  # 5 columns before, 12 rows above
    pair = request(picture(FIXED), moving)
    points = samreg(toy("box"), prealignment="centre")(pair).points
    assert points.shape == (2, 64, 64)
    for f, m in zip(FIXED, MOVING, strict=True):
        middle = sample(points, torch.tensor(f[0])[:, None])[:, 0]
        assert torch.allclose(middle, torch.tensor(m[0]) + torch.tensor([12.0, 5.0]), atol=1.5)
    for how, shift in (("world", (0.0, 0.0)), ("centre", (7.0, 10.0))):  # nothing fitted: where the fit starts
        method = samreg(toy("box"), prealignment=how)
        method.fit = Fit(levels=[])
        start = method(pair).points - identity_points((64, 64))
        assert torch.allclose(start.flatten(1).mean(1), torch.tensor(shift), atol=1e-3)


def test_without_a_pair_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = request(picture(FIXED), picture(MOVING))
    with pytest.raises(RuntimeError, match=r"samreg: no pair of regions with a cosine above 0\.7 among 0 moving and 0"):
        samreg(toy("box"), filter=Filter(quality=1.1))(pair)
    method, sides = samreg(toy("box")), torch.eye(2)[:, None]  # one region each, at right angles
    answers = iter([Regions(torch.ones(1, 64, 64), side) for side in sides])
    monkeypatch.setattr(method, "regions", lambda *_: next(answers))
    with pytest.raises(RuntimeError, match="among 1 moving and 1 fixed regions; lower `threshold`"):
        method(pair)


def test_settings_say_everything_and_bad_ones_are_refused() -> None:
    method = samreg(toy("box"), threshold=0.75)
    told = json.loads(json.dumps(method.settings()))
    assert told["threshold"] == 0.75
    assert told["sampling"]["count"] == 25
    assert told["fit"]["levels"][0]["size"] == 32
    assert method.missing() is None
    with pytest.raises(InputError, match="threshold"):
        samreg(toy("box"), threshold=80)
    with pytest.raises(InputError, match="'inside', expected 'grid'"):
        samreg(toy("box"), sampling=Sampling(how="inside"))
    with pytest.raises(InputError, match="3 axes, but toy segments images of 2"):
        method(request(torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)))


def test_the_default_costs_96_decodes_an_image() -> None:
    network, asked = toy("box"), []
    decode = network.decode
    network.decode = lambda embedding, prompts: asked.append(len(prompts)) or decode(embedding, prompts)  # type: ignore[method-assign]
    method = SAMReg(network, Objective([{"term": "roi"}]), FIT)
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    method.regions(network.encode([image])[0], image, torch.Generator())
    assert asked == [48, 48]
