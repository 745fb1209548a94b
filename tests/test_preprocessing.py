# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What models see of a photograph that is not square is, to a grey value, what upstream's code would show them.

SAM and MedSAM: `test_sam.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision.transforms import Normalize, Resize

from scripts.segmenters import SAM, SAM2, SAMHQ, LiteMedSAM, MedSAM2, SAMMed2D
from scripts.segmenters.intensities import DEVIATION, MEAN
from scripts.segmenters.sam2 import DEVIATION as DEVIATION_2
from scripts.segmenters.sam2 import MEAN as MEAN_2

PHOTOGRAPH = data.astronaut()[:300]  # 300 x 512, uint8
GREY_VALUE = 1 / 255


def adapter(kind: type[Any], **more: Any) -> Any:
    """An adapter without networks."""
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    vars(model).update(intensity="auto", **more)
    return model


def seen(model: Any) -> Tensor:
    return model.prepare(torch.from_numpy(PHOTOGRAPH).movedim(-1, 0).float())[0]


def area_mean(values: np.ndarray, size: int) -> np.ndarray:
    """Means over `size` equal parts of the first axis, by integrals (what OpenCV calls INTER_AREA)."""
    integral = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    edges = np.linspace(0, len(values), size + 1)
    whole = edges.astype(int).clip(max=len(values) - 1)
    rest = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(integral[whole] + rest * values[whole], axis=0) / (len(values) / size)


def test_lite_medsam() -> None:
    """Longest side by area, then least to greatest to 0..1, then padding with zeros."""
    small = area_mean(area_mean(PHOTOGRAPH.astype(float), 150).swapaxes(0, 1), 256).swapaxes(0, 1)
    expected = np.zeros((256, 256, 3))
    expected[:150] = (small - small.min()) / (small.max() - small.min())
    found = seen(adapter(LiteMedSAM)).movedim(0, -1).numpy()
    assert np.abs(found - expected).max() < GREY_VALUE


def test_sam_med2d() -> None:
    """The nearest pixel as OpenCV takes it, blue first but standardised as red first."""
    rows, columns = (np.arange(256) * n // 256 for n in PHOTOGRAPH.shape[:2])
    blue_first = PHOTOGRAPH[rows][:, columns, ::-1].astype(np.float32)
    expected = (blue_first - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    found = seen(adapter(SAMMed2D, geometry="loader", config=SAMMed2D.variants["vit_b"])).movedim(0, -1).numpy()
    assert np.abs(found - expected).max() < 1e-4


def test_sam_hq_sees_what_sam_does() -> None:
    assert SAMHQ.prepare is SAM.prepare


@pytest.mark.parametrize("kind", [SAM2, MedSAM2])
def test_sam2(kind: type[SAM2]) -> None:
    """SAM 2: torchvision's resizing of values 0 to 1; MedSAM2: Pillow's default one of bytes."""
    config = kind.variants["tiny"]
    if kind is SAM2:
        picture = Resize((config.size, config.size))(torch.from_numpy(PHOTOGRAPH).movedim(-1, 0) / 255)
    else:
        squashed = Image.fromarray(PHOTOGRAPH).resize((config.size, config.size))
        picture = torch.from_numpy(np.array(squashed)).movedim(-1, 0) / 255
    found, expected = seen(adapter(kind, config=config)), Normalize(MEAN_2, DEVIATION_2)(picture)
    difference = (found - expected) * torch.tensor(DEVIATION_2)[:, None, None]
    assert difference.abs().max() < 1.01 * GREY_VALUE
