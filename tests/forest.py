"""Random trees and a tiny float64 model for tests of credit, packing and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree

VOCAB = 23


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Starcoder2ForCausalLM:
    """Two layers, rotary positions, grouped-query attention, a few thousand parameters.

    Starcoder 2 because its LayerNorm computes in the model's dtype; Llama's RMSNorm rounds to float32 inside, which
    alone costs 1e-7 and would hide errors.
    """
    torch.manual_seed(seed)
    config = Starcoder2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        sliding_window=None,
        attn_implementation="sdpa",
        initializer_range=0.4,
        residual_dropout=0.0,
        embedding_dropout=0.0,
        attention_dropout=0.0,
    )
    return Starcoder2ForCausalLM(config).to(dtype).eval()


def policy_node(
    rng: np.random.Generator, parent: int, size: int, turn: int = 0, truncated: bool = False, temperature: float = 1.0
) -> Node:
    """A sampled node with random tokens; behaviour log-probs stay near uniform so that some ratios clip."""
    ids = rng.integers(0, VOCAB, size).astype(np.int32)
    offsets = support = None
    if truncated:
        sets = [np.union1d(rng.choice(VOCAB, 5, replace=False), [token]).astype(np.int32) for token in ids]
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int32)
        support = np.concatenate(sets)
    return Node(
        parent=parent,
        author="policy",
        token_ids=ids,
        behavior_logprobs=(-np.log(5 if truncated else VOCAB) + rng.normal(0, 0.3, size)).astype(np.float32),
        policy_version=0,
        sampling=SamplingState(temperature=temperature, support_offsets=offsets, support_ids=support),
        turn=turn,
    )


def text_node(rng: np.random.Generator, parent: int, size: int, author: str = "environment", turn: int = 0) -> Node:
    """A prompt or environment node."""
    ids = rng.integers(0, VOCAB, size).astype(np.int32)
    return Node(parent=parent, author=author, token_ids=ids, turn=turn)  # type: ignore[arg-type]


def random_tree(
    seed: int, depth: int = 3, truncated: bool = False, temperature: float = 1.0, name: str = "tree"
) -> Tree:
    """Depth 1 to 5, single and several children, environment tokens inside, leaves at every depth."""
    rng = np.random.default_rng(seed)
    nodes = [text_node(rng, -1, int(rng.integers(2, 6)), "prompt")]
    leaves: list[Leaf] = []

    def grow(parent: int, level: int) -> None:
        for _ in range(int(rng.integers(2, 4)) if level == 0 else int(rng.integers(1, 3))):
            node = len(nodes)
            nodes.append(policy_node(rng, parent, int(rng.integers(1, 5)), level, truncated, temperature))
            if level + 1 < depth and (level == 0 or rng.random() < 0.7):
                if rng.random() < 0.6:
                    nodes.append(text_node(rng, node, int(rng.integers(1, 4)), turn=level))
                    node += 1
                grow(node, level + 1)
            else:
                leaves.append(Leaf(node=node, sample_index=len(leaves), status="done"))

    grow(0, 0)
    task = Task(id=f"{name}{seed}", question="?", answers=("!",))
    return Tree(task=task, nodes=tuple(nodes), leaves=tuple(leaves))


def scored(tree: Tree, *terms: tuple[str, float, Sequence[float]]) -> ScoredTree:
    """Attach terms (name, weight, values); NaN values count as failed."""
    return ScoredTree(
        tree=tree,
        terms=tuple(
            RewardTerm(
                name=name,
                weight=weight,
                values=np.asarray(values, dtype=float),
                status=tuple("ok" if np.isfinite(v) else "failed: planted" for v in values),
            )
            for name, weight, values in terms
        ),
    )


def random_forest(seed: int = 0, truncated: bool = False, temperature: float = 1.0) -> list[ScoredTree]:
    """Five trees of depth 1 to 5 with two reward terms; in the third tree one reward failed."""
    rng = np.random.default_rng(seed + 1000)
    out = []
    for depth in range(1, 6):
        tree = random_tree(seed * 10 + depth, depth, truncated, temperature)
        hit = rng.integers(0, 2, len(tree.leaves)).astype(float)
        style = rng.normal(0, 1, len(tree.leaves))
        if depth == 3:
            hit[0] = np.nan
        out.append(scored(tree, ("hit", 1.0, hit), ("style", 0.5, style)))
    return out
