# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Numbers that upstream's own networks compute from `random_weights`, for models whose code is no dependency of ours.

    python tests/make_golden.py NAME SOURCE [full]

writes `tests/golden/NAME.npz`; with `full`, NAME_full.npz, a few of the numbers at full size. SOURCE is a folder in
which upstream's package can be imported:
`sam_med2d`: a checkout of OpenGVLab/SAM-Med2D (made with bfd2b93); `sam_hq`: the package segment-anything-hq (made with
0.3); `sam_med3d`: the package medim (made with 0.1.2), and appdirs, einops, huggingface_hub, which it imports;
`medical_sam_adapter`: a checkout of ImprintLab/Medical-SAM-Adapter (made with 4dcdc63), which imports einops;
`sam2`: a checkout of facebookresearch/sam2 (made with 2b90b9f), which imports hydra-core and iopath.
Nothing of upstream is kept but the numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
Decode = Callable[..., tuple[Tensor, Tensor]]


def encoder_arguments(config: Any) -> dict[str, Any]:
    return {
        "img_size": config.size,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "global_attn_indexes": config.global_blocks,
        "window_size": config.window,
        "out_chans": config.channels,
        "mlp_ratio": 4,
        "qkv_bias": True,
        "use_rel_pos": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }


def of_family(name: str, config: Any) -> tuple[nn.Module, dict[str, Any], Decode]:
    """Upstream's three modules, a decode's further arguments, and the decoder's call."""
    if name == "sam_med3d":
        return of_med3d(config)
    if name == "sam_med2d":
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer

        encoder = ImageEncoderViT(**encoder_arguments(config), adapter_train=True)
        decoder_of, more, decoder_more = MaskDecoder, {}, {}
    else:
        from segment_anything_hq.modeling import ImageEncoderViT, MaskDecoderHQ, PromptEncoder, TwoWayTransformer

        encoder = ImageEncoderViT(**encoder_arguments(config))
        decoder_of, more, decoder_more = MaskDecoderHQ, {"hq_token_only": False}, {"vit_dim": config.width}
    c, grid = config.channels, (config.grid, config.grid)
    transformer = TwoWayTransformer(depth=2, embedding_dim=c, mlp_dim=2048, num_heads=8)
    network = nn.Module()
    network.image_encoder = encoder
    network.prompt_encoder = PromptEncoder(c, grid, (config.size, config.size), mask_in_chans=16)
    network.mask_decoder = decoder_of(transformer_dim=c, transformer=transformer, **decoder_more)
    return network, more, network.mask_decoder


def of_med3d(config: Any) -> tuple[nn.Module, dict[str, Any], Decode]:
    from medim.models import sam_med3d as upstream

    network = nn.Module()
    network.image_encoder = upstream.ImageEncoderViT3D(**encoder_arguments(config))
    network.prompt_encoder = upstream.PromptEncoder3D(
        config.channels, (config.grid,) * 3, (config.size,) * 3, mask_in_chans=16
    )
    network.mask_decoder = upstream.MaskDecoder3D(transformer_dim=config.channels)
    return network, {}, network.mask_decoder


