# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Sample pairs: written, readable, and the volume's motion as its formula says."""

from __future__ import annotations

from pathlib import Path

import torch

from scripts.geometry import sample
from scripts.samples import PAIRS, SHAPE, SPACING, head, run
from scripts.transforms import ReadPaird


def test_all_pairs_can_be_read(tmp_path: Path) -> None:
    run(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2 * len(PAIRS)
    for name in ("retina", "coins", "head"):
        ending = "nii.gz" if name == "head" else "png"
        files = {key: tmp_path / f"{name}_{side}.{ending}" for key, side in (("image", "fixed"), ("moving", "moving"))}
        request = ReadPaird()(files)["image"].meta["request"]
        assert request.fixed.ndim == (4 if name == "head" else 3) == request.moving.ndim


def test_the_head_moves_as_its_matrix_says() -> None:
    """What a shift of two voxels brings to a place lies there in the plain volume two voxels on."""
    shift = torch.eye(4)
    shift[0, 3] = 2 * SPACING[0]
    plain, moved = head(torch.eye(4)), head(shift)
    assert plain.shape == SHAPE and plain.min() >= 0 and 150 < plain.max() < 255
    assert torch.allclose(moved[:-2], plain[2:], atol=1e-2)
    assert sample(plain[None], torch.tensor([[35.5], [41.5], [9.5]])).item() > 50, "brain in the middle"
