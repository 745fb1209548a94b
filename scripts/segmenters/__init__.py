# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Promptable segmentation models: a protocol and one adapter per family."""

from .lite_medsam import LiteMedSAM
from .protocol import PromptableSegmenter, SegmenterSpec

__all__ = ["LiteMedSAM", "PromptableSegmenter", "SegmenterSpec"]
