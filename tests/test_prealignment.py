# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Headers are believed unless another place fits clearly better."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.inferer import PromptRegInferer
from scripts.prealignment import prealign
from scripts.registration import ImageInfo
from scripts.request import PairRequest
from scripts.scene import Scene, View
from tests.test_inferer import inferer
from tests.toy import DiscSegmenter, disc


def volume(shape: tuple[int, ...], *balls: tuple[float, float, float]) -> torch.Tensor:
    """A large bright ball at each place and a small darker one beside it."""
    image = torch.zeros(shape)
    for i, j, k in balls:
        image = torch.maximum(image, disc(shape, (i, j, k), 7.0))
        image = torch.maximum(image, 0.5 * disc(shape, (i + 9.0, j, k), 3.0))
    return 0.05 + 0.9 * image[None]


def info(origin: tuple[float, float, float]) -> ImageInfo:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.tensor(origin)
    return ImageInfo("", "volume", ".nii.gz", affine, (1.0, 1.0, 1.0))


def aligned(how: str, request: PairRequest) -> tuple[torch.Tensor, dict[str, float]]:
    embeddings = DiscSegmenter(3, 48).encode([request.fixed, request.moving])
    scene = Scene(View.plain(request.fixed, embeddings[0]), View.plain(request.moving, embeddings[1]))
    return prealign(how, request, scene)


def test_true_headers_are_believed() -> None:
    image = volume((40, 40, 40), (18.0, 20.0, 22.0))
    matrix, scores = aligned("auto", PairRequest(image, image, info((5, 6, 7)), info((5, 6, 7))))
    assert torch.allclose(matrix, torch.eye(4), atol=1e-4)
    assert scores["world"] == pytest.approx(1.0, abs=0.05)


def test_headers_that_lie_are_overruled() -> None:
    """The moving header is 100 mm off: image centres fit, the content does not overlap by the header."""
    image = volume((40, 40, 40), (18.0, 20.0, 22.0))
    matrix, scores = aligned("auto", PairRequest(image, image, info((0, 0, 0)), info((100, 0, 0))))
    assert torch.allclose(matrix, torch.eye(4), atol=1e-4) and scores["world"] == 0


def test_partial_overlap_is_found() -> None:
    """The moving volume shows the upper half of the fixed one: neither headers nor centres are right."""
    fixed = volume((30, 30, 70), (15.0, 15.0, 14.0), (13.0, 18.0, 52.0))
    moving = fixed[..., 38:]
    matrix, scores = aligned("auto", PairRequest(fixed, moving, info((0, 0, 0)), info((0, 0, -60))))
    at = transform_points(matrix, torch.tensor([[13.0], [18.0], [52.0]]))[:, 0]
    assert torch.allclose(at, torch.tensor([13.0, 18.0, 14.0]), atol=2.5), scores


def test_pictures_have_no_headers() -> None:
    image = volume((40, 40, 1), (18.0, 20.0, 0.0))[..., 0]
    picture = ImageInfo("", "picture", ".png", torch.eye(3, dtype=torch.float64), (1.0, 1.0))
    embeddings = DiscSegmenter().encode([image, image])
    scene = Scene(View.plain(image, embeddings[0]), View.plain(image, embeddings[1]))
    matrix, scores = prealign("auto", PairRequest(image, image, picture, picture), scene)
    assert torch.equal(matrix, torch.eye(3)) and not scores


def test_unknown_choice() -> None:
    with pytest.raises(InputError, match="prealignment: unknown 'magic'"):
        inferer(prealignment="magic")
    assert isinstance(inferer(prealignment="features"), PromptRegInferer)
