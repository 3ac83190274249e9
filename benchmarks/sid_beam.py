"""Every user's likeliest items under a trie, best first: the full ranking that recommenders are compared by.

A plain batched beam search on a `transformers` model, written apart from rlkit's own engine, so that the two check each
other. A user's history is computed once; the beams of a level are the queries of one forward, and each sees the history
and its own ancestors through the mask.

    U users of a batch · W beams · P longest history · L levels · C most children of a node
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from rlkit.catalogue.trie import ABSENT, Trie

__all__ = ["rank_leaves"]

Ints = NDArray[np.int64]


@torch.inference_mode()
def rank_leaves(
    model: Any,
    prompts: Sequence[NDArray[np.integer]],
    trie: Trie,
    *,
    width: int = 50,
    batch: int = 32,
    normalise: Literal["trie", "vocabulary"] = "trie",
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Ints, NDArray[np.float32]]:
    """(leaves [N, width], their log-probabilities) of N prompts, likeliest first; `ABSENT` where there are fewer.

    `normalise`: over the valid children, the distribution that is sampled and trained under a trie; or over all tokens
    before the others are masked, as MiniOneRec's evaluation does. A width of at least the number of prefixes of every
    level makes the ranking exact.
    """
    leaves = np.full((len(prompts), width), ABSENT, np.int64)
    scores = np.full((len(prompts), width), -np.inf, np.float32)
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")  # little padding inside a batch
    for start in range(0, len(order), batch):
        users = order[start : start + batch]
        found, likely = _search(model, [prompts[user] for user in users], trie, width, normalise)
        leaves[users, : found.shape[1]], scores[users, : found.shape[1]] = found, likely
        progress(start + len(users))
    return leaves, scores


def _search(
    model: Any, prompts: Sequence[NDArray[np.integer]], trie: Trie, width: int, normalise: str
) -> tuple[Ints, NDArray[np.float32]]:
    device = model.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.from_numpy(np.asarray(prompt, np.int64))
    users, size = padded.shape
    column = torch.arange(size, device=device)
    known = column < lengths[:, None]  # [U, P]
    causal = (column[:, None] >= column) & known[:, None]  # a padded query sees at least the first token
    cache = DynamicCache()
    last = (lengths - 1)[:, None]
    hidden = _forward(model, padded, causal, column.expand(users, -1), cache)
    logits = _head(model, hidden[torch.arange(users, device=device)[:, None], last])  # [U, 1, V]

    nodes: Ints = np.zeros((users, 1), np.int64)
    total = torch.zeros(users, 1, device=device)
    sees = known[:, None]  # [U, beams, columns]: what each beam may attend to, itself excluded
    for level in range(trie.levels):
        present = nodes != ABSENT
        below = trie.children_padded(nodes[present])
        children = np.full((*nodes.shape, below.shape[1]), ABSENT, np.int64)  # [U, beams, C]
        children[present] = below
        valid = torch.from_numpy(children != ABSENT).to(device)
        tokens = torch.from_numpy(trie.token[np.maximum(children, 0)]).clamp(min=0).to(device)
        picked = logits.gather(-1, tokens).masked_fill(~valid, -torch.inf)
        below_zero = picked.logsumexp(-1, keepdim=True) if normalise == "trie" else logits.logsumexp(-1, keepdim=True)
        # A beam that is absent has no valid child, and its sum is -inf: keep it from becoming NaN.
        step = (picked - below_zero).masked_fill(~valid, -torch.inf)
        joint = (total[:, :, None] + step).flatten(1)
        total, chosen = joint.topk(min(width, joint.shape[1]), dim=1)
        index = chosen.cpu().numpy()
        each = np.arange(users)[:, None]
        nodes = np.where(torch.isneginf(total).cpu().numpy(), ABSENT, children.reshape(users, -1)[each, index])
        if level == trie.levels - 1:
            break
        beams = nodes.shape[1]
        parents = (chosen // children.shape[2]).to(device)
        sees = sees.gather(1, parents[:, :, None].expand(-1, -1, sees.shape[2]))
        itself = torch.eye(beams, dtype=torch.bool, device=device).expand(users, -1, -1)
        fed = torch.from_numpy(trie.token[np.maximum(nodes, 0)]).clamp(min=0).to(device)
        sees = torch.cat([sees, itself], dim=2)
        hidden = _forward(model, fed, sees, (lengths + level)[:, None].expand(-1, beams), cache)
        logits = _head(model, hidden)
    return nodes, total.float().cpu().numpy()


def _forward(model: Any, tokens: Tensor, sees: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Last hidden states [U, Q, D] of queries [U, Q] that see columns [U, Q, K] of the cache, themselves included."""
    hidden: Tensor = model.base_model(
        input_ids=tokens,
        attention_mask=sees[:, None],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden


def _head(model: Any, hidden: Tensor) -> Tensor:
    """float32 logits."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits.float()
