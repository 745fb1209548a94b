# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""SAM's mask decoder for many prompts on one image, with the same weights and result at less than half the work.

`segment_anything.MaskDecoder` projects every position of the image for every prompt and attention (Kirillov et al.,
2023, appendix A). A prompt has few tokens T and the image thousands of positions, so here each projection is moved to
the tokens' side, which is exact algebra:

    (q W_q)(x W_k)^T = (q W_q W_k^T) x^T         softmax(..) (x W_v) W_o = (softmax(..) x) W_v W_o

The first layer sees the same image for all prompts, and the upscaling keeps channels last, so nothing large is copied.
Plain matrix products only: differentiable in forward mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ImageTokens:
    """An image as the decoder's tokens, shared by all prompts.

    Attributes:
        keys: `[P, C]`, P positions, or `[N, P, C]` where every prompt has a mask of its own.
        position: `[P, C]` their encoding.
        size: of the grid, `(h, w)` with h w = P (volumes: `(h, w, d)`).
    """

    keys: Tensor
    position: Tensor
    size: tuple[int, ...]


def image_tokens(features: Tensor, dense: Tensor, position: Tensor) -> ImageTokens:
    """Tokens of an image.

    Args:
        features: `[C, h, w]` (volumes: one axis more, here and below).
        dense: `[C, h, w]` embedding of the mask prompt common to all prompts (that of no mask), or `[N, C, h, w]`.
        position: `[C, h, w]` positional encoding.
    """
    size = tuple(features.shape[1:])
    keys = (features + dense).flatten(-len(size)).transpose(-1, -2).contiguous()
    return ImageTokens(keys, position.flatten(1).T.contiguous(), size)


def decode_masks(
    decoder: MaskDecoder, image: ImageTokens, sparse: Tensor, outputs: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor]:
    """Masks and their predicted quality for each prompt.

    Args:
        decoder: SAM's, with weights.
        image: see `image_tokens`.
        sparse: `[N, T', C]` prompt tokens.
        outputs: which of the decoder's masks: 0 is that of `multimask_output=False`, 1 to 3 those of True.

    Returns:
        logits `[N, M, 4h, 4w]`, quality `[N, M]`.
    """
    queries, keys = attend(decoder, image, sparse, decoder.mask_tokens.weight)
    finer = upscaled(decoder, keys)
    weights = hyper_weights(decoder, queries, outputs)
    return masks_from(finer, weights, image.size), decoder.iou_prediction_head(queries[:, 0])[:, list(outputs)]


