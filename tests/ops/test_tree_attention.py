"""Attention by dense pieces equals attention under the dense mask, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlkit.algorithms import grpo
from rlkit.data.packing import pack
from rlkit.ops import masks
from rlkit.ops.masks import dense_mask, pieces, tree_attention
from tests.forest import random_forest


def forest_end(seed: int) -> Tensor:
    """`end` of five random trees in one row, about 130 tokens."""
    row = pack(grpo.ALGORITHM.credit(random_forest(seed), grpo.GrpoConfig(), None), 4096).rows[0]
    return torch.tensor(row.end)


def heads(end: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[1, H, T, 8] in the memory layout that transformers hands over."""
    return torch.randn(1, end.numel(), count, 8, dtype=dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("width", [1, 8, 20, 128])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_hold_every_visible_pair_once(seed: int, width: int) -> None:
    end = forest_end(seed)
    seen = torch.zeros(end.numel(), end.numel())
    for piece in pieces(end, torch.float64, width):
        area = seen[piece.queries, piece.keys]
        inside = torch.ones_like(area) if piece.bias is None else (piece.bias == 0).float()
        area += inside.tril() if piece.causal else inside
    assert torch.equal(seen, dense_mask(end)[0, 0].float())


@pytest.mark.parametrize("width", [1, 20, 128])
def test_output_and_gradients_are_those_of_the_dense_mask(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    end = forest_end(4)
    q, k, v = (heads(end, count, torch.float64) for count in (4, 2, 2))
    monkeypatch.setattr(masks, "pieces", lambda end, dtype: pieces(end, dtype, width))
    ours = tree_attention(q, k, v, end)
    dense = scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(end), enable_gqa=True)
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (q, k, v), gradient), torch.autograd.grad(dense, (q, k, v), gradient), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_autocast_joins_keys_and_values_of_different_dtypes() -> None:
    end = forest_end(1)
    q, k = heads(end, 4, torch.float32), heads(end, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert tree_attention(q, k, heads(end, 2, torch.bfloat16), end).dtype == torch.bfloat16
