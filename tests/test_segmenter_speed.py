# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The plain networks that ours are timed against are the same networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_weights import (
    CROP,
    SLICES,
    SMALL,
    SMALL_3D,
    SMALL_HIERA,
    bare,
    random_inputs,
    random_slices,
    random_weights,
)
from torch import Tensor

from scripts import segmenters
from scripts.prompts import Prompts
from scripts.segmenter_speed import in_plain
from scripts.segmenters.embedding import Embedding

VOLUMES: dict[str, Any] = {"slices": SLICES, "crop": CROP, "clicks": "training"}


@pytest.mark.parametrize(
    ("name", "config", "more"),
    [
        ("SAM", SMALL, {}),
        ("SAMHQ", SMALL, {}),
        ("SAMMed3D", SMALL_3D, {}),
        ("MedicalSAMAdapter", SMALL, VOLUMES),
        ("SAM2", SMALL_HIERA, {}),
    ],
)
def test_plain_networks_are_the_same(name: str, config: Any, more: dict[str, Any]) -> None:
    if name == "SAM2":
        pytest.importorskip("transformers", reason="SAM 2's encoder comes from transformers: requirements-sam2.txt")
    model = bare(getattr(segmenters, name), config, precision=torch.float32, chunk=4, **more)
    model.load_state_dict(random_weights(model.state_dict()))
    model.eval().requires_grad_(False)
    inputs = (random_slices(config) if more else random_inputs(config))[:1]
    shape = tuple(inputs.shape[2:])

    def encode() -> Tensor:
        return model._encode(inputs)[-1]

    embedding = Embedding(
        tuple(level[0] for level in model._encode(inputs)), shape, torch.eye(len(shape) + 1), shape, shape
    )
    places = torch.rand(4, 1, len(shape), generator=torch.Generator().manual_seed(0)) * min(shape) * 0.9

    def decode() -> Tensor:
        return model._decode(embedding, Prompts(places, torch.ones(4, 1))).logits

    for call in (encode, decode):
        ours, plain = call(), in_plain(call)()
        assert ours.std() > 0 and (ours - plain).abs().max() < 1e-4 * ours.std()
