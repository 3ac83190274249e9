"""Credited trees -> packed rows: what one forward pass of the learner reads.

Rows are filled up to a budget of unique tokens. A tree that does not fit is split by leaves; its credit paths are
split with it, so every (path, token) pair is in exactly one row and the sum of the rows' losses is the loss.

    T input tokens of a row · S scored tokens · K (path, token) pairs · P paths · M states · E value edges

A scored token's logits come from its parent token, so a shared parent scores several children: `score_positions` may
repeat. The last token of a leaf is only ever a target and takes no place in the row, unless a value head reads its
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import LearnerError
from rlkit.records import CreditedTree, CreditPath, ScoredTree, Tree, ValueEdges

__all__ = ["Batch", "Row", "empty_row", "pack", "scatter", "uncredited", "with_logprobs"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One packed row; arrays of numpy, float64 until the learner casts them."""

    token_ids: Ints
    """[T] inputs, trees depth-first one after the other."""
    positions: Ints
    """[T] position along the path from the root, 0-based."""
    end: Ints
    """[T] packed index just past the subtree of the token's node; see rlkit.ops.masks."""
    score_positions: Ints
    """[S] packed index whose hidden state scores the target."""
    targets: Ints
    """[S] token ids that were sampled."""
    temperature: Floats
    """[S] sampling temperature."""
    support_offsets: Ints
    """[S + 1] kept-token sets as in `SamplingState`; an empty set is the whole vocabulary."""
    support_ids: Ints
    behavior_logprobs: Floats
    """[S] nats, from the engine."""
    reference_logprobs: Floats
    """[S] nats, from the frozen reference; NaN where it did not score."""
    proximal_logprobs: Floats
    """[S] nats, from the learner before its first update on the batch; NaN where it did not score."""
    c_pos: Floats
    """[S] C⁺."""
    c_neg: Floats
    """[S] C⁻."""
    weight: Floats
    """[S] the sum of w."""
    path_index: Ints
    """[K] which path (0..P-1) the pair belongs to, ascending."""
    path_token: Ints
    """[K] index into the scored tokens."""
    path_advantage: Floats
    """[K] A(p, t)."""
    path_weight: Floats
    """[K] w(p, t)."""
    origin_tree: Ints
    """[S] index of the tree in the batch."""
    origin_token: Ints
    """[S] packed index of the token in that tree."""
    state_position: Ints
    """[M] packed index whose hidden state a value head reads: the end of a prompt, then the last tokens of its policy
    nodes. Empty where nothing is to be valued."""
    state_parent: Ints
    """[M] the state before it on its path; -1 for a prompt."""
    edge_state: Ints
    """[E] what is to be predicted, see `rlkit.records.ValueEdges`: index of the state."""
    edge_next: Ints
    """[E] the state that follows, or -1."""
    edge_reward: Floats
    """[E]"""
    edge_discount: Floats
    """[E]"""
    edge_weight: Floats
    """[E]"""

    @property
    def num_paths(self) -> int:
        """P."""
        return int(self.path_index[-1]) + 1 if len(self.path_index) else 0


