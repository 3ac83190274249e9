"""Tree attention: token q may attend to token k iff k <= q < end[k]. Pure tensor functions.

`end[k]` is the packed index just past the subtree of the node that holds token k (design.md section 2). A causal
sequence is the tree whose `end` is constant, and several trees in one row are several roots: nothing else changes.
T: tokens of a packed row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["block_mask", "dense_mask", "visible"]


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