def attend(decoder: MaskDecoder, image: ImageTokens, sparse: Tensor, mask_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Output tokens `[N, 1 + M + T', C]` (quality, masks, prompt) and image tokens `[N, P, C]` after the transformer.

    Args:
        decoder, image, sparse: see `decode_masks`.
        mask_tokens: `[M, C]` learned tokens, one per mask.
    """
    own = torch.cat([decoder.iou_token.weight, mask_tokens])
    prompts = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
    queries, keys = prompts, image.keys
    for block in decoder.transformer.layers:
        queries, keys = _block(block, queries, keys, prompts, image.position)
    final = decoder.transformer.final_attn_token_to_image
    queries = queries + _tokens_to_image(final, queries + prompts, keys, keys + image.position)
    queries = decoder.transformer.norm_final_attn(queries)
    return queries, keys.expand(len(sparse), -1, -1)


def hyper_weights(decoder: MaskDecoder, queries: Tensor, outputs: Sequence[int]) -> Tensor:
    """What each mask reads from the upscaled image, `[N, M, c]`, from the output tokens of `attend`."""
    return torch.stack([decoder.output_hypernetworks_mlps[m](queries[:, 1 + m]) for m in outputs], dim=1)


def _block(
    block: TwoWayAttentionBlock, queries: Tensor, keys: Tensor, prompts: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer: tokens attend to themselves and to the image, then the image to the tokens.

    `keys` is `[P, C]` while it is common to all prompts, and `[N, P, C]` afterwards.
    """
    own = getattr(block, "among_tokens", None)  # Medical SAM Adapter does this otherwise
    queries = block.norm1(own(queries, prompts) if own else _among_tokens(block, queries, prompts))
    placed_keys = keys + position
    queries = queries + _tokens_to_image(block.cross_attn_token_to_image, queries + prompts, keys, placed_keys)
    queries = block.norm2(queries)
    queries = block.norm3(queries + block.mlp(queries))
    keys = keys + _image_to_tokens(block.cross_attn_image_to_token, placed_keys, queries + prompts, queries)
    return queries, block.norm4(keys)


def _among_tokens(block: TwoWayAttentionBlock, queries: Tensor, prompts: Tensor) -> Tensor:
    """Attention of the tokens `[N, T, C]` to themselves, before the norm."""
    if block.skip_first_layer_pe:
        return block.self_attn(q=queries, k=queries, v=queries)
    placed = queries + prompts
    return queries + block.self_attn(q=placed, k=placed, v=queries)


def _tokens_to_image(attention: Attention, queries: Tensor, keys: Tensor, placed: Tensor) -> Tensor:
    """Attention of tokens `[N, T, C]` to image positions: values from `keys`, weights from `placed`."""
    heads = attention.num_heads
    q = _split(attention.q_proj(queries), heads)  # [N, T, H, d]
    w_k, w_v = (_split(layer.weight.T, heads) for layer in (attention.k_proj, attention.v_proj))  # [C, H, d]
    asked = torch.einsum("nthd,chd->nhtc", q, w_k) / q.shape[-1] ** 0.5
    # The bias of k_proj adds the same to every position, which the softmax takes out again.
    weights = torch.softmax(asked.flatten(1, 2) @ placed.transpose(-1, -2), dim=-1)
    seen = (weights @ keys).unflatten(1, (heads, -1))  # [N, H, T, C]
    values = torch.einsum("nhtc,chd->nthd", seen, w_v).flatten(2) + attention.v_proj.bias
    return attention.out_proj(values)


def _image_to_tokens(attention: Attention, placed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of image positions to tokens `[N, T, C]`: `[N, P, C]`."""
    heads = attention.num_heads
    k, v = _split(attention.k_proj(keys), heads), _split(attention.v_proj(values), heads)  # [N, T, H, d]
    w_q = _split(attention.q_proj.weight.T, heads)  # [C, H, d]
    b_q = attention.q_proj.bias.unflatten(0, (heads, -1))
    asked = torch.einsum("nthd,chd->nhtc", k, w_q) / k.shape[-1] ** 0.5
    offset = torch.einsum("nthd,hd->nht", k, b_q) / k.shape[-1] ** 0.5
    scores = (asked.flatten(1, 2) @ placed.transpose(-1, -2)).unflatten(1, (heads, -1)) + offset[..., None]
    weights = torch.softmax(scores, dim=2).flatten(1, 2)  # [N, H T, P]
    given = torch.einsum("nthd,chd->nhtc", v, attention.out_proj.weight.unflatten(1, (heads, -1))).flatten(1, 2)
    return weights.transpose(1, 2) @ given + attention.out_proj.bias


def upscaled(decoder: MaskDecoder, keys: Tensor, early: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Image tokens `[N, P, C]`, four times finer: `[N, P, 4, 4, c]`, behind a position the two refinements' 2 x 2
    (volumes: `[N, P, 8, 8, c]`).

    A transposed convolution whose stride is its size is a matrix product per position.

    Args:
        decoder, keys: see `attend`.
        early: grids of the encoder, see `by_position`, added behind the first and the second refinement (SAM 2).
    """
    first, norm, activation, second, last = decoder.output_upscaling

    def finer(x: Tensor, layer: torch.nn.ConvTranspose2d) -> Tensor:
        kernel = layer.weight.flatten(2).permute(2, 1, 0)  # [4, c, C]
        bias = layer.get_parameter("bias").repeat(len(kernel))
        return F.linear(x, kernel.flatten(0, 1), bias).unflatten(-1, kernel.shape[:2])

    x = finer(keys, first)  # [N, P, 4, c]
    x = x if early is None else x + early[0]
    x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = finer(x, second)
    return last(x if early is None else x + early[1])


def by_position(grid: Tensor, size: tuple[int, ...]) -> Tensor:
    """A grid `[c, 2h, 2w]` in the order of `upscaled` after one refinement, `[P, 4, c]`; `[c, 4h, 4w]` after two,
    `[P, 4, 4, c]`.
    """
    times = (grid.shape[1] // size[0]).bit_length() - 1
    parts = grid.unflatten(2, (size[1], *[2] * times)).unflatten(1, (size[0], *[2] * times))
    rows, columns = range(1, 2 + times), range(2 + times, 3 + 2 * times)
    order = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
    parts = parts.permute(*order, 0).flatten(0, 1)  # [P, 2, 2, (2, 2,) c]
    return parts.flatten(1, 2) if times == 1 else parts.flatten(3, 4).flatten(1, 2)


def masks_from(finer: Tensor, weights: Tensor, size: tuple[int, ...]) -> Tensor:
    """Mask logits `[N, M, 4h, 4w]`: the product of `upscaled` `[N, P, 4, 4, c]` and `hyper_weights` `[N, M, c]`."""
    return as_grid(finer @ weights.transpose(1, 2)[:, None, None], size)


def as_grid(finer: Tensor, size: tuple[int, ...]) -> Tensor:
    """Values `[N, P, 4, 4, c]` in the order of `upscaled` as a grid `[N, c, 4h, 4w]`."""
    dims = len(size)
    grid = finer.flatten(1, 3).unflatten(1, (*size, *[2] * (2 * dims)))  # [N, h, w, 2, 2, 2, 2, c]
    # Rows are h, then the first and the second refinement's row.
    order = [place for axis in range(1, 1 + dims) for place in (axis, axis + dims, axis + 2 * dims)]
    return grid.permute(0, -1, *order).reshape(len(grid), -1, *(4 * n for n in size))


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))
