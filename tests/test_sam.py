# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM and MedSAM equal the networks of the package `segment-anything`, number by number, with random weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import (
    SMALL,
    assert_jacobian_is_the_derivative,
    picture,
    prompts_of_every_kind,
    random_weights,
    saved,
)
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from skimage import data
from skimage.transform import resize
from torch import Tensor, nn

from scripts import segmenter_speed
from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.prompts import Prompts
from scripts.segmenters import SAM, MedSAM
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.intensities import as_picture
from scripts.segmenters.vit import VARIANTS, ViTConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
PICTURES = [(128, 128, 0), (90, 128, 1), (150, 60, 2)]
KINDS = list(prompts_of_every_kind(128, 8))


def upstream_sam(config: ViTConfig) -> Sam:
    """Upstream's own modules in the sizes of `config`, with the weights of `random_weights`."""
    c = config.channels
    encoder = ImageEncoderViT(
        img_size=config.size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        global_attn_indexes=config.global_blocks,
        window_size=config.window,
        out_chans=c,
        mlp_ratio=4,
        qkv_bias=True,
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    grid = (config.grid, config.grid)
    prompts = PromptEncoder(c, grid, (config.size, config.size), mask_in_chans=16)
    decoder = MaskDecoder(
        transformer_dim=c, transformer=TwoWayTransformer(depth=2, embedding_dim=c, mlp_dim=2048, num_heads=8)
    )
    network = Sam(encoder, prompts, decoder)
    network.load_state_dict(random_weights(network.state_dict()))
    return network.eval()


@pytest.fixture(scope="module")
def upstream() -> Sam:
    return upstream_sam(SMALL)


@pytest.fixture(scope="module")
def file(upstream: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(upstream.state_dict(), tmp_path_factory.mktemp("sam") / "sam.pth")


@pytest.fixture(scope="module")
def model(file: Path) -> SAM:
    return SAM(file, variant=SMALL, batch=2)


@pytest.fixture(scope="module")
def embeddings(model: SAM) -> list[Embedding]:
    return model.encode([picture(*which) for which in PICTURES])


@torch.no_grad()
def upstream_decode(network: Sam, features: Tensor, prompts: Prompts, multimask: bool) -> tuple[Tensor, ...]:
    """Sparse tokens, logits and quality of prompts in voxels of the model input."""
    xy = prompts.coordinates.flip(-1)
    sparse, dense = network.prompt_encoder(
        points=None if prompts.labels is None else (xy, prompts.labels),
        boxes=xy.flatten(1) if prompts.labels is None else None,
        masks=None if prompts.masks is None else prompts.masks[:, None],
    )
    logits, quality = network.mask_decoder(
        image_embeddings=features[None],
        image_pe=network.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return sparse, logits, quality


# ---- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(len(PICTURES)))
def test_embedding(n: int, model: SAM, embeddings: list[Embedding], upstream: Sam) -> None:
    with torch.no_grad():
        features = upstream.image_encoder(model.prepare(picture(*PICTURES[n]))[0][None])[0]
    assert features.std() > 0.1
    assert torch.allclose(embeddings[n].features, features, **CLOSE)
    shapes = [tuple(level.shape) for level in embeddings[n].levels]
    assert shapes == [(32, 8, 8), (32, 8, 8)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", range(len(PICTURES)))
def test_prompts(kind: str, n: int, model: SAM, embeddings: list[Embedding], upstream: Sam) -> None:
    prompts, embedding = prompts_of_every_kind(128, 8)[kind], embeddings[n]
    seen = prompts.transformed(embedding.to_model)
    sparse, single, quality = upstream_decode(upstream, embedding.features, seen, multimask=False)
    assert torch.allclose(model.tokens(embedding, seen)[0], sparse, **CLOSE)
    decoded = model.decode(embedding, prompts)
    assert single.std() > 0.05
    assert torch.allclose(decoded.logits, single[:, 0], **CLOSE)
    assert torch.allclose(decoded.quality, quality[:, 0], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_best_of_three(kind: str, file: Path, embeddings: list[Embedding], upstream: Sam) -> None:
    prompts, embedding = prompts_of_every_kind(128, 8)[kind], embeddings[1]
    _, logits, quality = upstream_decode(
        upstream, embedding.features, prompts.transformed(embedding.to_model), multimask=True
    )
    decoded = SAM(file, variant=SMALL, masks="best").decode(embedding, prompts)
    assert torch.allclose(decoded.quality, quality.amax(1), **CLOSE)
    assert torch.allclose(decoded.logits, logits[torch.arange(len(logits)), quality.argmax(1)], **CLOSE)


def test_relative_positions_and_window_padding_matter(embeddings: list[Embedding], upstream: Sam) -> None:
    """The parity tests would notice their absence: windows of 3 on a grid of 8 reach beyond it."""
    changed = upstream_sam(SMALL)
    for name, value in changed.image_encoder.named_parameters():
        if "rel_pos" in name:
            value.data.zero_()
    x = nn.functional.pad(picture(90, 128), (0, 0, 0, 38)) / 255
    with torch.no_grad():
        assert not torch.allclose(changed.image_encoder(x[None]), upstream.image_encoder(x[None]), atol=1e-2)


def test_attention_in_parts_is_attention_at_once(
    model: SAM, embeddings: list[Embedding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.segmenters.vit.MASK_ELEMENTS", 1)
    again = model.encode([picture(*PICTURES[0])])[0]
    assert torch.allclose(again.features, embeddings[0].features, **CLOSE)


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    network = sam_model_registry["vit_b"]()
    network.load_state_dict(random_weights(network.state_dict()))
    network.eval()
    model = SAM(saved(network.state_dict(), tmp_path / "sam_vit_b.pth"))
    image = torch.from_numpy(data.astronaut()[:300]).movedim(-1, 0).float()
    embedding = model.encode([image])[0]
    with torch.no_grad():
        features = network.image_encoder(model.prepare(image)[0][None])[0]
    assert torch.allclose(embedding.features, features, rtol=1e-4, atol=1e-3)
    for prompts in prompts_of_every_kind(300, 64).values():
        _, logits, quality = upstream_decode(
            network, features, prompts.transformed(embedding.to_model), multimask=False
        )
        decoded = model.decode(embedding, prompts)
        assert torch.allclose(decoded.logits, logits[:, 0], rtol=1e-3, atol=1e-3)
        assert torch.allclose(decoded.quality, quality[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["vit_l", "vit_h"])
def test_names_and_shapes_of_the_large_encoders(variant: str) -> None:
    with torch.device("meta"):
        theirs = sam_model_registry[variant]().state_dict()
        ours = SAM.__new__(SAM)
        nn.Module.__init__(ours)
        ours.config = VARIANTS[variant]
        ours.build()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.items()}


# ---- the derivative ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["five clicks", "boxes", "boxes with masks"])
@pytest.mark.parametrize("masks", ["single", "best"])
def test_jacobian_is_the_derivative(kind: str, masks: str, file: Path, embeddings: list[Embedding]) -> None:
    model = SAM(file, variant=SMALL, masks=masks)
    prompts, embedding = prompts_of_every_kind(128, 8)[kind], embeddings[2]
    assert_jacobian_is_the_derivative(model, embedding, prompts)


# ---- images ---------------------------------------------------------------------------------------------------------


def test_prepare_is_that_of_the_predictor() -> None:
    """Upstream resizes in whole grey values, so inputs agree to 1/255 of the range and, at edges, one step more."""
    image = data.astronaut()[:300]  # 300 x 512
    model = bare(SAM)
    predictor = SamPredictor(sam_model_registry_of_nothing())
    expected = predictor.model.preprocess(torch.from_numpy(predictor.transform.apply_image(image)).movedim(-1, 0))
    inputs, _, valid = model.prepare(torch.from_numpy(image).movedim(-1, 0).float())
    assert valid == (600, 1024)
    assert inputs.shape == expected.shape == (3, 1024, 1024)
    assert (inputs[:, 600:] == 0).all() and (expected[:, 600:] == 0).all()
    assert ((inputs - expected).abs() * 57.0).max() <= 1.01  # grey values


def test_prepare_of_med_sam_is_that_of_its_script() -> None:
    image = data.astronaut()[:300]
    small = resize(image, (1024, 1024), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    expected = torch.from_numpy((small - small.min()) / (small.max() - small.min())).movedim(-1, 0).float()
    inputs, to_model, valid = bare(MedSAM).prepare(torch.from_numpy(image).movedim(-1, 0).float())
    assert valid == (1024, 1024)
    assert (inputs - expected).abs().max() <= 1.01 / 255
    corner = transform_points(to_model, torch.tensor([299.5, 511.5]))  # each axis has a scale of its own
    assert torch.allclose(corner, torch.tensor([1023.5, 1023.5]))


def bare(kind: type[SAM]) -> SAM:
    """An adapter without networks, for its image handling."""
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.config, model.intensity = VARIANTS["vit_b"], "auto"
    model.spec = type("Spec", (), {"input_size": (1024, 1024)})()
    return model


def sam_model_registry_of_nothing() -> Sam:
    """Upstream's image handling at full size without its encoder."""
    network = upstream_sam(SMALL)
    network.image_encoder.img_size = 1024
    return network


@pytest.mark.parametrize("kind", [SAM, MedSAM])
def test_grey_and_constant_images(kind: type[SAM]) -> None:
    model, grey = bare(kind), picture(40, 30)[:1]
    inputs = model.prepare(grey)[0]
    assert inputs.shape == (3, 1024, 1024)
    assert model.prepare(torch.full((1, 20, 30), 7.0))[0].isfinite().all()
    units = model.prepare(0.01 * grey - 5)[0]  # no picture: stretched
    assert torch.allclose(units, model.prepare(255 * (grey - grey.min()) / (grey.max() - grey.min()))[0], atol=0.02)


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ([0, 200], "auto", [0, 200]),
        ([-100, 200], "auto", [0, 255]),
        ([0, 1], "auto", [0, 255]),
        ([0, 4000], "auto", [0, 255]),
        ([0, 1], "picture", [0, 1]),
        ([10, 300], "picture", [10, 255]),
        ([20, 200], "stretch", [0, 255]),
    ],
)
def test_what_a_picture_is(values: list[float], rule: str, expected: list[float]) -> None:
    image = torch.tensor(values, dtype=torch.float32).reshape(1, 1, 2)
    assert torch.allclose(as_picture(image, rule).flatten(), torch.tensor(expected, dtype=torch.float32))


# ---- what is told apart and refused ---------------------------------------------------------------------------------


def test_med_sam_is_told_apart_by_the_user(upstream: Sam, file: Path, tmp_path: Path) -> None:
    """The same file is either; as trained, wrapped and prefixed, it reads as well."""
    model = MedSAM(saved(upstream.state_dict(), tmp_path / "medsam_model_best.pth", "training"), variant=SMALL)
    assert model.spec.trained_with == {"box"} and SAM(file, variant=SMALL).spec.trained_with > {"box", "point"}
    image = picture(90, 128)
    embedding = model.encode([image])[0]
    with torch.no_grad():
        features = upstream.image_encoder(model.prepare(image)[0][None])[0]
    assert torch.allclose(embedding.features, features, **CLOSE)
    boxes = prompts_of_every_kind(90, 8)["boxes"]
    _, logits, _ = upstream_decode(upstream, features, boxes.transformed(embedding.to_model), multimask=False)
    assert torch.allclose(model.decode(embedding, boxes).logits, logits[:, 0], **CLOSE)


def test_wrong_options(file: Path) -> None:
    with pytest.raises(InputError, match="SAM vit_b needs a file of weights, none is given; fetch one with"):
        SAM(None)
    with pytest.raises(InputError, match=r"variant: unknown 'vit_x', expected one of \['vit_b'"):
        SAM(file, variant="vit_x")
    with pytest.raises(InputError, match="masks: unknown 'three', expected one of"):
        SAM(file, variant=SMALL, masks="three")
    with pytest.raises(InputError, match="intensity: unknown 'ct', expected one of"):
        SAM(file, variant=SMALL, intensity="ct")


def test_forward_segments_a_box(model: SAM) -> None:
    x = torch.zeros(1, 4, 90, 128)
    x[0, :3] = picture(90, 128)
    x[0, 3, 20:61, 30:91] = 1.0
    embedding = model.encode([picture(90, 128)])[0]
    box = Prompts(torch.tensor([[[20.0, 30.0], [60.0, 90.0]]]))
    assert torch.allclose(model(x)[0], embedding.to_image(model.decode(embedding, box).logits), atol=1e-4)


@pytest.mark.parametrize("name", ["lite_medsam", "sam_med2d"])
@pytest.mark.slow
def test_networks_equal_plain_ones_and_are_not_slower(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    segmenter_speed.main([name], "cpu", 2)
    lines = capsys.readouterr().out.splitlines()[-2:]
    for line, part in zip(lines, ("encoder", "prompt"), strict=True):
        _, _, _, ratio, _, _, difference = map(float, line.split(part)[1].split())
        assert difference < 1e-4 and ratio > 0.8
