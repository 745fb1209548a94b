# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Medical SAM Adapter (3-D) equals upstream's own network (numbers by `make_golden.py`, random weights)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import (
    CROP,
    FULL_CROP,
    FULL_SLICES,
    SLICES,
    SMALL,
    assert_jacobian_is_the_derivative,
    bare,
    prompts_of_every_kind,
    random_slices,
    random_weights,
    thinned,
)
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.geometry import transform_points
from scripts.prompts import Prompts
from scripts.segmenters import SAM, MedicalSAMAdapter
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.slice_encoder import SliceBlock, StretchedAttention, near_square
from scripts.segmenters.vit import VARIANTS

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
KINDS = ["one click", "five clicks", "inside, outside, padding"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As upstream's training writes it: under "model" is the network's name."""
    state = {
        f"module.{name}": value
        for name, value in random_weights(bare(MedicalSAMAdapter, SMALL, slices=SLICES).state_dict()).items()
    }
    training = {"epoch": 3, "model": "sam", "state_dict": state, "optimizer": {}, "best_tol": 0.1, "path_helper": {}}
    path = tmp_path_factory.mktemp("msa") / "best_dice_checkpoint.pth"
    torch.save(training, path)
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> MedicalSAMAdapter:
    return adapter(file)


def adapter(file: Path, **options: Any) -> MedicalSAMAdapter:
    return MedicalSAMAdapter(file, variant=SMALL, slices=SLICES, crop=CROP, **options)


@pytest.fixture(scope="module")
def embeddings(model: MedicalSAMAdapter) -> list[Embedding]:
    with torch.no_grad():
        levels = model._encode(random_slices(SMALL))
    size = model.spec.input_size
    return [Embedding(tuple(level[n] for level in levels), size, torch.eye(4), size, size) for n in range(2)]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / "medical_sam_adapter.npz") as numbers:
        return {key: torch.from_numpy(numbers[key]) for key in numbers}


def prompts_of(kind: str) -> Prompts:
    return prompts_of_every_kind(SMALL.size, SMALL.grid, 3)[kind]


@pytest.mark.parametrize("n", [0, 1])
def test_the_network_is_upstreams(
    n: int, model: MedicalSAMAdapter, embeddings: list[Embedding], golden: dict[str, Tensor]
) -> None:
    """Upstream encodes both volumes at once, we one after the other: the windows' consecutive entries stay apart."""
    assert golden["features"][n].std() > 0.1
    assert torch.allclose(embeddings[n].features, golden["features"][n], **CLOSE)
    for kind in KINDS:
        expected = golden[f"{kind}/{n}/logits"]
        logits = model.decode(embeddings[n], prompts_of(kind)).logits
        assert expected.std() > 0.05 and logits.shape[1:] == (32, 32, SLICES)
        assert torch.allclose(logits[:, ::3, ::3], expected, **CLOSE), kind


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """The numbers of `make_golden.py medical_sam_adapter SOURCE full`: ViT-B at 1024, two slices."""
    with np.load(Path(__file__).parent / "golden" / "medical_sam_adapter_full.npz") as stored:
        numbers = {key: torch.from_numpy(stored[key]) for key in stored}
    shapes = bare(MedicalSAMAdapter, VARIANTS["vit_b"], slices=FULL_SLICES).state_dict()
    torch.save({"state_dict": random_weights(shapes)}, tmp_path / "w.pth")
    model = MedicalSAMAdapter(tmp_path / "w.pth", slices=FULL_SLICES, crop=FULL_CROP)
    with torch.no_grad():
        (features,) = model._encode(random_slices(model.config, FULL_SLICES)[:1])
    assert torch.allclose(thinned(features), numbers["features"], rtol=1e-4, atol=1e-3)
    size = model.spec.input_size
    embedding = Embedding((features[0],), size, torch.eye(4), size, size)
    for kind in KINDS:
        logits = model.decode(embedding, prompts_of_every_kind(1024, 64, 3)[kind]).logits
        expected = numbers[f"{kind}/0/logits"]
        assert expected.std() > 0.05
        assert torch.allclose(thinned(logits[:, ::3, ::3]), expected, rtol=1e-3, atol=1e-3), kind


@pytest.mark.parametrize("kind", ["five clicks", "inside, outside, padding"])
def test_jacobian_is_the_derivative(kind: str, model: MedicalSAMAdapter, embeddings: list[Embedding]) -> None:
    prompts = prompts_of(kind)
    assert_jacobian_is_the_derivative(model, embeddings[0], prompts)
    jacobian = model.decode_jacobian(embeddings[0], prompts)[1]
    assert (jacobian[:, 2::3] == 0).all()  # the network does not see a click's depth


# ---- the traps: each is in upstream's weights, and the golden numbers would notice its absence -----------------------


@pytest.mark.parametrize(
    ("slices", "grid"), [(96, (8, 12)), (6, (2, 3)), (2, (1, 2)), (7, (1, 7)), (4, (1, 4)), (16, (2, 8)), (9, (1, 9))]
)
def test_slices_are_laid_out_on_a_grid_that_is_never_square(slices: int, grid: tuple[int, int]) -> None:
    assert near_square(slices) == grid


def test_windows_rather_than_slices_see_each_other() -> None:
    """A change in one slice reaches another through blocks with windows only where both share six windows in a row."""
    block = SliceBlock(SMALL, window=3)
    block.slices = SLICES
    x = torch.randn(SLICES, 6, 6, SMALL.width, generator=torch.Generator().manual_seed(0))  # four windows a slice
    changed = x.clone()
    changed[0] = x[1].flip(0)
    with torch.no_grad():
        moved = (block(changed) - block(x)).abs().amax((2, 3)).amax(1) > 1e-6
    assert moved.tolist() == [True, True, False, False, False, False]  # windows 0 to 5 are of slices 0 and 1
    everywhere = SliceBlock(SMALL, window=0)
    everywhere.slices = SLICES
    with torch.no_grad():
        assert ((everywhere(changed) - everywhere(x)).abs().amax((1, 2, 3)) > 1e-6).all()


def test_padding_attends_as_the_bias_of_the_norm() -> None:
    block = SliceBlock(SMALL, window=3)
    block.slices = 2
    seen = []
    block.attn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    nn.init.constant_(block.norm1.bias, 0.7)
    with torch.no_grad():
        block(torch.randn(2, 4, 4, SMALL.width))
    assert torch.allclose(seen[0][3, 1:, 1:], torch.tensor(0.7))  # the last window holds one place of the first slice


def test_relative_positions_are_stretched() -> None:
    attention = StretchedAttention(SMALL, 4)
    table = torch.arange(7.0)[:, None].expand(7, 8)
    attention.rel_h.data.copy_(table)
    assert attention.table("rel_h", 4)[2, 1, 0] == 4  # as stored: offset 1
    shorter = attention.table("rel_h", 2)  # of three values, read at the middles of thirds
    assert torch.allclose(shorter[..., 0], torch.tensor([[3.0, 2 / 3], [5 + 1 / 3, 3.0]]), atol=1e-5)


def test_files_of_sam_are_refused(tmp_path: Path) -> None:
    """Their relative positions have other names; reading what fits would silently give another network."""
    torch.save(bare(SAM, SMALL).state_dict(), tmp_path / "sam.pth")
    with pytest.raises(InputError, match="does not hold Medical SAM Adapter custom weights"):
        adapter(tmp_path / "sam.pth")


def test_clicks_are_row_and_column_of_the_crop(file: Path) -> None:
    """A click is repeated for every slice; what training did not do is an option."""
    click = Prompts(torch.tensor([[[63.5, 15.5, 2.0]]]), torch.ones(1, 1, dtype=torch.int64))
    trained = adapter(file)
    other = adapter(file, clicks="image")
    tokens = trained.sparse(click)
    assert tokens.shape == (1, SLICES + 1, SMALL.channels)
    assert torch.equal(tokens[:, 0], tokens[:, SLICES - 1])
    swapped = Prompts(torch.tensor([[[3.5, 15.5, 0.0]]]), click.labels)  # x = 15.5: the click's row in the crop
    assert torch.allclose(tokens, other.sparse(swapped), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clicks": "box"}, "clicks: unknown 'box', expected one of"),
        ({"slices": 1}, "slices, crop: 1 slices of 96 voxels a side"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MedicalSAMAdapter("w.pth", **options)


def test_boxes_are_refused(model: MedicalSAMAdapter, embeddings: list[Embedding]) -> None:
    box = Prompts(torch.tensor([[[1.0, 1.0, 1.0], [9.0, 9.0, 3.0]]]))
    with pytest.raises(InputError, match=r"cannot take the type \['box'\]; it takes \['point'\]"):
        model.decode(embeddings[0], box)


# ---- what it sees of a volume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1.0, 6.0])
def test_volumes_are_turned_resampled_and_padded(step: float, model: MedicalSAMAdapter) -> None:
    """Axes run towards inferior, left and anterior. A place of the volume is found at `to_model` of it."""
    shape = (8, 20, 16)
    affine = torch.tensor([[0.0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1 / step]]) * step
    volume = torch.full((1, *shape), -500.0)
    volume[0, 2:6, 12:17, 4:9] = 300.0
    seen: dict[str, Tensor] = {}
    handle = model.image_encoder.register_forward_pre_hook(lambda _, given: seen.update(x=given[0][:, 0]))
    (embedding,) = model.embed([volume], [affine])
    handle.remove()
    assert embedding.input_size == (128, 128, SLICES) and embedding.features.shape == (32, 8, 8, SLICES)
    inside = seen["x"].movedim(0, -1)
    assert inside.min() == 0 and 0.5 < inside.max() <= 1
    bright = inside > inside.max() / 2
    middle = transform_points(embedding.to_model, torch.tensor([3.5, 14.0, 6.0]))
    assert torch.allclose(bright.nonzero().float().mean(0), middle, atol=2.5)
    assert embedding.image_shape == shape and torch.equal(embedding.affine, affine)
    assert abs(embedding.inside((128, 128, SLICES)).sum() / torch.tensor(embedding.valid).prod() - 1) < 0.1


def test_intensities(file: Path) -> None:
    volume = torch.linspace(-1000, 1000, 32 * 32 * SLICES).reshape(1, 32, 32, SLICES)
    window = adapter(file).prepare(volume)[0]
    assert window.min() == 0 and window.max() == 1 and (window[0, 0] == 0).all() and (window[0, -1] == 1).all()
    stretched = adapter(file, window=None).prepare(volume)[0]
    assert 0 <= stretched.min() < 0.01 and 0.99 < stretched.max() <= 1 and (stretched == 0).float().mean() < 0.01
