# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Prompts of volumes beyond SAM-Med3D's input are asked in crops around them; planted blocks are found in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_weights import SMALL_3D, assert_jacobian_is_the_derivative, bare, random_weights, saved
from torch import Tensor
from torch.nn import functional as F

from scripts.geometry import resize_by_area, scaling_about_corner, transform_points
from scripts.prompts import Prompts
from scripts.segmenters import SAMMed3D
from scripts.segmenters.close_ups import WholeVolume, corner_around, cut
from scripts.segmenters.protocol import Decoded

AFFINE = torch.tensor([[0.0, -2, 0, 0], [0, 0, 3, 0], [-2, 0, 0, 0], [0, 0, 0, 1]])  # inferior, left, anterior
SHAPE = (100, 90, 40)  # 200 x 180 x 120 mm; the input holds 96


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SAMMed3D:
    state = random_weights(bare(SAMMed3D, SMALL_3D).state_dict())
    return SAMMed3D(saved(state, tmp_path_factory.mktemp("med3d") / "w.pth"), variant=SMALL_3D)


class Bright(SAMMed3D):
    """Segments what is nearly as bright as the brightest of its input, and remembers what it was asked."""

    asked: list[Tensor]

    def _encode(self, inputs: Tensor) -> list[Tensor]:
        return [F.adaptive_avg_pool3d(inputs, 4 * self.config.grid)]

    def _decode(self, embedding: Any, prompts: Prompts) -> Decoded:
        self.asked.append(prompts.coordinates)
        logits = embedding.features - embedding.features.max() / 2
        return Decoded(logits.expand(len(prompts), -1, -1, -1), torch.ones(len(prompts)))


@pytest.fixture
def bright(network: SAMMed3D) -> Bright:
    model = Bright(network.checkpoint, variant=SMALL_3D)
    model.asked = []
    return model


def planted(first: tuple[int, int, int], size: tuple[int, int, int] = (16, 16, 10)) -> Tensor:
    """A block `[1, *SHAPE]` of 200 in 100."""
    volume = torch.full((1, *SHAPE), 100.0)
    volume[0][tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))] = 200.0
    return volume


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    "first", [(42, 37, 15), (0, 0, 0), (84, 74, 30)], ids=["middle", "first corner", "last corner"]
)
def test_a_planted_block_is_found(first: tuple[int, int, int], bright: Bright) -> None:
    volume = planted(first)
    truth = volume[0] > 150
    middle = truth.nonzero().float().mean(0)
    (embedding,) = bright.embed([volume], [AFFINE])
    assert isinstance(embedding, WholeVolume) and embedding.features.shape[1:] == (16, 16, 16)
    decoded = bright.decode(embedding, Prompts(middle[None, None], torch.ones(1, 1)))
    # In the crop, the click lies within a step of the middle, and where the crop shows the block.
    assert len(embedding.crops._items) == 1
    assert (bright.asked[0][0, 0] - 31.5).abs().max() <= 8.0
    crop = bright._crop(embedding, corner_around(transform_points(embedding.to_volume, middle), 64))
    assert len(embedding.crops._items) == 1
    assert torch.allclose(transform_points(crop.to_model, middle), bright.asked[0][0, 0], atol=1e-3)
    found = embedding.to_image(decoded.logits)[0] > 0
    assert dice(found, truth) > 0.7  # its voxels are of 6 mm, the block of 32
    assert (found.nonzero().float().mean(0) - middle).abs().max() < 1.0


def test_a_planted_block_is_found_on_a_grid_of_larger_voxels(bright: Bright) -> None:
    """Crops are shared with the embedding on the volume's own grid, whichever asks first."""
    volume, ahead = planted((42, 37, 15)), scaling_about_corner(SHAPE, (50, 45, 20))
    middle = (volume[0] > 150).nonzero().float().mean(0)
    (own,) = bright.embed([volume], [AFFINE])
    small = own.on_grid((50, 45, 20), torch.linalg.inv(ahead))
    for embedding, place in ((small, transform_points(ahead, middle)), (own, middle)):
        decoded = bright.decode(embedding, Prompts(place[None, None], torch.ones(1, 1)))
        found = embedding.to_image(decoded.logits)[0] > 0
        truth = resize_by_area(volume, embedding.image_shape)[0] > 150
        assert dice(found, truth) > 0.7
    assert torch.allclose(bright.asked[0], bright.asked[1], atol=1e-3)


