# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A 2-D model on volumes: a planted ball is found from any array order, in any plane, and ends where it ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scripts.prompts import Prompts
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.growing import SliceWise
from scripts.segmenters.metered import Metered
from scripts.segmenters.slices import SliceView, normal_axis
from scripts.segmenters.slicewise import SliceWiseSegmenter
from tests.toy import DiscSegmenter, disc

AXIAL = 2
# Voxels to RAS mm: as scanned; turned and mirrored; columns, slices, rows.
AFFINES = {
    "ras": torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])),
    "lps": torch.diag(torch.tensor([-1.0, -1.0, 2.0, 1.0])),
    "permuted": torch.tensor([[0.0, 0, -1, 0], [1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]),
}


def in_order(volume: Tensor, affine: Tensor) -> Tensor:
    """A volume `[C, R, A, S]` of RAS axes stored in the order that an affine says."""
    axes = affine[:3, :3].abs().argmax(0)
    signs = affine[:3, :3].sum(0)
    turned = volume.permute(0, *[int(a) + 1 for a in axes])
    return turned.flip([d + 1 for d in range(3) if signs[d] < 0])


def ball(shape: tuple[int, ...] = (48, 40, 16), centre: tuple[float, ...] = (26.0, 18.0, 8.0)) -> Tensor:
    """A ball of radius 10 mm in voxels of 1 x 1 x 2 mm, `[1, *shape]`."""
    fine = disc((shape[0], shape[1], 2 * shape[2]), (centre[0], centre[1], 2 * centre[2]), 10.0)
    return (0.1 + 0.8 * fine[..., ::2])[None]


def model(**options: object) -> SliceWiseSegmenter:
    return SliceWiseSegmenter(DiscSegmenter(2, 64), SliceWise(**options), AXIAL)  # type: ignore[arg-type]


def box_of(region: Tensor) -> Prompts:
    at = (region > 0.5).nonzero().float()
    return Prompts(torch.stack([at.amin(0) - 0.5, at.amax(0) + 0.5])[None])


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("order", AFFINES)
@pytest.mark.parametrize("asked", [3, 16])
def test_a_ball_is_segmented_in_any_array_order(order: str, asked: int) -> None:
    volume = in_order(ball(), AFFINES[order])
    segmenter = model(asked=asked)
    embedding = segmenter.encode([volume], [AFFINES[order]])[0]
    decoded = segmenter.decode(embedding, box_of(volume[0]))
    region = embedding.to_image(decoded.logits)[0] > 0
    assert dice(region, volume[0] > 0.5) > (0.93 if asked == 16 else 0.85)


def test_features_do_not_depend_on_the_array_order() -> None:
    segmenter = model(storage="float32")
    one, two = (segmenter.encode([in_order(ball(), AFFINES[o])], [AFFINES[o]])[0] for o in ("ras", "permuted"))
    assert torch.equal(one.features, two.features)
    world = torch.tensor([26.0, 18.0, 16.0, 1.0])
    places = []
    for embedding, order in ((one, "ras"), (two, "permuted")):
        # Voxels are where the affine says, but for the origin that flips move.
        volume = in_order(torch.arange(48 * 40 * 16.0).reshape(1, 48, 40, 16), AFFINES[order])
        value = torch.arange(48 * 40 * 16.0).reshape(48, 40, 16)[26, 18, 8]
        at = torch.cat([(volume[0] == value).nonzero()[0].float(), torch.ones(1)])
        places.append(embedding.to_model @ at)
    assert torch.allclose(*places), world


def test_a_region_ends_where_the_structure_ends() -> None:
    """A click without an extent across slices grows over the ball's slices and not beyond."""
    volume = ball()
    segmenter = model(asked=16)
    embedding = segmenter.encode([volume], [AFFINES["ras"]])[0]
    click = Prompts(torch.tensor([[[26.0, 18.0, 8.0]]]), torch.ones(1, 1, dtype=torch.long))
    region = embedding.to_image(segmenter.decode(embedding, click).logits)[0] > 0
    truth = volume[0] > 0.5
    shown = region.flatten(0, 1).any(0).nonzero().flatten()
    assert shown.min() >= 2 and shown.max() <= 14
    assert dice(region, truth) > 0.6


