"""The one rule of tree attention, and log-probabilities of truncated distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlkit.ops.logprobs import Support, logprobs_of_logits, scored_logprobs
from rlkit.ops.masks import dense_mask, visible
from tests.forest import random_tree


def test_the_mask_of_the_example_in_records() -> None:
    # Prompt of 2, child A of 1, its child B of 1, sibling C of 1: packed P P A B C.
    end = torch.tensor([5, 5, 4, 4, 5])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert dense_mask(end)[0, 0].int().tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_exactly_its_ancestors(seed: int) -> None:
    tree = random_tree(seed, depth=1 + seed % 5)
    owner = np.repeat(np.arange(len(tree.nodes)), np.diff(tree.offsets))
    end = torch.as_tensor(tree.offsets[tree.node_ends][owner])
    mask = dense_mask(end)[0, 0].numpy()
    for q in range(tree.num_tokens):
        for k in range(tree.num_tokens):
            assert mask[q, k] == (k <= q and owner[k] in tree.path(int(owner[q])))


def test_a_causal_row_is_the_tree_with_constant_end() -> None:
    assert torch.equal(dense_mask(torch.full((6,), 6))[0, 0], torch.ones(6, 6).tril().bool())


def test_the_flex_rule_is_the_dense_rule() -> None:
    end = torch.tensor([5, 5, 4, 4, 5])
    index = torch.arange(5)
    both = torch.stack([visible(index[q], index, end) for q in range(5)])
    assert torch.equal(both, dense_mask(end)[0, 0])


def test_log_probs_follow_temperature_and_kept_set() -> None:
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(4.0)]] * 2, dtype=torch.float64)
    targets, temperature = torch.tensor([1, 2]), torch.tensor([1.0, 0.5], dtype=torch.float64)
    # Row 0 keeps {0, 1}: 2 / (1 + 2). Row 1 keeps all at temperature 0.5, weights 1, 4, 16: 16 / 21.
    support = Support(offsets=torch.tensor([0, 2, 2]), ids=torch.tensor([0, 1]))
    logprobs, entropy = logprobs_of_logits(logits, targets, temperature, support, with_entropy=True)
    assert logprobs.exp().tolist() == pytest.approx([2 / 3, 16 / 21])
    assert float(entropy[0]) == pytest.approx(-(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3))


def test_chunks_change_neither_values_nor_gradients() -> None:
    torch.manual_seed(0)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(7, 4, dtype=torch.float64)
    targets, temperature = torch.randint(0, 11, (7,)), torch.ones(7, dtype=torch.float64)
    found = []
    for chunk in (2, 7, 100):
        weight.grad = None
        logprobs, _ = scored_logprobs(hidden, lambda h: h @ weight.T, targets, temperature, chunk=chunk)
        logprobs.sum().backward()
        found.append((logprobs.detach(), weight.grad.clone()))  # type: ignore[union-attr]
    for logprobs, grad in found[1:]:
        assert torch.allclose(logprobs, found[0][0]) and torch.allclose(grad, found[0][1])
