# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM-Med2D, SAM-Med3D and SAM-HQ equal upstream's own networks (numbers by `make_golden.py`, random weights)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import (
    SMALL,
    SMALL_3D,
    assert_jacobian_is_the_derivative,
    bare,
    picture,
    prompts_of_every_kind,
    random_inputs,
    random_weights,
    saved,
)
from torch import Tensor

from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.prompts import Prompts
from scripts.segmenters import SAM, SAMHQ, SAMMed2D, SAMMed3D
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.growing import SliceWise
from scripts.segmenters.intensities import DEVIATION, MEAN
from scripts.segmenters.sam_decoder import decode_masks
from scripts.segmenters.sam_heads import best
from scripts.segmenters.slicewise import SliceWiseSegmenter
from scripts.segmenters.upright import canonical

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
MODELS: dict[str, type[SAM]] = {"sam_med2d": SAMMed2D, "sam_hq": SAMHQ, "sam_med3d": SAMMed3D}
PLANAR = ["sam_med2d", "sam_hq"]
SIZES = {"sam_med2d": SMALL, "sam_hq": SMALL, "sam_med3d": SMALL_3D}
KINDS = list(prompts_of_every_kind(128, 8))


def golden(name: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as numbers:
        return {key: torch.from_numpy(numbers[key]) for key in numbers}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("golden")
    layouts = {"sam_med2d": "training", "sam_hq": "flat", "sam_med3d": "training"}
    states = {name: random_weights(bare(kind, SIZES[name]).state_dict()) for name, kind in MODELS.items()}
    return {name: saved(states[name], folder / f"{name}.pth", layout) for name, layout in layouts.items()}


def embed(model: SAM) -> list[Embedding]:
    """Of the inputs that `make_golden.py` gave, without any preparation."""
    config = model.config
    with torch.no_grad():
        levels = model._encode(random_inputs(config))
    size, same = (config.size,) * config.dims, torch.eye(config.dims + 1)
    return [Embedding(tuple(level[n] for level in levels), size, same, size, size) for n in range(2)]


def prompts_of(name: str) -> dict[str, Prompts]:
    """Those that the model takes."""
    config = SIZES[name]
    every = prompts_of_every_kind(config.size, config.grid, config.dims)
    return {kind: prompts for kind, prompts in every.items() if prompts.kind in MODELS[name].accepts}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("masks", ["single", "best"])
def test_the_network_is_upstreams(name: str, masks: str, files: dict[str, Path]) -> None:
    numbers = golden(name)
    model = MODELS[name](files[name], variant=SIZES[name], masks=masks)
    embeddings = embed(model)
    for n, embedding in enumerate(embeddings):
        assert numbers["features"][n].std() > 0.1
        assert torch.allclose(embedding.features, numbers["features"][n], **CLOSE)
        for kind, prompts in prompts_of(name).items():
            if name == "sam_med3d":
                sparse, image = model.tokens(embedding, prompts)
                decoded = best(*decode_masks(model.mask_decoder, image, sparse, model.outputs))
            else:
                decoded = model.decode(embedding, prompts)
            expected = numbers[f"{kind}/{n}/{masks}/logits"]
            assert expected.std() > 0.05
            assert torch.allclose(decoded.logits[:, ::3, ::3], expected, **CLOSE), kind
            assert torch.allclose(decoded.quality, numbers[f"{kind}/{n}/{masks}/quality"], **CLOSE), kind


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["five clicks", "boxes", "clicks with masks"])
def test_jacobian_is_the_derivative(name: str, kind: str, files: dict[str, Path]) -> None:
    model = MODELS[name](files[name], variant=SIZES[name])
    if kind in prompts_of(name):
        assert_jacobian_is_the_derivative(model, embed(model)[0], prompts_of(name)[kind])


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


@pytest.mark.parametrize("name", PLANAR)
def test_volumes_slice_by_slice(name: str, files: dict[str, Path]) -> None:
    """The first axis runs from left to right, so the model sees it flipped; padding lies on all sides of SAM-Med2D."""
    model = MODELS[name](files[name], variant=SMALL)
    volume = picture(48, 80)[0, :, :, None] + 20 * torch.arange(5)
    affine = torch.diag(torch.tensor([-1.0, 1.0, 4.0, 1.0]))
    slices = SliceWiseSegmenter(model, SliceWise(clip=(0, 100), storage="float32"), normal=2)
    embedding = slices.encode([volume[None]], [affine])[0]
    assert embedding.inside(embedding.input_size).sum() == torch.tensor(embedding.valid).prod()
    box = Prompts(torch.tensor([[[10.0, 20.0, 2.0], [40.0, 60.0, 2.0]]]))
    decoded = slices.decode(embedding, box)
    alone = model.encode([volume[None, :, :, 2].clamp(volume.min(), volume.max())])[0]
    assert decoded.logits.isfinite().all() and alone.features.shape == embedding.features.shape[:-1]