def test_clicks_of_other_slices_count() -> None:
    """A positive click in another slice is asked there, whatever the mask of the slice before."""
    two = torch.cat([ball()[..., :8], ball(centre=(12.0, 28.0, 8.0))[..., 8:]], dim=-1)
    segmenter = model(asked=16, overlap=0.0, match=-1.0)
    embedding = segmenter.encode([two], [AFFINES["ras"]])[0]
    clicks = Prompts(torch.tensor([[[26.0, 18.0, 6.0], [12.0, 28.0, 9.0]]]), torch.ones(1, 2, dtype=torch.long))
    region = embedding.to_image(segmenter.decode(embedding, clicks).logits)[0] > 0
    assert region[26, 18, 6] and region[12, 28, 9] and not region[26, 18, 9]


def test_few_slices_are_asked() -> None:
    metered = Metered(DiscSegmenter(2, 64))
    segmenter = SliceWiseSegmenter(metered, SliceWise(asked=3), AXIAL)
    volume = ball()
    embedding = segmenter.encode([volume], [AFFINES["ras"]])[0]
    assert metered.counts["encodes"] == 1 + 16  # one to know how dense features lie
    segmenter.decode(embedding, box_of(volume[0]))
    assert metered.counts["decodes"] <= 3


def test_thin_slices_are_left_out() -> None:
    """Features lie 2 mm apart within a slice, so of slices 1 mm thick every second is encoded; the ball is the same."""
    fine = disc((48, 40, 33), (26.0, 18.0, 16.0), 10.0)
    volume, metered = (0.1 + 0.8 * fine)[None], Metered(DiscSegmenter(2, 48))
    segmenter = SliceWiseSegmenter(metered, SliceWise(asked=16), AXIAL)
    embedding = segmenter.encode([volume], [torch.eye(4)])[0]
    assert metered.counts["encodes"] == 1 + 17 and embedding.features.shape[-1] == 17
    region = embedding.to_image(segmenter.decode(embedding, box_of(fine)).logits)[0] > 0
    assert dice(region, fine > 0.5) > 0.9


def test_a_volume_is_encoded_once() -> None:
    inner = DiscSegmenter(2, 64)
    inner.cache.limit = 2**24
    metered = Metered(inner)
    segmenter = SliceWiseSegmenter(metered, SliceWise(), AXIAL)
    first = segmenter.encode([ball()], [AFFINES["ras"]])[0]
    assert segmenter.encode([ball()], [AFFINES["ras"]])[0] is first and metered.counts["encodes"] == 17
    assert segmenter.encode([ball()], [AFFINES["lps"]])[0] is not first


def test_derivative_in_the_middle_slice() -> None:
    """Along the rows and columns it is that of the 2-D model, at any array order; across slices it is zero."""
    volume = in_order(ball(), AFFINES["permuted"])
    segmenter = model(asked=1, storage="float32", masks=64)
    embedding = segmenter.encode([volume], [AFFINES["permuted"]])[0]
    box = box_of(volume[0])
    _, slope = segmenter.decode_jacobian(embedding, box)
    middle = round(float((box.coordinates[0, :, 1].sum()) / 2))
    view = SliceView.of(AFFINES["permuted"], AXIAL)
    at = round(float((view.matrix(volume.shape[1:]) @ torch.tensor([0.0, middle, 0, 1]))[2]))
    step = 0.01
    for q in range(6):
        ahead, behind = (
            segmenter.decode(
                embedding, box.at((box.coordinates.flatten() + s * step * torch.eye(6)[q]).reshape(1, 2, 3))
            )
            for s in (1, -1)
        )
        numeric = ((ahead.logits - behind.logits) / (2 * step))[0, ..., at]
        assert torch.allclose(slope[0, q, ..., at], numeric if q % 3 != 1 else torch.zeros(()), atol=0.05), q


def test_slices_lie_across_the_coarsest_axis() -> None:
    thick, cube = torch.diag(torch.tensor([1.0, 5.0, 1.0, 1.0])), torch.eye(4)
    shape = (60, 20, 40)
    assert normal_axis("auto", [thick, cube], [shape, shape]) == 1
    assert normal_axis("auto", [cube, cube], [(60, 60, 40)] * 2) == 2  # level: the fewest slices
    assert normal_axis("sagittal", [thick, thick], [shape] * 2) == 0


def test_wrong_settings() -> None:
    for options in ({"plane": "oblique"}, {"storage": "int8"}, {"asked": 0}, {"step": 0}):
        with pytest.raises(ValueError, match="slices: "):
            SliceWise(**options)  # type: ignore[arg-type]


def test_embedding_knows_its_spacing() -> None:
    embedding: Embedding = model().encode([ball()], [AFFINES["ras"]])[0]
    assert embedding.spacing == (1.0, 1.0, 2.0) and embedding.extent.tolist() == [48.0, 40.0, 32.0]
