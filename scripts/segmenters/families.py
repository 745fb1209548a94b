# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Which family of models a state dict belongs to, told by its names and shapes; for error messages that help.

SAM and MedSAM have the same names and shapes: what a file is of the two, only the user can say. So do the 2-D and 3-D
forms of Medical SAM Adapter, of which only the second is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # of SAM's encoders
DEFAULT = "LiteMedSAM"  # read without an overlay
POSITIONS = "image_encoder.pos_embed"


@dataclass(frozen=True)
class Family:
    """What a file holds.

    Attributes:
        name: of the model, as its authors call it.
        overlays: configurations that read it, names below `configs/segmenters`; empty when the bundle cannot.
    """

    name: str
    overlays: tuple[str, ...] = ()

    def advice(self) -> str:
        """A clause for the end of an error message."""
        if self.name == DEFAULT:
            return f"it looks like {self.name}: leave the overlay of another segmenter out"
        if not self.overlays:
            return f"it looks like {self.name}, which this bundle cannot read"
        files = " or ".join(f"configs/segmenters/{name}.yaml" for name in self.overlays)
        return f"it looks like {self.name}: add {files}"


def _overlays_of_sam2(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """By the encoder's width and depth; SAM 2.0's files lack an entry that 2.1 has."""
    first, deep = state.get("image_encoder.trunk.pos_embed"), "image_encoder.trunk.blocks.{}.norm1.weight"
    if first is None or first.ndim < 2 or "no_obj_embed_spatial" not in state:
        return ()
    if first.shape[1] == 96:
        return ("sam2_small",) if deep.format(12) in state else ("sam2_tiny", "med_sam2")
    return {112: ("sam2_base_plus",), 144: ("sam2_large",)}.get(first.shape[1], ())


def recognise(state: Mapping[str, Tensor]) -> Family | None:
    """The family of a state dict without wrappers and prefixes; None if it is none of those known."""
    positions = state.get(POSITIONS)
    width = WIDTHS.get(positions.shape[-1]) if positions is not None and positions.ndim else None
    size = f" {width}" if width else ""
    if any(key.startswith(("image_encoder.trunk.", "sam_mask_decoder.")) for key in state):
        return Family("SAM 2 or MedSAM2", _overlays_of_sam2(state))
    if any(key.startswith("vision_encoder.layers.") for key in state):
        return Family("SAM in the layout of transformers")
    if any("slice_embed" in key or "depth_embed" in key for key in state):
        return Family("3DSAM-adapter")
    if any(".Space_Adapter." in key or ".MLP_Adapter." in key for key in state):
        return Family("Medical SAM Adapter", ("medical_sam_adapter",))
    if any(".Adapter." in key for key in state):
        return Family("SAM-Med2D", ("sam_med2d",))
    if "mask_decoder.hf_token.weight" in state:
        return Family(f"SAM-HQ{size}", (f"sam_hq_{width}",) if width else ())
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return Family(DEFAULT)
    if positions is not None and positions.ndim == 5:
        return Family("SAM-Med3D", ("sam_med3d",))
    if positions is not None and positions.ndim == 4:
        both = ("sam_vit_b", "med_sam") if width == "vit_b" else (f"sam_{width}",)
        return Family(f"SAM{size}" + (" or MedSAM" if width == "vit_b" else ""), both if width else ())
    return None
