# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Weights that are the same everywhere, drawn by each parameter's own name, and none of them zero.

A freshly built SAM has relative positions and a position embedding of zero, so that wrong ones would go unnoticed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.prompts import Prompts
from scripts.segmenters.embedding import Embedding
from scripts.segmenters.promptable import PromptableSegmenter
from scripts.segmenters.sam import SAM
from scripts.segmenters.sam2 import HieraConfig
from scripts.segmenters.sam2_layout import MOVED, RENAMED
from scripts.segmenters.vit import ViTConfig

SMALL = ViTConfig(size=128, width=32, depth=3, heads=4, global_blocks=(1,), window=3, channels=32)
SMALL_3D = ViTConfig(size=64, width=32, depth=3, heads=4, global_blocks=(1,), window=6, channels=48, dims=3)

SMALL_HIERA = HieraConfig(
    size=128, width=16, stages=(1, 2, 3, 1), windows=(8, 4, 6, 3), global_blocks=(4,), background=5, channels=32
)
SLICES, CROP = 6, 32  # of volumes for Medical SAM Adapter
FULL_SLICES, FULL_CROP = 2, 96  # at full size, where as many slices as in training would take an hour


def random_weights(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the same names and shapes: norms near 1, matrices by their fan-in, all else of deviation 0.2."""
    return {name: _values(name, value) for name, value in shapes.items()}


def _values(name: str, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return like.clone()
    values = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode("ascii"))))
    if name.endswith("running_var"):
        return 1 + values.abs()
    if "gaussian_matrix" in name:
        return values
    if name.endswith("weight") and like.ndim == 1:
        return 1 + 0.1 * values
    if name.endswith("weight") and like.ndim > 1 and "embed" not in name and "token" not in name:
        return values / like[0].numel() ** 0.5
    return 0.2 * values


def names_of_sam2(name: str) -> str:
    """The name of one of our parameters of SAM 2 in its authors' files."""
    for old, new in MOVED.items():
        if name.startswith(new):
            name = old + name.removeprefix(new)
    for where, old, new in RENAMED:
        if not name.startswith(where):
            continue
        if new == ".":  # the pyramid's convolutions: convs.0.weight
            head, tail = name.rsplit(".", 1)
            name = f"{head}{old}{tail}"
        else:
            name = name.replace(new, old)
    return name


def picture(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Smooth random colour `[3, rows, columns]`, 0 to 255."""
    noise = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return 255 * nn.functional.interpolate(noise, (rows, columns), mode="bicubic")[0].clamp(0, 1)


def saved(state: Mapping[str, Tensor], file: Path, layout: str = "flat") -> Path:
    """A checkpoint as upstream writes it: "flat", or "training" (wrapped, prefixed names)."""
    wrapped = {"model": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"lr": 0.1}, "epoch": 3}
    torch.save(dict(state) if layout == "flat" else wrapped, file)
    return file


def prompts_of_every_kind(size: int, grid: int, dims: int = 2) -> dict[str, Prompts]:
    """Prompts in voxels of a square image of `size`, for a model whose masks have 4 `grid` voxels along a side."""
    at = torch.Generator().manual_seed(3)
    clicks = size * torch.rand(5, 3, dims, generator=at)
    corners = size * (0.1 + 0.3 * torch.rand(2, dims, generator=at))
    boxes = Prompts(torch.stack([corners, corners + 0.4 * size], dim=1))
    masks = 4 * torch.randn(2, *[4 * grid] * dims, generator=at)
    return {
        "one click": Prompts(clicks[:1, :1], torch.ones(1, 1, dtype=torch.int64)),
        "five clicks": Prompts(clicks[:, :1], torch.ones(5, 1, dtype=torch.int64)),
        "inside, outside, padding": Prompts(clicks[:2], torch.tensor([[1, 0, -1], [0, 1, 1]])),
        "boxes": boxes,
        "boxes with masks": Prompts(boxes.coordinates, masks=masks),
        "clicks with masks": Prompts(clicks[:2, :2], torch.tensor([[1, 0], [1, 1]]), masks),
        "click with mask": Prompts(clicks[:1, :1], torch.ones(1, 1, dtype=torch.int64), masks[:1]),
    }


def assert_jacobian_is_the_derivative(model: PromptableSegmenter, embedding: Embedding, prompts: Prompts) -> None:
    """Forward mode equals central differences; their step is short, as the networks have kinks (ReLU)."""
    assert model.spec.differentiable
    logits, jacobian = model.decode_jacobian(embedding, prompts)
    assert torch.allclose(logits, model.decode(embedding, prompts).logits, rtol=1e-4, atol=1e-4)
    assert jacobian.shape == (len(prompts), prompts.coordinates[0].numel(), *logits.shape[1:])
    differences = []
    for q in range(jacobian.shape[1]):
        step = torch.zeros(jacobian.shape[1])
        step[q] = 0.02
        ahead, behind = (
            model.decode(embedding, prompts.at(prompts.coordinates + s * step.reshape(prompts.coordinates.shape[1:])))
            for s in (1, -1)
        )
        differences.append((ahead.logits - behind.logits) / 0.04)
    assert jacobian.norm() > 0.01
    assert (jacobian - torch.stack(differences, dim=1)).norm() < 0.02 * jacobian.norm()


def bare(kind: type[SAM], config: ViTConfig, **more: Any) -> Any:
    """An adapter with the networks of `kind` and weights as PyTorch draws them, made without a checkpoint.

    Args:
        kind, config: what to make; more: further attributes that its building reads.
    """
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.config = config
    for name, value in more.items():
        setattr(model, name, value)
    model.build()
    return model


def random_slices(config: ViTConfig, slices: int = SLICES) -> Tensor:
    """Two volumes `[2, 3, size, size, slices]`, smooth."""
    noise = torch.randn(2, 3, 12, 12, slices, generator=torch.Generator().manual_seed(5))
    return nn.functional.interpolate(noise, (config.size, config.size, slices), mode="trilinear")


def thinned(values: Tensor) -> Tensor:
    """About 2000 values of many, evenly, in one row: what is kept of a network's numbers at full size."""
    return values.flatten()[:: max(1, values.numel() // 2000)]


def random_inputs(config: ViTConfig) -> Tensor:
    """Two model inputs `[2, channels, *size]`, smooth."""
    if config.dims == 2:
        return torch.stack([picture(config.size, config.size, n) / 100 - 1 for n in range(2)])
    noise = torch.randn(2, 1, 12, 12, 12, generator=torch.Generator().manual_seed(5))
    return nn.functional.interpolate(noise, (config.size,) * 3, mode="trilinear")
