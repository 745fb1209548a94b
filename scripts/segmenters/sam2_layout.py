# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Names of SAM 2's parameters: as its authors' files have them, and as the modules that we build of it have them.

The encoder comes from the package `transformers`, whose names differ; prompt encoder and mask decoder are those of SAM,
with other names for one perceptron.
"""

from __future__ import annotations

import re

from torch import Tensor

# Where (beginning of the authors' name), theirs, ours.
RENAMED = (
    ("image_encoder.trunk.", ".patch_embed.proj.", ".patch_embed.projection."),
    ("image_encoder.trunk.", ".norm1.", ".layer_norm1."),
    ("image_encoder.trunk.", ".norm2.", ".layer_norm2."),
    ("image_encoder.trunk.", ".mlp.layers.0.", ".mlp.proj_in."),
    ("image_encoder.trunk.", ".mlp.layers.1.", ".mlp.proj_out."),
    ("image_encoder.neck.", ".conv.", "."),
    ("sam_mask_decoder.transformer.", ".mlp.layers.0.", ".mlp.lin1."),
    ("sam_mask_decoder.transformer.", ".mlp.layers.1.", ".mlp.lin2."),
)
MOVED = {
    "image_encoder.trunk.": "image_encoder.backbone.",
    "sam_prompt_encoder.": "prompt_encoder.",
    "sam_mask_decoder.": "mask_decoder.",
}
# Of videos alone.
UNUSED = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\.|"
    r"(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)


def our_name(theirs: str) -> str:
    """Our name of a parameter."""
    name = theirs
    for where, old, new in RENAMED:
        if theirs.startswith(where):
            name = name.replace(old, new)
    for old, new in MOVED.items():
        if theirs.startswith(old):
            name = new + name.removeprefix(old)
    return name


def our_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' names with ours, without what serves videos alone."""
    return {our_name(name): value for name, value in state.items() if not UNUSED.match(name)}
