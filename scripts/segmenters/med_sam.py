# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""MedSAM: SAM ViT-B trained further on medical images with boxes; clicks reach the untrained prompt tokens of SAM.

Ma et al., "Segment anything in medical images", Nature Communications 2024 (Apache-2.0). Its files have SAM's keys and
shapes, so only the user can say which of both a file is. Input: squashed to 1024 x 1024 by scikit-image's cubic
interpolation with antialiasing, cut to whole grey values, then least to greatest value mapped to 0..1; no mean or
deviation. The two axes have scales of their own.
"""

from __future__ import annotations

import torch
from skimage.transform import resize
from torch import Tensor

from ..geometry import scaling_about_corner
from .intensities import as_picture, unit_range
from .sam import SAM
from .vit import VARIANTS


class MedSAM(SAM):
    """SAM for medical images; arguments as for `SAM`."""

    family = "MedSAM"
    variants = {"vit_b": VARIANTS["vit_b"]}  # noqa: RUF012  # nobody writes to it
    trained_with = frozenset({"box"})

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See `PromptableSegmenter.prepare`."""
        size = self.spec.input_size
        picture = as_picture(image, self.intensity).movedim(0, -1).cpu().numpy()
        squashed = resize(picture, size, order=3, preserve_range=True, anti_aliasing=True)
        whole = torch.from_numpy(squashed).movedim(-1, 0).to(image.device, torch.float32).floor()
        inputs = unit_range(whole).expand(3, *size)
        return inputs, scaling_about_corner(image.shape[1:], size, device=image.device), size
