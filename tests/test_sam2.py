# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM 2.1 and MedSAM2 equal upstream's own networks (numbers by `make_golden.py`, random weights).

The decoder needs no further package; what needs the encoder is left out where `transformers` is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import (
    SMALL_HIERA,
    assert_jacobian_is_the_derivative,
    bare,
    names_of_sam2,
    picture,
    prompts_of_every_kind,
    random_inputs,
    random_weights,
    thinned,
)
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.prompts import Prompts
from scripts.segmenters import SAM2, MedSAM2
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.growing import SliceWise
from scripts.segmenters.protocol import SegmenterSpec
from scripts.segmenters.sam2 import VARIANTS
from scripts.segmenters.sam2_layout import our_layout, our_name
from scripts.segmenters.sam_heads import OUTPUTS
from scripts.segmenters.slicewise import SliceWiseSegmenter

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
KINDS = list(prompts_of_every_kind(128, 8))
LEVELS = ("finest", "finer", "features")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / "sam2.npz") as numbers:
        return {key: torch.from_numpy(numbers[key]) for key in numbers}


def heads(masks: str = "single") -> SAM2:
    """The model without its encoder."""
    model: Any = SAM2.__new__(SAM2)
    nn.Module.__init__(model)
    model.config, model.outputs, model.chunk, model.precision = SMALL_HIERA, OUTPUTS[masks], 4, torch.float32
    every = frozenset({"point", "box", "mask"})
    model.spec = SegmenterSpec("SAM 2.1", 2, (128, 128), every, every, True, SAM2.decoder_levels)
    model.build_heads()
    theirs = random_weights({names_of_sam2(name): value for name, value in model.state_dict().items()})
    model.load_state_dict(our_layout(theirs))
    return model.eval().requires_grad_(False)


def embedding_of(levels: list[Tensor]) -> Embedding:
    return Embedding(tuple(levels), (128, 128), torch.eye(3), (128, 128), (128, 128))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", ["single", "best"])
def test_the_decoder_is_upstreams(kind: str, masks: str, golden: dict[str, Tensor]) -> None:
    model, prompts = heads(masks), prompts_of_every_kind(128, 8)[kind]
    for n in range(2):
        decoded = model.decode(embedding_of([golden[level][n] for level in LEVELS]), prompts)
        expected = golden[f"{kind}/{n}/{masks}/logits"]
        assert expected.std() > 0.05
        assert torch.allclose(decoded.logits[:, ::3, ::3], expected, **CLOSE)
        assert torch.allclose(decoded.quality, golden[f"{kind}/{n}/{masks}/quality"], **CLOSE)


@pytest.mark.parametrize("level", [0, 1])
def test_fine_grids_matter(level: int, golden: dict[str, Tensor]) -> None:
    levels = [golden[name][0] for name in LEVELS]
    changed = [grid.flip(1) if n == level else grid for n, grid in enumerate(levels)]
    model, boxes = heads(), prompts_of_every_kind(128, 8)["boxes"]
    before, after = (model.decode(embedding_of(some), boxes).logits for some in (levels, changed))
    assert (after - before).std() > 0.05 * before.std()


@pytest.mark.parametrize("kind", ["five clicks", "boxes", "clicks with masks"])
def test_jacobian_is_the_derivative(kind: str, golden: dict[str, Tensor]) -> None:
    embedding = embedding_of([golden[level][0] for level in LEVELS])
    assert_jacobian_is_the_derivative(heads(), embedding, prompts_of_every_kind(128, 8)[kind])


def test_names() -> None:
    assert our_name("image_encoder.trunk.blocks.0.norm1.weight") == "image_encoder.backbone.blocks.0.layer_norm1.weight"
    assert (
        our_name("sam_mask_decoder.transformer.layers.1.norm1.bias") == "mask_decoder.transformer.layers.1.norm1.bias"
    )
    for name in heads().state_dict():
        assert our_name(names_of_sam2(name)) == name
    state = {"no_mem_embed": torch.zeros(1), "memory_encoder.x": torch.zeros(1), "no_obj_ptr": torch.zeros(1)}
    assert our_layout(state).keys() == {"no_mem_embed"}
    assert "surprise" in our_layout({"surprise": torch.zeros(1)})  # refused later on: every key must fit


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"not installed; `pip install -r requirements-sam2.txt`"):
        SAM2("w.pth")