def test_only_the_crop_is_searched(bright: Bright) -> None:
    """Another bright block, far away, is not part of the region; the whole, looked at at once, would show it."""
    volume = torch.maximum(planted((10, 10, 5)), planted((80, 70, 28)))
    (embedding,) = bright.embed([volume], [AFFINE])
    click = Prompts(torch.tensor([[[17.5, 17.5, 9.5]]]), torch.ones(1, 1))
    found = embedding.to_image(bright.decode(embedding, click).logits)[0] > 0
    assert found[17, 17, 9] and not found[80:, 70:, 28:].any()
    bright.close_ups = False
    (coarse,) = bright.embed([volume], [AFFINE])
    assert (coarse.to_image(bright.decode(coarse, click).logits)[0] > 0)[88, 78, 33]


def test_masks_keep_the_voxel_size_of_the_crop(network: SAMMed3D) -> None:
    (embedding,) = network.embed([planted((42, 37, 15))], [AFFINE])
    shape = network.decode(embedding, Prompts(torch.tensor([[[50.0, 45, 20]]]), torch.ones(1, 1))).logits.shape
    assert shape == (1, 33, 33, 33)  # 200 mm in voxels of 6 mm; a crop has 16 of them along 96 mm


def test_prompts_near_each_other_share_a_crop(bright: Bright) -> None:
    (embedding,) = bright.embed([planted((42, 37, 15))], [AFFINE])
    assert isinstance(embedding, WholeVolume)
    places = torch.tensor([[50.0, 45, 20], [51.0, 44, 20], [10.0, 10, 5]])
    together = bright.decode(embedding, Prompts(places[:, None], torch.ones(3, 1)))
    assert len(embedding.crops) == 2
    for n in range(3):
        alone = bright.decode(embedding, Prompts(places[n, None, None], torch.ones(1, 1)))
        assert torch.equal(alone.logits[0], together.logits[n])


def test_the_first_click_inside_places_the_crop(bright: Bright) -> None:
    (embedding,) = bright.embed([planted((42, 37, 15))], [AFFINE])
    clicks = torch.tensor([[[5.0, 5, 5], [50.0, 45, 20], [99.0, 89, 39]]])
    bright.decode(embedding, Prompts(clicks, torch.tensor([[0, 1, 1]])))
    assert (bright.asked[0][0, 1] - 31.5).abs().max() <= 8.0


def test_a_volume_that_fits_is_the_crop(network: SAMMed3D) -> None:
    volume = planted((20, 20, 20))[:, :40, :40, :30]
    click = Prompts(torch.tensor([[[24.0, 24, 22]]]), torch.ones(1, 1))
    (embedding,) = network.embed([volume], [AFFINE])
    assert not isinstance(embedding, WholeVolume) and network.decode(embedding, click).logits.shape == (1, 16, 16, 16)


def test_jacobian_is_the_derivative(network: SAMMed3D) -> None:
    noise = torch.randn(1, 1, 12, 12, 8, generator=torch.Generator().manual_seed(1))
    (embedding,) = network.embed([100 + 20 * F.interpolate(noise, SHAPE, mode="trilinear")[0]], [AFFINE])
    clicks = torch.tensor([[[50.0, 45, 20], [60.0, 40, 18]], [[20.0, 70, 33], [25.0, 60, 30]]])
    assert_jacobian_is_the_derivative(network, embedding, Prompts(clicks, torch.tensor([[1, 0], [1, 1]])))


def test_masks_are_brought_to_the_crop(bright: Bright) -> None:
    """A mask over the whole becomes one of the crop's own grid and shows the same place there."""
    volume = planted((42, 37, 15))
    (embedding,) = bright.embed([volume], [AFFINE])
    click = Prompts(torch.tensor([[[49.5, 44.5, 19.5]]]), torch.ones(1, 1))
    first = bright.decode(embedding, click).logits
    ((_, brought),) = bright._looks(embedding, Prompts(click.coordinates, click.labels, first))  # type: ignore[arg-type]
    assert brought.masks is not None and brought.masks.shape == (1, 16, 16, 16)
    (crop,) = embedding.crops._items.values()  # type: ignore[attr-defined]
    assert dice(brought.masks > 0, bright._decode(crop[0], click).logits > 0) > 0.7


def test_cut_pads_with_zeros() -> None:
    volume = torch.arange(1.0, 25).reshape(1, 2, 3, 4)
    piece = cut(volume, (-1, 1, 2), 3)
    expected = torch.zeros(1, 3, 3, 3)
    expected[0, 1:, :2, :2] = volume[0, :, 1:, 2:]
    assert torch.equal(piece, expected)
    assert corner_around(torch.tensor([0.0, 31.5, 100.0]), 64) == (-32, 0, 64)
