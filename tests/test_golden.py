# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM-Med2D and SAM-HQ equal what upstream's own networks computed (`make_golden.py`), with the same random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import (
    SMALL,
    assert_jacobian_is_the_derivative,
    bare,
    picture,
    prompts_of_every_kind,
    random_weights,
    saved,
)
from torch import Tensor

from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.prompts import Prompts
from scripts.segmenters import SAM, SAMHQ, SAMMed2D
from scripts.segmenters.intensities import DEVIATION, MEAN
from scripts.segmenters.protocol import Embedding
from scripts.segmenters.slicewise import SliceWise, SliceWiseSegmenter

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
MODELS: dict[str, type[SAM]] = {"sam_med2d": SAMMed2D, "sam_hq": SAMHQ}
KINDS = list(prompts_of_every_kind(128, 8))


def golden(name: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as numbers:
        return {key: torch.from_numpy(numbers[key]) for key in numbers}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("golden")
    layouts = {"sam_med2d": "training", "sam_hq": "flat"}
    states = {name: random_weights(bare(kind, SMALL).state_dict()) for name, kind in MODELS.items()}
    return {name: saved(states[name], folder / f"{name}.pth", layout) for name, layout in layouts.items()}


def embed(model: SAM) -> list[Embedding]:
    """Of the inputs that `make_golden.py` gave, without any preparation."""
    inputs = torch.stack([picture(SMALL.size, SMALL.size, n) / 100 - 1 for n in range(2)])
    with torch.no_grad():
        levels = model._encode(inputs)
    size = (SMALL.size, SMALL.size)
    return [Embedding(tuple(level[n] for level in levels), size, torch.eye(3), size, size) for n in range(2)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("masks", ["single", "best"])
def test_the_network_is_upstreams(name: str, masks: str, files: dict[str, Path]) -> None:
    numbers = golden(name)
    model = MODELS[name](files[name], variant=SMALL, masks=masks)
    embeddings = embed(model)
    for n, embedding in enumerate(embeddings):
        assert numbers["features"][n].std() > 0.1
        assert torch.allclose(embedding.features, numbers["features"][n], **CLOSE)
        for kind, prompts in prompts_of_every_kind(128, 8).items():
            decoded = model.decode(embedding, prompts)
            expected = numbers[f"{kind}/{n}/{masks}/logits"]
            assert expected.std() > 0.05
            assert torch.allclose(decoded.logits[:, ::3, ::3], expected, **CLOSE), kind
            assert torch.allclose(decoded.quality, numbers[f"{kind}/{n}/{masks}/quality"], **CLOSE), kind


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["five clicks", "boxes"])
def test_jacobian_is_the_derivative(name: str, kind: str, files: dict[str, Path]) -> None:
    model = MODELS[name](files[name], variant=SMALL)
    assert_jacobian_is_the_derivative(model, embed(model)[0], prompts_of_every_kind(128, 8)[kind])


def test_no_parameter_of_sam_med2d_asks_for_gradients(files: dict[str, Path]) -> None:
    """Upstream's prompt encoder makes new parameters in every call."""
    model = SAMMed2D(files["sam_med2d"], variant=SMALL)
    model.decode(embed(model)[0], prompts_of_every_kind(128, 8)["five clicks"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ---- what SAM-Med2D sees of an image ---------------------------------------------------------------------------------


def med2d(geometry: str) -> SAMMed2D:
    model = bare(SAMMed2D, SAMMed2D.variants["vit_b"])
    model.intensity, model.geometry = "auto", geometry
    return model


def test_small_images_are_padded_on_all_sides() -> None:
    image = torch.full((3, 101, 60), 200.0)
    inputs, to_model, valid = med2d("loader").prepare(image)
    assert inputs.shape == (3, 256, 256) and valid == (101, 60)
    assert (inputs[:, :77] == 0).all() and (inputs[:, 178:] == 0).all() and (inputs[:, :, :98] == 0).all()
    expected = (torch.tensor([200.0, 200, 200]) - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    assert torch.allclose(inputs[:, 77, 98], expected) and torch.allclose(inputs[:, 177, 157], expected)
    assert torch.equal(transform_points(to_model, torch.tensor([0.0, 0.0])), torch.tensor([77.0, 98.0]))
    embedding = Embedding((inputs,), (101, 60), to_model, valid, (256, 256))
    assert torch.equal(embedding.inside((256, 256)), inputs[0] != 0)
    assert torch.allclose(embedding.to_image(inputs), inputs[:, 77:178, 98:158], atol=1e-4)


@pytest.mark.parametrize(("geometry", "shape"), [("loader", (300, 200)), ("squash", (100, 80)), ("loader", (256, 90))])
def test_other_images_are_squashed_to_the_nearest_pixel(geometry: str, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    inputs, to_model, valid = med2d(geometry).prepare(image)
    assert valid == (256, 256)
    blue = (image[2] - MEAN[0]) / DEVIATION[0]  # read as blue, green, red; standardised as red, green, blue
    rows, columns = (torch.arange(256) * n // 256 for n in shape)
    assert torch.allclose(inputs[0], blue[rows][:, columns])
    last = transform_points(to_model, torch.tensor(shape) - 0.5)
    assert torch.allclose(last, torch.tensor([255.5, 255.5]), atol=1e-3)


def test_unknown_geometry(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="geometry: unknown 'pad', expected one of"):
        SAMMed2D(files["sam_med2d"], variant=SMALL, geometry="pad")


@pytest.mark.parametrize("name", MODELS)
def test_volumes_slice_by_slice(name: str, files: dict[str, Path]) -> None:
    """The first axis runs from left to right, so the model sees it flipped; padding lies on all sides of SAM-Med2D."""
    model = MODELS[name](files[name], variant=SMALL)
    volume = picture(48, 80)[0, :, :, None] + 20 * torch.arange(5)
    affine = torch.diag(torch.tensor([-1.0, 1.0, 4.0, 1.0]))
    slices = SliceWiseSegmenter(model, SliceWise(clip=(0, 100), storage="float32"), normal=2)
    embedding = slices.encode([volume[None]], [affine])[0]
    assert embedding.inside((128, 128, 5)).sum() == torch.tensor(embedding.valid).prod()
    box = Prompts(torch.tensor([[[10.0, 20.0, 2.0], [40.0, 60.0, 2.0]]]))
    decoded = slices.decode(embedding, box)
    alone = model.encode([volume[None, :, :, 2].clamp(volume.min(), volume.max())])[0]
    assert decoded.logits.isfinite().all() and alone.features.shape == embedding.features.shape[:-1]