_FLOATS = {name for name, annotation in Row.__annotations__.items() if annotation == "Floats"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one optimizer step sees. Denominators are already inside the weights: losses of rows and ranks add up."""

    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        """Input tokens over all rows, in unique tokens (plus prefixes repeated by splits)."""
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def num_scored(self) -> int:
        """Scored tokens over all rows."""
        return sum(len(row.targets) for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some credit paths of one tree and the nodes that they need."""

    tree_index: int
    tree: Tree
    paths: tuple[CreditPath, ...]
    nodes: tuple[int, ...]
    """Ancestor-closed, ascending, hence depth-first."""
    cost: int
    """Upper bound of its input tokens."""
    values: ValueEdges | None = None
    """Those of the tree whose nodes are here and in no part before."""


def _nodes_of(tree: Tree, path: CreditPath) -> set[int]:
    """Nodes on the way from the root to the last token of a credit path."""
    if not len(path.tokens):
        return set()
    last = int(np.searchsorted(tree.offsets, path.tokens[-1], side="right")) - 1
    return set(tree.path(last))


def _parts(tree_index: int, credited: CreditedTree, row_tokens: int) -> list[_Part]:
    """The tree whole if it fits the row, else cut by leaves into parts that do."""
    tree = credited.tree
    lengths: list[int] = np.diff(tree.offsets).tolist()
    parts: list[_Part] = []
    paths: list[CreditPath] = []
    nodes: set[int] = set()
    cost = 0

    def flush() -> None:
        if paths:
            parts.append(
                _Part(tree_index=tree_index, tree=tree, paths=tuple(paths), nodes=tuple(sorted(nodes)), cost=cost)
            )

    # Depth-first order of the last token keeps paths that share a prefix in the same part.
    for path in sorted((p for p in credited.paths if len(p.tokens)), key=lambda p: int(p.tokens[-1])):
        needed = _nodes_of(tree, path)
        alone = sum(lengths[node] for node in needed)
        if alone > row_tokens:
            raise LearnerError(
                f"learner.row_tokens: {row_tokens} is less than one path of task {tree.task.id} ({alone} tokens); "
                f"raise it to at least {alone} or lower model.max_context"
            )
        more = sum(lengths[node] for node in needed - nodes)
        if nodes and cost + more > row_tokens:
            flush()
            paths, nodes, cost, more = [], set(), 0, alone
        paths.append(path)
        nodes |= needed
        cost += more
    flush()
    return parts if credited.values is None else _share_out(parts, credited.values)


def _share_out(parts: Sequence[_Part], values: ValueEdges) -> list[_Part]:
    """Every edge to the first part that has both of its nodes."""
    left, out = np.ones(len(values.node), bool), []
    for part in parts:
        here = left & np.isin(values.node, part.nodes) & ((values.next < 0) | np.isin(values.next, part.nodes))
        left &= ~here
        arrays = {name: getattr(values, name)[here] for name in ("node", "next", "reward", "weight")}
        out.append(replace(part, values=ValueEdges(discount=values.discount, **arrays)))
    if left.any():
        raise LearnerError(f"{int(left.sum())} value edges have nodes that no credit path leads to")
    return out


def _row(parts: Sequence[_Part]) -> Row:
    """Lay parts out depth-first in one row."""
    out: dict[str, list[np.ndarray]] = {name: [] for name in Row.__dataclass_fields__}
    base = scored = num_paths = num_states = 0
    support_sizes: list[np.ndarray] = []
    for part in parts:
        tree, nodes = part.tree, np.array(part.nodes)
        offsets, parents = tree.offsets[nodes], tree.parents[nodes]
        kept = np.diff(tree.offsets)[nodes]
        if part.values is None:  # the last token of a node without children here is a target only
            childless = np.ones(len(tree.nodes), bool)
            childless[parents[1:]] = False
            kept = kept - childless[nodes]
        start = base + np.concatenate([[0], np.cumsum(kept)])  # and where the last node ends
        taken = np.arange(base, start[-1]) + np.repeat(offsets - start[:-1], kept)
        out["token_ids"].append(tree.token_ids[taken])
        out["positions"].append(tree.positions[taken])
        out["end"].append(np.repeat(start[np.searchsorted(nodes, tree.node_ends[nodes])], kept))

        tokens = np.concatenate([path.tokens for path in part.paths])
        place = np.full(tree.num_tokens, -1)  # of a token among those of the row that are scored
        place[tokens] = 0
        targets = np.flatnonzero(place == 0)
        place[targets] = np.arange(scored, scored + len(targets))
        owner = np.searchsorted(offsets, targets, side="right") - 1
        if (parents[owner] < 0).any():
            raise LearnerError(f"task {tree.task.id}: a policy node has no prompt before it")
        # Inside the node the token before scores; the first token is scored by the parent's last.
        last, inside = start[1:] - 1, targets - offsets[owner]
        before = last[np.searchsorted(nodes, parents)][owner]
        out["score_positions"].append(np.where(inside == 0, before, start[owner] + inside - 1))
        out["targets"].append(tree.token_ids[targets])
        out["behavior_logprobs"].append(tree.behavior_logprobs[targets])
        out["origin_tree"].append(np.full(len(targets), part.tree_index))
        out["origin_token"].append(targets)
        support_sizes.append(_add_sampling(out, part, owner, inside))

        lengths = [len(path.tokens) for path in part.paths]
        out["path_index"].append(np.repeat(np.arange(num_paths, num_paths + len(lengths)), lengths))
        out["path_token"].append(place[tokens])
        out["path_advantage"].extend(path.advantages for path in part.paths)
        out["path_weight"].extend(path.weights for path in part.paths)
        if part.values is not None:
            num_states += _add_states(out, part, part.values, dict(zip(part.nodes, last, strict=True)), num_states)
        base, scored, num_paths = int(start[-1]), scored + len(targets), num_paths + len(lengths)
    sizes = np.concatenate(support_sizes) if support_sizes else np.zeros(0, np.int64)
    out["support_offsets"] = [np.concatenate([[0], np.cumsum(sizes)])]
    out["reference_logprobs"] = out["proximal_logprobs"] = [np.full(scored, np.nan)]
    arrays: dict[str, Any] = {
        name: np.concatenate(
            pieces or [np.zeros(0)], dtype=np.float64 if name in _FLOATS else np.int64, casting="unsafe"
        )
        for name, pieces in out.items()
    }
    gain, praised = arrays["path_weight"] * arrays["path_advantage"], arrays["path_advantage"] >= 0
    sums = {
        "c_pos": np.where(praised, gain, 0.0),
        "c_neg": np.where(praised, 0.0, gain),
        "weight": arrays["path_weight"],
    }
    for name, values in sums.items():
        arrays[name] = np.bincount(arrays["path_token"], values, minlength=scored)
    return Row(**arrays)


def _add_sampling(out: dict[str, list[np.ndarray]], part: _Part, owner: Ints, inside: Ints) -> Ints:
    """Append how each scored token was drawn, of nodes `owner` of the part; returns the sizes of their kept sets."""
    records = [part.tree.nodes[node].sampling for node in part.nodes]
    temperatures = np.array([np.nan if one is None else one.temperature for one in records])
    out["temperature"].append(temperatures[owner])
    sizes = np.zeros(len(owner), np.int64)
    for index, one in enumerate(records):
        if one is not None and one.support_offsets is not None and one.support_ids is not None:
            offsets, wanted = one.support_offsets, inside[owner == index]
            sizes[owner == index] = np.diff(offsets)[wanted]
            out["support_ids"].extend(one.support_ids[offsets[i] : offsets[i + 1]] for i in wanted)
    return sizes


def _add_states(
    out: dict[str, list[np.ndarray]], part: _Part, values: ValueEdges, last: dict[int, int], base: int
) -> int:
    """Append a part's states and edges; `last` is the packed index of each node's last token. Returns their number."""
    nodes = [node for node in part.nodes if part.tree.nodes[node].author == "policy"]
    state = {node: base + 1 + index for index, node in enumerate(nodes)}

    def before(node: int) -> int:
        parent = part.tree.nodes[node].parent
        while parent != -1 and parent not in state:
            parent = part.tree.nodes[parent].parent
        return base if parent == -1 else state[parent]

    # A prompt may be followed by what an environment prefilled; the state before the first choice is after that.
    first = part.tree.nodes[nodes[0]].parent if nodes else part.nodes[0]
    out["state_position"].append(np.array([last[first], *(last[node] for node in nodes)]))
    out["state_parent"].append(np.array([-1, *(before(node) for node in nodes)]))
    out["edge_state"].append(np.array([state[int(node)] for node in values.node]))
    out["edge_next"].append(np.array([-1 if node < 0 else state[int(node)] for node in values.next]))
    out["edge_reward"].append(values.reward)
    out["edge_discount"].append(np.full(len(values.node), values.discount))
    out["edge_weight"].append(values.weight)
    return 1 + len(nodes)


def pack(trees: Sequence[CreditedTree], row_tokens: int) -> Batch:
    """Trees -> rows of at most `row_tokens` input tokens, in order, next-fit. Trees without paths take no row.

    Raises `LearnerError` where a single path is longer than a row.
    """
    rows: list[Row] = []
    waiting: list[_Part] = []
    for index, credited in enumerate(trees):
        for part in _parts(index, credited, row_tokens):
            if waiting and sum(p.cost for p in waiting) + part.cost > row_tokens:
                rows.append(_row(waiting))
                waiting = []
            waiting.append(part)
    if waiting:
        rows.append(_row(waiting))
    return Batch(rows=tuple(rows))


def with_logprobs(
    batch: Batch, *, reference: Sequence[Floats] | None = None, proximal: Sequence[Floats] | None = None
) -> Batch:
    """The same batch with reference or proximal log-probs filled in from per-tree arrays [T] (see `scatter`)."""

    def gathered(row: Row, trees: Sequence[Floats]) -> Floats:
        pairs = zip(row.origin_tree, row.origin_token, strict=True)
        return np.array([trees[tree][token] for tree, token in pairs], dtype=np.float64)

    rows = batch.rows
    if reference is not None:
        rows = tuple(replace(row, reference_logprobs=gathered(row, reference)) for row in rows)
    if proximal is not None:
        rows = tuple(replace(row, proximal_logprobs=gathered(row, proximal)) for row in rows)
    return Batch(rows=rows)


def uncredited(scored: ScoredTree) -> CreditedTree:
    """Every leaf's path with weight 0: packs the tokens of all trajectories so that a model can score them."""
    paths = []
    for leaf in range(len(scored.tree.leaves)):
        tokens = scored.tree.policy_tokens(leaf)
        zeros = np.zeros(len(tokens))
        paths.append(CreditPath(leaf=leaf, tokens=tokens, advantages=zeros, weights=zeros))
    return CreditedTree(scored=scored, paths=tuple(paths))


def empty_row(like: Row) -> Row:
    """The same inputs with no credit: keeps ranks in step when rows do not divide evenly."""
    zero = np.zeros_like(like.weight)
    silent = {name: np.zeros_like(getattr(like, name)) for name in ("path_weight", "edge_weight")}
    return replace(like, c_pos=zero, c_neg=zero, weight=zero, **silent)


def scatter(batch: Batch, values: Sequence[NDArray[Any]], sizes: Sequence[int]) -> list[Floats]:
    """Per-row values [S] -> one array [T] per tree (`sizes` are the T), NaN where a token was not scored.

    A shared token that splits put into several rows has the same value in each.
    """
    out = [np.full(size, np.nan) for size in sizes]
    for row, value in zip(batch.rows, values, strict=True):
        for index in np.unique(row.origin_tree):
            where = row.origin_tree == index
            out[index][row.origin_token[where]] = np.asarray(value)[where]
    return out