@pytest.mark.parametrize("kind", [SAM2, MedSAM2])
def test_images_are_squashed(kind: type[SAM2]) -> None:
    model: Any = kind.__new__(kind)
    nn.Module.__init__(model)
    model.config, model.intensity = SMALL_HIERA, "auto"
    inputs, to_model, valid = model.prepare(torch.full((1, 90, 60), 200.0))
    expected = (200 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert valid == (128, 128) and torch.allclose(inputs, expected[:, None, None].expand(3, 128, 128), atol=1e-4)
    last = transform_points(to_model, torch.tensor([89.5, 59.5]))
    assert torch.allclose(last, torch.tensor([127.5, 127.5]), atol=1e-3)


# ---- with the encoder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SAM2:
    """Read from a file as the authors' are, with parts of videos in it."""
    pytest.importorskip("transformers", reason="SAM 2's encoder comes from transformers: requirements-sam2.txt")
    theirs = {names_of_sam2(name): value for name, value in bare(SAM2, SMALL_HIERA).state_dict().items()}
    state = random_weights(theirs) | {"memory_attention.norm.weight": torch.ones(3), "no_obj_ptr": torch.ones(1, 32)}
    file = tmp_path_factory.mktemp("sam2") / "sam2.pt"
    torch.save({"model": state}, file)
    return SAM2(file, variant=SMALL_HIERA)


def test_the_encoder_is_upstreams(model: SAM2, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        levels = model._encode(random_inputs(SMALL_HIERA))
    for name, level in zip(LEVELS, levels, strict=True):
        assert golden[name].std() > 0.1
        assert torch.allclose(level, golden[name], **CLOSE), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoders_of_every_size_can_be_made(variant: str, model: SAM2) -> None:
    with torch.device("meta"):
        made = bare(SAM2, VARIANTS[variant])
    assert len(made.image_encoder.backbone.blocks) == sum(VARIANTS[variant].stages)


@pytest.mark.slow
def test_full_size(model: SAM2, tmp_path: Path) -> None:
    """The numbers of `make_golden.py sam2 SOURCE full`."""
    with np.load(Path(__file__).parent / "golden" / "sam2_full.npz") as stored:
        numbers = {key: torch.from_numpy(stored[key]) for key in stored}
    shapes = bare(SAM2, VARIANTS["tiny"]).state_dict()
    torch.save({"model": random_weights({names_of_sam2(k): v for k, v in shapes.items()})}, tmp_path / "tiny.pt")
    large = SAM2(tmp_path / "tiny.pt")
    with torch.no_grad():
        levels = large._encode(random_inputs(large.config))
    for name, level in zip(LEVELS, levels, strict=True):
        assert torch.allclose(thinned(level), numbers[name], rtol=1e-4, atol=1e-3), name
    size, square = large.spec.input_size, torch.eye(3)
    for n in range(2):
        embedding = Embedding(tuple(level[n] for level in levels), size, square, size, size)
        for kind, prompts in prompts_of_every_kind(1024, 64).items():
            for masks in OUTPUTS:
                large.choose_outputs(masks)
                decoded = large.decode(embedding, prompts)
                expected = numbers[f"{kind}/{n}/{masks}/logits"]
                assert expected.std() > 0.05
                assert torch.allclose(thinned(decoded.logits[:, ::3, ::3]), expected, rtol=1e-3, atol=1e-3), kind


def test_files_of_other_models_are_refused(model: SAM2, tmp_path: Path) -> None:
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, tmp_path / "sam.pth")
    with pytest.raises(InputError, match=r"does not hold SAM 2.1 custom weights .* it looks like SAM vit_b"):
        SAM2(tmp_path / "sam.pth", variant=SMALL_HIERA)


def test_volumes_slice_by_slice(model: SAM2) -> None:
    """Every grid that decoding reads is kept for each slice."""
    volume = picture(48, 80)[0, :, :, None] + 20 * torch.arange(5)
    slices = SliceWiseSegmenter(model, SliceWise(clip=(0, 100), storage="float32"), normal=2)
    embedding = slices.encode([volume[None]], [torch.diag(torch.tensor([-1.0, 1.0, 4.0, 1.0]))])[0]
    assert [tuple(level.shape[:3]) for level in embedding.levels] == [(4, 32, 32), (8, 16, 16), (32, 8, 8)]
    box = Prompts(torch.tensor([[[10.0, 20.0, 2.0], [40.0, 60.0, 2.0]]]))
    assert slices.decode(embedding, box).logits.isfinite().all()