@torch.no_grad()
def slices_of_volumes(small: Any, slices_each: int, crop: int, count: int = 2) -> dict[str, Tensor]:
    """Medical SAM Adapter asked as its training did: each slice gets the clicks of all, as row, column of the crop."""
    from models.common import TwoWayTransformer
    from models.sam.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder
    from random_weights import prompts_of_every_kind, random_slices, random_weights

    how = SimpleNamespace(thd=True, chunk=slices_each, mid_dim=None, mod="sam_adpt")
    c, grid = small.channels, (small.grid, small.grid)
    network = nn.Module()
    network.image_encoder = ImageEncoderViT(how, **encoder_arguments(small))
    network.prompt_encoder = PromptEncoder(c, grid, (small.size, small.size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=c, mlp_dim=2048, num_heads=8)
    network.mask_decoder = MaskDecoder(num_multimask_outputs=3, transformer_dim=c, transformer=transformer)
    network.load_state_dict(random_weights(network.state_dict()))
    network.eval()
    volumes = random_slices(small, slices_each)[:count]
    # Both volumes at once, as a training batch: volume first, then slice.
    together = network.image_encoder(volumes.permute(0, 4, 1, 2, 3).flatten(0, 1))
    features = together.unflatten(0, (len(volumes), slices_each))
    numbers = {"features": features.permute(0, 2, 3, 4, 1)}
    for kind, prompts in prompts_of_every_kind(small.size, small.grid, 3).items():
        if prompts.labels is None or prompts.masks is not None:
            continue
        for n, slices in enumerate(features):
            masks = []
            for points, labels in zip(prompts.coordinates, prompts.labels, strict=True):
                times = max(1, slices_each // len(points))
                clicks = [(p[:2] + 0.5) * crop / small.size - 0.5 for p in points for _ in range(times)]
                of_slices = [label for label in labels for _ in range(times)]
                sparse, dense = network.prompt_encoder(
                    points=(torch.stack(clicks)[None], torch.stack(of_slices)[None]), boxes=None, masks=None
                )
                logits, _ = network.mask_decoder(
                    image_embeddings=slices,
                    image_pe=network.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=False,
                )
                masks.append(logits[:, 0].movedim(0, -1))
            numbers[f"{kind}/{n}/logits"] = torch.stack(masks)[:, ::3, ::3]
    return numbers


def of_sam2(small: Any) -> dict[str, Tensor]:
    """SAM 2's image path as its predictor takes it: a box as two labelled points, the grids of `forward_image`."""
    from random_weights import prompts_of_every_kind, random_inputs, random_weights
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer

    c, grid = small.channels, (small.grid, small.grid)
    trunk = Hiera(
        embed_dim=small.width,
        num_heads=small.heads,
        stages=small.stages,
        global_att_blocks=small.global_blocks,
        window_pos_embed_bkg_spatial_size=(small.background, small.background),
        window_spec=small.windows,
    )
    places = PositionEmbeddingSine(c, normalize=True)
    network = nn.Module()
    network.image_encoder = ImageEncoder(
        trunk,
        FpnNeck(places, c, trunk.channel_list, fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"),
        scalp=1,
    )
    network.sam_prompt_encoder = PromptEncoder(c, grid, (small.size, small.size), mask_in_chans=16)
    decoder = network.sam_mask_decoder = MaskDecoder(
        transformer_dim=c,
        transformer=TwoWayTransformer(depth=2, embedding_dim=c, mlp_dim=2048, num_heads=8),
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )
    network.no_mem_embed = nn.Parameter(torch.zeros(1, 1, c))
    network.load_state_dict(random_weights(network.state_dict()))
    network.eval()
    finest, finer, deep = network.image_encoder(random_inputs(small))["backbone_fpn"]
    deep = deep + network.no_mem_embed[0, 0][:, None, None]
    finest, finer = decoder.conv_s0(finest), decoder.conv_s1(finer)
    numbers = {"finest": finest, "finer": finer, "features": deep}
    for kind, prompts in prompts_of_every_kind(small.size, small.grid).items():
        corners = torch.tensor([[2, 3]]).expand(len(prompts), -1)
        sparse, dense = network.sam_prompt_encoder(
            points=(prompts.coordinates.flip(-1), corners if prompts.labels is None else prompts.labels),
            boxes=None,
            masks=None if prompts.masks is None else prompts.masks[:, None],
        )
        for n in range(len(deep)):
            for masks in ("single", "best"):
                logits, quality, _, _ = decoder(
                    image_embeddings=deep[n : n + 1],
                    image_pe=network.sam_prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=masks == "best",
                    repeat_image=True,
                    high_res_features=[finest[n : n + 1], finer[n : n + 1]],
                )
                one, choice = torch.arange(len(logits)), quality.argmax(1)
                numbers[f"{kind}/{n}/{masks}/logits"] = logits[one, choice][:, ::3, ::3]
                numbers[f"{kind}/{n}/{masks}/quality"] = quality[one, choice]
    return numbers


def write_full(name: str) -> None:
    from random_weights import FULL_CROP, FULL_SLICES, thinned

    from scripts.segmenters import sam2, vit

    if name == "medical_sam_adapter":
        numbers = slices_of_volumes(vit.VARIANTS["vit_b"], FULL_SLICES, FULL_CROP, count=1)
    else:
        numbers = of_sam2(sam2.VARIANTS["tiny"])
    write(f"{name}_full", {key: thinned(values) for key, values in numbers.items()})


def write(name: str, numbers: dict[str, Tensor]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / f"{name}.npz", **{k: v.numpy() for k, v in numbers.items()})


@torch.no_grad()
def main(name: str, source: str, size: str = "small") -> None:
    sys.path[:0] = [source, str(GOLDEN.parents[1])]  # before our own environment's package of the same name
    from random_weights import (
        CROP,
        SLICES,
        SMALL,
        SMALL_3D,
        SMALL_HIERA,
        prompts_of_every_kind,
        random_inputs,
        random_weights,
    )

    if size == "full":
        return write_full(name)
    if name == "medical_sam_adapter":
        return write(name, slices_of_volumes(SMALL, SLICES, CROP))
    if name == "sam2":
        return write(name, of_sam2(SMALL_HIERA))
    small = SMALL_3D if name == "sam_med3d" else SMALL
    network, more, decode = of_family(name, small)
    network.load_state_dict(random_weights(network.state_dict()))
    network.eval()
    inputs = random_inputs(small)
    encoded = network.image_encoder(inputs)
    features, early = encoded if isinstance(encoded, tuple) else (encoded, None)
    numbers = {"features": features}
    for kind, prompts in prompts_of_every_kind(small.size, small.grid, small.dims).items():
        if name == "sam_med3d" and prompts.labels is None:
            continue  # it knows no boxes
        for n in range(len(inputs)):
            for masks in ("single", "best"):
                parts = [
                    one(name, network, more, decode, features, early, n, prompts[i : i + 1], masks)
                    for i in range(len(prompts))
                ]
                numbers[f"{kind}/{n}/{masks}/logits"] = torch.cat([logits for logits, _ in parts])[:, ::3, ::3]
                numbers[f"{kind}/{n}/{masks}/quality"] = torch.cat([quality for _, quality in parts])
    return write(name, numbers)


def one(
    name: str,
    network: nn.Module,
    more: dict[str, Any],
    decode: Decode,
    features: Tensor,
    early: Any,
    n: int,
    prompts: Any,
    masks: str,
) -> tuple[Tensor, Tensor]:
    """Logits `[1, h, w]` and quality `[1]` of one prompt: upstream's decoders differ in what they do with several."""
    xy = prompts.coordinates.flip(-1)
    given = None if prompts.masks is None else prompts.masks[:, None]
    if xy.shape[-1] == 3:  # SAM-Med3D is asked as its training did: clicks as (i, j, k), always with a mask
        xy = prompts.coordinates
        given = torch.zeros(1, 1, *[4 * n for n in features.shape[2:]]) if given is None else given
    sparse, dense = network.prompt_encoder(
        points=None if prompts.labels is None else (xy, prompts.labels),
        boxes=xy.flatten(1) if prompts.labels is None else None,
        masks=given.sigmoid() if name == "sam_med2d" and given is not None else given,
    )
    extra = more if early is None else {**more, "interm_embeddings": [early[0][n : n + 1]]}
    logits, quality = decode(
        image_embeddings=features[n : n + 1],
        image_pe=network.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=masks == "best",
        **extra,
    )
    choice = quality[0].argmax()
    return logits[:, choice], quality[:, choice]


if __name__ == "__main__":
    main(*sys.argv[1:])
