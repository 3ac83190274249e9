"""The loss scores the distribution that was sampled: its expectation is the exact policy gradient.

A vocabulary of five and completions of two tokens can be enumerated. The exact gradient of E[R] is computed from the
25 probabilities; the estimator's expectation from all pairs of completions, each pair a tree with its probability.
RLOO's advantages are unbiased, so the two must agree to rounding, not to a confidence interval.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from rlkit.algorithms.rloo import ALGORITHM, RlooConfig
from rlkit.data.packing import pack
from rlkit.learner.gradient import add_gradients
from rlkit.learner.tree_policy import TreePolicy
from rlkit.records import CreditedTree, Leaf, Node, SamplingState, Task, Tree
from tests.forest import scored, tiny_model
from tests.learner.test_tree_gradient import gradients, relative_difference

WORDS = range(5)
PROMPT = np.array([7, 3, 9], np.int32)
TRIE = {(): [0, 2, 3], (0,): [1, 4], (2,): [2], (3,): [0, 1, 2]}


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn after a prefix: temperature, and which of the words are kept."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    trie: bool = False

    def kept(self, prefix: tuple[int, ...], logits: torch.Tensor) -> list[int]:
        words = TRIE[prefix] if self.trie else list(WORDS)
        likeliest = sorted(words, key=lambda w: -float(logits[w]))
        if self.top_k:
            likeliest = likeliest[: self.top_k]
        if self.top_p < 1:
            mass = torch.softmax(logits[likeliest] / self.temperature, -1).cumsum(-1)
            likeliest = likeliest[: int((mass < self.top_p).sum()) + 1]
        return sorted(likeliest)


def reward(words: tuple[int, ...]) -> float:
    return float(np.sin(3 * words[0] + 1) + 0.5 * words[1])


def next_logits(model: torch.nn.Module, prefix: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*PROMPT, *prefix]], dtype=torch.long)
    return model(input_ids=ids).logits[0, -1]


def completions(
    model: torch.nn.Module, sampler: Sampler
) -> dict[tuple[int, ...], tuple[torch.Tensor, list[list[int]]]]:
    """Every completion with its log-probability (differentiable) and its kept sets (fixed by the sampling policy)."""
    out = {}
    first = next_logits(model, ())
    kept = sampler.kept((), first.detach())
    for a in kept:
        step = torch.log_softmax(first[kept] / sampler.temperature, -1)[kept.index(a)]
        second = next_logits(model, (a,))
        inner = sampler.kept((a,), second.detach())
        for b in inner:
            last = torch.log_softmax(second[inner] / sampler.temperature, -1)[inner.index(b)]
            out[a, b] = (step + last, [kept, inner])
    return out


def pair_tree(pair: tuple, table: dict, sampler: Sampler, with_support: bool) -> Tree:
    nodes, leaves = [Node(parent=-1, author="prompt", token_ids=PROMPT)], []
    for index, words in enumerate(pair):
        _, kept = table[words]
        support = {}
        if with_support:
            support = {
                "support_offsets": np.cumsum([0, *map(len, kept)]).astype(np.int32),
                "support_ids": np.concatenate(kept).astype(np.int32),
            }
        nodes.append(
            Node(
                parent=0,
                author="policy",
                token_ids=np.array(words, np.int32),
                behavior_logprobs=np.zeros(2, np.float32),
                sampling=SamplingState(temperature=sampler.temperature, **support),
            )
        )
        leaves.append(Leaf(node=index + 1, sample_index=index, status="done"))
    return Tree(task=Task(id=str(pair), question="?"), nodes=tuple(nodes), leaves=tuple(leaves))


def expected_estimate(sampler: Sampler, with_support: bool = True) -> dict[str, torch.Tensor]:
    """Gradient of the estimator, averaged over all pairs of completions with their exact probabilities."""
    model = tiny_model(0)
    with torch.no_grad():
        table = completions(model, sampler)
    pairs = list(itertools.product(table, repeat=2))
    forest = [scored(pair_tree(p, table, sampler, with_support), ("r", 1.0, [reward(w) for w in p])) for p in pairs]
    credited = ALGORITHM.credit(forest, RlooConfig(), None)
    weighted = []
    for pair, tree in zip(pairs, credited, strict=True):
        probability = float(sum(table[w][0] for w in pair).exp()) * len(pairs)
        paths = tuple(replace(p, weights=p.weights * probability) for p in tree.paths)
        weighted.append(CreditedTree(scored=tree.scored, paths=paths))
    policy = TreePolicy(model)
    # The behaviour log-probs are placed on the policy itself: on-policy, every ratio is 1.
    for row in pack(weighted, 512).rows:
        from rlkit.learner.tree_policy import RowInputs

        with torch.no_grad():
            now = policy(RowInputs.of(row, torch.device("cpu"), torch.float64))[0].numpy()
        add_gradients(policy, [replace(row, behavior_logprobs=now)], ALGORITHM, RlooConfig())
    return gradients(model)


def exact_gradient(sampler: Sampler) -> dict[str, torch.Tensor]:
    model = tiny_model(0)
    (-sum(logp.exp() * reward(words) for words, (logp, _) in completions(model, sampler).items())).backward()
    return gradients(model)


SAMPLERS = {
    "temperature": Sampler(temperature=0.6),
    "top-k": Sampler(top_k=2),
    "top-p": Sampler(top_p=0.7, temperature=1.3),
    "trie": Sampler(trie=True),
    "trie with top-k and temperature": Sampler(trie=True, top_k=2, temperature=0.8),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_expected_estimate_is_the_exact_gradient_of_the_sampled_distribution(name: str) -> None:
    # Plain temperature draws from the whole vocabulary of the model (23), which the five words would not cover:
    # there the five words are a constraint too, so every sampler here carries its kept sets.
    sampler = SAMPLERS[name]
    assert relative_difference(expected_estimate(sampler), exact_gradient(sampler)) <= 1e-10


@pytest.mark.parametrize("name", ["top-k", "top-p", "trie"])
def test_scoring_the_full_softmax_instead_is_biased(name: str) -> None:
    sampler = SAMPLERS[name]
    # Measured 0.3 to 2: another policy is optimised, not a noisier one.
    assert relative_difference(expected_estimate(sampler, with_support=False), exact_gradient(sampler)) > 0.1
