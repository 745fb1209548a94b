# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Promptable segmentation models: a protocol and one adapter per family."""

from .lite_medsam import LiteMedSAM
from .med_sam import MedSAM
from .medical_sam_adapter import MedicalSAMAdapter
from .promptable import PromptableSegmenter
from .protocol import SegmenterSpec
from .sam import SAM
from .sam2 import SAM2, MedSAM2
from .sam_hq import SAMHQ
from .sam_med2d import SAMMed2D
from .sam_med3d import SAMMed3D

__all__ = [
    "SAM",
    "SAM2",
    "SAMHQ",
    "LiteMedSAM",
    "MedSAM",
    "MedSAM2",
    "MedicalSAMAdapter",
    "PromptableSegmenter",
    "SAMMed2D",
    "SAMMed3D",
    "SegmenterSpec",
]
