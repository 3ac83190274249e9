"""Tree attention: token q may attend to token k iff k <= q < end[k]. Pure tensor functions.

`end[k]` is the packed index just past the subtree of the node that holds token k (design.md section 2). A causal
sequence is the tree whose `end` is constant, and several trees in one row are several roots: nothing else changes.
The rule comes in three forms: a dense mask, a block mask for FlexAttention, and dense products without any mask.
T: tokens of a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Piece", "block_mask", "dense_mask", "pieces", "tree_attention", "visible"]


def visible(query: Tensor, key: Tensor, end: Tensor) -> Tensor:
    """The one rule, elementwise on packed indices: True where `query` may attend to `key`."""
    return (key <= query) & (query < end[key])


def dense_mask(end: Tensor) -> Tensor:
    """[T] -> bool [1, 1, T, T], True = attend; the 4-D mask that transformers' SDPA path takes as it is."""
    index = torch.arange(end.numel(), device=end.device)
    return visible(index[:, None], index[None, :], end)[None, None]


def block_mask(end: Tensor) -> Any:
    """[T] -> a FlexAttention `BlockMask` of the same rule: whole blocks outside a tree are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(query, key, end)

    size = end.numel()
    return create_block_mask(rule, None, None, size, size, device=str(end.device))


# ------------------------------------------------------------------------------------------------- dense products


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A rectangle of the T x T scores that is computed as one dense product."""

    queries: slice
    keys: slice
    causal: bool = False
    """The lower triangle of a square."""
    bias: Tensor | None = None
    """[queries, keys] 0 or hugely negative, where several short runs share a piece."""


def pieces(end: Tensor, dtype: torch.dtype, width: int = 128) -> list[Piece]:
    """Rectangles that hold every visible pair once: squares along the diagonal first, then what lies below them.

    Tokens of equal `end` are a run. A run sees itself causally and is seen in full by everything up to its `end`, so
    long runs need no mask at all. Neighbours that fit into `width` tokens share a masked piece: one call, not many.
    """
    index = torch.arange(end.numel())
    ends = end.tolist()
    cuts = [0, *(k for k in range(1, len(ends)) if ends[k] != ends[k - 1]), len(ends)]
    blocks: list[list[tuple[int, int]]] = []
    for run in pairwise(cuts):
        if blocks and run[1] - blocks[-1][0][0] <= width:
            blocks[-1].append(run)
        else:
            blocks.append([run])

    def masked(queries: slice, keys: slice) -> Piece:
        hidden = ~visible(index[queries, None], index[None, keys], end)
        # Finite, so that a query that sees nothing of this piece gets weight 0 and not NaN.
        bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min / 2)
        return Piece(queries=queries, keys=keys, bias=bias)

    squares, below = [], []
    for runs in blocks:
        start, stop = runs[0][0], runs[-1][1]
        square = slice(start, stop)
        squares.append(Piece(queries=square, keys=square, causal=True) if len(runs) == 1 else masked(square, square))
        open_runs = [slice(*run) for run in runs if ends[run[0]] > stop]
        if open_runs:
            queries = slice(stop, max(ends[start:stop]))
            one = len(open_runs) == 1
            below.append(Piece(queries=queries, keys=open_runs[0]) if one else masked(queries, square))
    return squares + below


_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _TreeAttention(torch.autograd.Function):
    """Softmax over pieces: partial results are joined by their log-sum-exp, as in ring attention.

    The backward pass of each piece takes the joined output and log-sum-exp, which makes the parts add up exactly.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[Piece], scale: float) -> Tensor:
        out, total = torch.empty_like(query), query.new_empty(0)
        for number, part in enumerate(parts):
            rows = part.queries
            k, v = key[:, :, part.keys], value[:, :, part.keys]
            new, lse = _FORWARD(query[:, :, rows], k, v, 0.0, part.causal, attn_mask=part.bias, scale=scale)
            if number == 0:
                total = lse.new_empty(query.shape[:-1])
            if part.queries == part.keys:
                out[:, :, rows], total[:, :, rows] = new, lse
            else:
                before, after = total[:, :, rows], torch.logaddexp(total[:, :, rows], lse)
                old = out[:, :, rows].mul_((before - after).exp_()[..., None])
                old.addcmul_(new, (lse - after).exp_()[..., None].to(new.dtype))
                total[:, :, rows] = after
        ctx.save_for_backward(query, key, value, out, total)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        into = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for part in ctx.parts:
            q, k = (slice(None), slice(None), part.queries), (slice(None), slice(None), part.keys)
            found = _BACKWARD(
                gradient[q], query[q], key[k], value[k], out[q], total[q], 0.0, part.causal,
                attn_mask=part.bias, scale=ctx.scale,
            )  # fmt: skip
            for target, where, share in zip(into, (q, k, k), found, strict=True):
                if part.queries == part.keys:
                    target[where] = share
                else:
                    target[where] += share
        return *into, None, None


def tree_attention(query: Tensor, key: Tensor, value: Tensor, end: Tensor, scale: float | None = None) -> Tensor:
    """query [B, H, T, D], key and value [B, Hkv, T, D] -> [B, H, T, D]; on CPU, work grows with the visible pairs."""
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.device.type == "cpu":
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return _TreeAttention.apply(query, key, value, pieces(end, query.dtype), scale)
    repeats = query.shape[1] // key.shape[1]  # kernels that take a mask know no grouped heads
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(end), scale=scale)