# ---- what SAM-Med3D asks and sees ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def med3d(files: dict[str, Path]) -> SAMMed3D:
    return SAMMed3D(files["sam_med3d"], variant=SMALL_3D)


def test_places_and_clicks_are_encoded_in_different_orders(med3d: SAMMed3D) -> None:
    """The weights were trained so; it must not be put right."""
    encoding = med3d.prompt_encoder.pe_layer
    grid = encoding.of_grid(4)
    clicked = encoding((torch.tensor([2.0, 1, 3]) + 0.5) / 4)
    assert torch.allclose(grid[:, 1, 2, 3], clicked, atol=1e-5)
    assert not torch.allclose(grid[:, 2, 1, 3], clicked, atol=0.5)


def test_a_click_comes_with_a_mask_of_zeros(med3d: SAMMed3D) -> None:
    embedding, clicks = embed(med3d)[0], prompts_of("sam_med3d")["five clicks"]
    zeros = replace(clicks, masks=torch.zeros(5, 16, 16, 16))
    assert torch.allclose(med3d.decode(embedding, clicks).logits, med3d.decode(embedding, zeros).logits, atol=1e-5)
    without = med3d.prompt_encoder.no_mask_embed.weight
    dense = med3d.tokens(embedding, clicks)[1].keys - embedding.features.flatten(1).T
    assert not torch.allclose(dense, without.expand_as(dense), atol=0.1)


def test_sam_med3d_takes_no_boxes(med3d: SAMMed3D) -> None:
    box = Prompts(torch.tensor([[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]]))
    with pytest.raises(InputError, match=r"SAM-Med3D custom cannot take the type \['box'\]; it takes \['mask', 'point"):
        med3d.decode(embed(med3d)[0], box)


@pytest.mark.parametrize("step", [1.5, 6.0])
def test_volumes_are_turned_resampled_and_padded(step: float, med3d: SAMMed3D) -> None:
    """Axes run towards inferior, left and anterior. A place of the volume is found at `to_model` of it."""
    shape = (20, 30, 24)
    affine = torch.tensor([[0.0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1 / step]]) * step
    volume = torch.zeros(1, *shape)
    volume[0, 5:9, 20:26, 4:8] = 1.0
    seen = {}
    med3d.image_encoder.register_forward_pre_hook(lambda _, given: seen.update(x=given[0][0, 0]), prepend=True)
    (embedding,) = med3d.embed([volume], [affine])
    expected = torch.tensor([30, 24, 20]) * step / 1.5 * min(1, 64 / (30 * step / 1.5))
    assert embedding.valid == tuple(int(n) for n in expected.round())
    bright = seen["x"] > seen["x"].max() / 2
    middle = transform_points(embedding.to_model, torch.tensor([6.5, 22.5, 5.5]))
    assert torch.allclose(bright.nonzero().float().mean(0), middle, atol=0.6)
    assert embedding.inside((64, 64, 64)).sum() == torch.tensor(embedding.valid).prod()
    assert embedding.image_shape == shape and torch.equal(embedding.affine, affine)
    back = embedding.to_image(bright[None].float())
    assert ((back > 0.5).float() - volume).abs().sum() <= 0.3 * volume.sum()


def test_voxels_above_zero_are_normalised(med3d: SAMMed3D) -> None:
    volume = torch.zeros(1, 64, 64, 64)
    volume[0, 10:30] = 100 + 10 * torch.randn(20, 64, 64, generator=torch.Generator().manual_seed(0))
    inputs = med3d.prepare(volume)[0]
    shown = inputs[0, 10:30]
    assert abs(shown.mean()) < 1e-3 and abs(shown.std() - 1) < 1e-3 and inputs[0, 40].max() < -5
    assert med3d.prepare(torch.zeros(1, 8, 8, 8))[0].isfinite().all()


def test_canonical_axes() -> None:
    volume = torch.arange(24.0).reshape(1, 2, 3, 4)
    upright, spacing, turn = canonical(volume, torch.diag(torch.tensor([-2.0, 1.0, 3.0, 1.0])))
    assert torch.equal(upright, volume.flip(1)) and spacing == (2, 1, 3)
    assert torch.equal(transform_points(turn, torch.tensor([0.0, 1, 2])), torch.tensor([1.0, 1, 2]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.3), ("float16", 0.05)])
def test_half_precision(name: str, precision: str, tolerance: float, files: dict[str, Path]) -> None:
    """Relative to the logits' deviation; prompts stay in full precision."""
    clicks = prompts_of(name)["five clicks"]
    full, half = (MODELS[name](files[name], variant=SIZES[name], precision=p) for p in ("float32", precision))
    image = torch.zeros(1, *full.spec.input_size)
    image.view(-1)[::7] = 200.0
    there, here = (model.encode([image])[0] for model in (full, half))
    expected, found = full.decode(there, clicks).logits, half.decode(here, clicks).logits
    assert (found - expected).abs().max() < tolerance * expected.std()
    assert half.decode_jacobian(here, clicks)[1].isfinite().all()
