"""The records that stages hand to each other: one prefix tree, from sampling to gradient.

    Task -> Node* -> Tree -> ScoredTree -> CreditedTree -> Batch (rlkit/data/packing.py)

All are frozen, slotted, keyword-only and hold numpy arrays, so they travel through Ray's object store without a
copy. A later stage makes a new record; nothing is filled in later.

    N nodes of a tree · L leaves · T tokens of the packed tree (depth-first) · n tokens of one node · G group size

A packed tree of one prompt with two answers, the second after a shared search (`end` is design.md section 2):

    node 0 prompt       tokens 0..3   end 12
    node 1 policy         tokens 4..5   end 9       "<search>x</search>"
    node 2 environment      tokens 6..7   end 9     "<information>y</information>"
    node 3 policy             token 8       end 9   "<answer>z</answer>"       leaf 0
    node 4 policy         tokens 9..11  end 12      "<answer>w</answer>"       leaf 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Author",
    "CreditPath",
    "CreditedTree",
    "Leaf",
    "LeafStatus",
    "Message",
    "Node",
    "NodeSearch",
    "RewardTerm",
    "Sampler",
    "SamplingState",
    "ScoredTree",
    "SearchReport",
    "Task",
    "Trajectory",
    "Tree",
    "Turn",
    "ValueEdges",
]

Author = Literal["prompt", "policy", "environment"]
LeafStatus = Literal["done", "truncated", "failed"]
Sampler = Literal["iid", "without_replacement", "beam", "ved"]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message, before rendering."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One frozen problem: what the policy is asked and what a reward needs to judge the answer."""

    id: str
    """Unique within its source; part of the address of every random draw."""
    question: str
    """The problem in words; the environment builds the prompt from it."""
    answers: tuple[str, ...] = ()
    """All accepted answers; may be empty only where no reward reads it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Anything else of the source: supporting titles, hops, type. Plain JSON values only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingState:
    """How a policy node's tokens were drawn, so that the learner can normalise over the same distribution.

    Worked instance: temperature 0.7, two tokens, the first drawn from {5, 9}, the second from {5, 6, 7}:
    `support_offsets=[0, 2, 5]`, `support_ids=[5, 9, 5, 6, 7]`.
    """

    temperature: float = 1.0
    """Logits were divided by this before the softmax; greedy decoding (0) is recorded as 1 and not trainable."""
    support_offsets: Ints | None = None
    """[n + 1] start of each token's kept set in `support_ids`; None: the whole vocabulary was kept."""
    support_ids: Ints | None = None
    """Kept token ids after top-k, top-p or a trie constraint, ascending within a token."""

    def __post_init__(self) -> None:
        if (self.support_offsets is None) != (self.support_ids is None):
            raise ValueError("SamplingState: support_offsets and support_ids come together")
        if self.temperature <= 0:
            raise ValueError(f"SamplingState.temperature: {self.temperature} is not above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSearch:
    """What a search knew about a node when it chose its candidates; for reports and calibration, not for the loss."""

    value: float
    """V of the prefix that ends here; NaN where no value head judged it."""
    entropy: float
    """H over its valid children, nats; 0 at a leaf, NaN where it was not computed."""
    visits: int
    """N, traversals through it."""
    in_beam: bool
    """Whether likelihood alone (the initial beam) kept it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """How a tree's candidates were chosen, and what that cost. Tokens count once for each node that was evaluated."""

    sampler: Sampler
    """Only `iid` candidates are draws of the policy; an estimator on the others is biased unless corrected."""
    budget: int
    """Tokens that it was allowed, prefill excluded; 0: no limit."""
    num_charged: int
    """Tokens that it counted against the budget."""
    num_evaluated: int
    """Tokens that went through the model, prefill excluded."""
    num_forwards: int
    """Sequential depth: forwards that waited for each other, prefill included."""
    num_leaves: int = 0
    """Whole answers among those evaluated, for their values; a search by likelihood alone needs none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A run of tokens with one author."""

    parent: int
    """Index of the parent node in the tree; -1 for the root."""
    author: Author
    """`prompt` and `environment` tokens are never trained on; `policy` tokens were sampled."""
    token_ids: Ints
    """[n] n >= 1; exactly what the engine read or sampled; never re-tokenised from text."""
    text: str = ""
    """The same tokens decoded, special tokens kept; for people, rewards and reports."""
    behavior_logprobs: NDArray[np.float32] | None = None
    """[n] log-probabilities, in nats, of the distribution that sampled; policy nodes only."""
    policy_version: int = -1
    """Version of the weights that sampled this node; -1 for other authors."""
    sampling: SamplingState | None = None
    """How it was sampled; policy nodes only."""
    turn: int = 0
    """0-based turn of the trajectory that this node belongs to."""
    search: NodeSearch | None = None
    """What the search knew of it, where an engine grew the tree."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if n == 0:
            raise ValueError("Node: token_ids is empty; a node holds at least one token")
        if self.author == "policy":
            if self.behavior_logprobs is None or self.sampling is None:
                raise ValueError("Node: a policy node needs behavior_logprobs and sampling")
            if len(self.behavior_logprobs) != n:
                raise ValueError(f"Node: {n} token_ids but {len(self.behavior_logprobs)} behavior_logprobs")
            offsets = self.sampling.support_offsets
            if offsets is not None and len(offsets) != n + 1:
                raise ValueError(f"Node: {n} token_ids but {len(offsets) - 1} support sets")
        elif self.behavior_logprobs is not None:
            raise ValueError(f"Node: a node by {self.author} has no behavior_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """Where one trajectory of the group ends, and how."""

    node: int
    """Index of its last node; several leaves may end at one node (two rollouts that failed at the prompt)."""
    sample_index: int
    """0..G-1 within the group; part of the address of its random draws."""
    status: LeafStatus
    """`done` ended by itself, `truncated` hit a budget, `failed` hit an error and is not trained on."""
    reason: str = ""
    """Why it was truncated or failed, e.g. `max_turns`, `retriever: deadline of 2 s`."""
    answer: str | None = None
    """Final answer as the environment parsed it from policy tokens; None: none was given."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """Counts by the environment, e.g. `num_searches`, `num_invalid_turns`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One completion and what the environment said back."""

    completion: str
    """Policy text of the turn."""
    observation: str
    """Environment text that followed; empty after the last turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A view of a tree: the path from the prompt to one leaf. This is what a reward function reads."""

    task: Task
    leaf: Leaf
    nodes: tuple[Node, ...]
    """Root first; shared with the tree, not copied."""

    @property
    def answer(self) -> str | None:
        """Final answer as the environment parsed it, or None."""
        return self.leaf.answer

    @property
    def signals(self) -> Mapping[str, float]:
        """Counts by the environment, e.g. `num_searches`."""
        return self.leaf.signals

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Completions with the observation that followed each, in order."""
        completions: dict[int, list[str]] = {}
        observations: dict[int, list[str]] = {}
        for node in self.nodes:
            if node.author == "policy":
                completions.setdefault(node.turn, []).append(node.text)
            elif node.author == "environment":
                observations.setdefault(node.turn, []).append(node.text)
        return tuple(
            Turn(completion="".join(texts), observation="".join(observations.get(turn, [])))
            for turn, texts in completions.items()
        )

    @property
    def response(self) -> str:
        """Everything after the prompt, observations included."""
        return "".join(node.text for node in self.nodes if node.author != "prompt")

    @property
    def completion(self) -> str:
        """Only what the policy wrote; text inside observations can never be rewarded through this."""
        return "".join(node.text for node in self.nodes if node.author == "policy")

    @property
    def num_policy_tokens(self) -> int:
        """Sampled tokens on the path."""
        return sum(len(node.token_ids) for node in self.nodes if node.author == "policy")

    @property
    def num_tokens(self) -> int:
        """All tokens on the path, prompt included."""
        return sum(len(node.token_ids) for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One task's rollouts as a prefix tree, nodes in depth-first order (a parent directly before its subtrees)."""

    task: Task
    nodes: tuple[Node, ...]
    """[N] depth-first; node 0 is the only root and holds the prompt."""
    leaves: tuple[Leaf, ...]
    """[L] one per trajectory of the group, in order of `sample_index`."""
    search: SearchReport | None = None
    """How its candidates were chosen; None: every leaf is an i.i.d. sample of the policy."""

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes[0].parent != -1:
            raise ValueError(f"Tree {self.task.id}: node 0 must be the root")
        path = [0]
        for index, node in enumerate(self.nodes[1:], start=1):
            while path and path[-1] != node.parent:
                path.pop()
            if not path:
                raise ValueError(
                    f"Tree {self.task.id}: node {index} with parent {node.parent} breaks depth-first order"
                )
            path.append(index)
        for leaf in self.leaves:
            if not 0 <= leaf.node < len(self.nodes):
                raise ValueError(f"Tree {self.task.id}: leaf {leaf.sample_index} ends at node {leaf.node}")

    @cached_property
    def offsets(self) -> Ints:
        """[N + 1] start of each node in the packed tree; the last entry is T."""
        lengths = [len(node.token_ids) for node in self.nodes]
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

    @cached_property
    def parents(self) -> Ints:
        """[N] index of each node's parent, -1 for the root."""
        return np.array([node.parent for node in self.nodes], dtype=np.int32)

    @cached_property
    def token_ids(self) -> Ints:
        """[T] what the nodes hold."""
        return np.concatenate([node.token_ids for node in self.nodes])

    @cached_property
    def positions(self) -> Ints:
        """[T] position along the path from the root, 0-based."""
        depths, lengths = np.zeros(len(self.nodes), np.int32), np.diff(self.offsets)
        for index, parent in enumerate(self.parents[1:], start=1):
            depths[index] = depths[parent] + lengths[parent]
        return np.arange(self.num_tokens, dtype=np.int32) + np.repeat(depths - self.offsets[:-1], lengths)

    @cached_property
    def node_ends(self) -> Ints:
        """[N] index of the first node after each node's subtree."""
        ends = np.arange(1, len(self.nodes) + 1, dtype=np.int32)
        for index in range(len(self.nodes) - 1, 0, -1):
            parent = self.nodes[index].parent
            ends[parent] = max(ends[parent], ends[index])
        return ends

    @property
    def num_tokens(self) -> int:
        """T, the unique tokens: what the tree costs."""
        return int(self.offsets[-1])

    @property
    def num_flat_tokens(self) -> int:
        """Sum over leaves of the path length: what the flattened rows would cost."""
        return sum(self.trajectory(index).num_tokens for index in range(len(self.leaves)))

    def path(self, node: int) -> tuple[int, ...]:
        """Indices of the nodes from the root to `node`, both included."""
        found = []
        while node != -1:
            found.append(node)
            node = self.nodes[node].parent
        return tuple(reversed(found))

    def policy_tokens(self, leaf: int) -> Ints:
        """[R] packed indices of the policy tokens on the path to leaf `leaf`, in order."""
        spans = [
            np.arange(self.offsets[index], self.offsets[index + 1], dtype=np.int32)
            for index in self.path(self.leaves[leaf].node)
            if self.nodes[index].author == "policy"
        ]
        return np.concatenate(spans) if spans else np.zeros(0, np.int32)

    def trajectory(self, leaf: int) -> Trajectory:
        """The path to leaf `leaf` (index into `leaves`) as a view."""
        nodes = tuple(self.nodes[index] for index in self.path(self.leaves[leaf].node))
        return Trajectory(task=self.task, leaf=self.leaves[leaf], nodes=nodes)

    def trajectories(self) -> Iterator[Trajectory]:
        """One view per leaf, in order."""
        return (self.trajectory(index) for index in range(len(self.leaves)))

    def token_values(self, values: Mapping[int, NDArray[Any]], fill: float = 0.0) -> Floats:
        """Per-node arrays laid out over the packed tree: [T], `fill` where a node has none."""
        out = np.full(self.num_tokens, fill, dtype=np.float64)
        for index, value in values.items():
            out[self.offsets[index] : self.offsets[index + 1]] = value
        return out

    @cached_property
    def behavior_logprobs(self) -> Floats:
        """[T] log-probabilities, in nats, at sampling; 0 on tokens that were not sampled."""
        return self.token_values(
            {i: n.behavior_logprobs for i, n in enumerate(self.nodes) if n.behavior_logprobs is not None}
        )

    @cached_property
    def policy_mask(self) -> NDArray[np.bool_]:
        """[T] True on sampled tokens."""
        return self.token_values({i: np.ones(1) for i, n in enumerate(self.nodes) if n.author == "policy"}) > 0


@dataclass(frozen=True, kw_only=True)
class RewardTerm:
    """One named reward over the leaves of one tree. A failure is a status, never a 0."""

    name: str
    """Name in metrics and reports."""
    weight: float
    """Factor in the total; 0 logs without training."""
    values: Floats
    """[L] unweighted; NaN exactly where `status` is not `ok`."""
    status: tuple[str, ...]
    """[L] `ok`, `skipped: why` (the rollout failed) or `failed: why`."""
    node_values: Floats | None = None
    """[N] reward spoken about single nodes, NaN where the reward is silent; None: it speaks of leaves only."""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.status):
            raise ValueError(f"RewardTerm {self.name}: {len(self.values)} values, {len(self.status)} statuses")
        if [status == "ok" for status in self.status] != np.isfinite(self.values).tolist():
            raise ValueError(f"RewardTerm {self.name}: a value is finite exactly where its status is ok")


@dataclass(frozen=True, kw_only=True)
class ScoredTree:
    """A tree with the named reward terms of its leaves."""

    tree: Tree
    terms: tuple[RewardTerm, ...]

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """[L] True where the rollout did not fail and every weighted term is `ok`; only these make statistics."""
        ok = np.array([leaf.status != "failed" for leaf in self.tree.leaves], dtype=bool)
        for term in self.terms:
            if term.weight != 0:
                ok &= np.isfinite(term.values)
        return ok

    @cached_property
    def rewards(self) -> Floats:
        """[L] weighted sum of the terms; NaN where not `valid`."""
        total = np.zeros(len(self.tree.leaves))
        for term in self.terms:
            if term.weight != 0:
                total = total + term.weight * term.values
        return np.where(self.valid, total, np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditPath:
    """Policy tokens that share one decision of credit: a whole trajectory, or one node for sibling credit.

    The flat objective is the sum over paths p and their tokens t of w(p,t) · f(ratio, A(p,t)).
    """

    leaf: int
    """Index of the leaf that it belongs to, or -1 where it speaks for a node."""
    tokens: Ints
    """[R] packed indices of its policy tokens, in order."""
    advantages: Floats
    """[R] A(p,t); constant along a path but for token-level rewards."""
    weights: Floats
    """[R] w(p,t), global denominators included: summing over paths, trees, rows and ranks gives the loss."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.advantages) == len(self.weights):
            lengths = (len(self.tokens), len(self.advantages), len(self.weights))
            raise ValueError(f"CreditPath: tokens, advantages, weights have lengths {lengths}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueEdges:
    """What a value head is to predict: one edge per policy node and successor, of E.

    The state of a node is the path up to its last token. Loss: Σ_e weight·(V(node) - target)², where the target is
    reward + discount·V(next), or the reward alone where `next` is -1; V(next) carries no gradient.
    """

    node: Ints
    """[E] index of the node."""
    next: Ints
    """[E] index of the node that follows on the path, or -1."""
    reward: Floats
    """[E] of the node; with Monte-Carlo targets the discounted sum from it on, and `next` is -1."""
    weight: Floats
    """[E] global denominators included."""
    discount: float
    """Factor of V(next)."""


@dataclass(frozen=True, kw_only=True)
class CreditedTree:
    """A scored tree with exact credit on its (shared) tokens. Made by an algorithm, read by the packer."""

    scored: ScoredTree
    paths: tuple[CreditPath, ...]
    values: ValueEdges | None = None
    """What the value head learns from this tree; None: nothing."""

    @property
    def tree(self) -> Tree:
        """The tree that was credited."""
        return self.scored.tree

    @property
    def is_silent(self) -> bool:
        """True where no path has an advantage: nothing to learn but what a KL or an entropy term in the loss says."""
        return self.values is None and not any(path.advantages.any() for path in self.paths)

    def _sum(self, kind: Literal["positive", "negative", "weight"]) -> Floats:
        tokens, advantages, values = (
            np.concatenate([np.zeros(0), *(getattr(path, name) for path in self.paths)])
            for name in ("tokens", "advantages", "weights")
        )
        if kind != "weight":
            values = np.where((advantages >= 0) == (kind == "positive"), values * advantages, 0.0)
        return np.asarray(np.bincount(tokens.astype(np.int64), values, minlength=self.tree.num_tokens), np.float64)

    @cached_property
    def c_pos(self) -> Floats:
        """[T] C⁺, the sum of w·A over paths with A >= 0 (design.md section 3)."""
        return self._sum("positive")

    @cached_property
    def c_neg(self) -> Floats:
        """[T] C⁻, the sum of w·A over paths with A < 0."""
        return self._sum("negative")

    @cached_property
    def weight(self) -> Floats:
        """[T] the sum of w: what KL and entropy terms are multiplied with."""
        return self._sum("weight")
