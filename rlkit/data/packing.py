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
    lengths = np.diff(tree.offsets)
    parts: list[_Part] = []
    paths: list[CreditPath] = []
    nodes: set[int] = set()

    def flush() -> None:
        if paths:
            cost = int(lengths[list(nodes)].sum())
            parts.append(
                _Part(tree_index=tree_index, tree=tree, paths=tuple(paths), nodes=tuple(sorted(nodes)), cost=cost)
            )

    # Depth-first order of the last token keeps paths that share a prefix in the same part.
    for path in sorted((p for p in credited.paths if len(p.tokens)), key=lambda p: int(p.tokens[-1])):
        needed = _nodes_of(tree, path)
        alone = int(lengths[list(needed)].sum())
        if alone > row_tokens:
            raise LearnerError(
                f"learner.row_tokens: {row_tokens} is less than one path of task {tree.task.id} ({alone} tokens); "
                f"raise it to at least {alone} or lower model.max_context"
            )
        if nodes and int(lengths[list(nodes | needed)].sum()) > row_tokens:
            flush()
            paths, nodes = [], set()
        paths.append(path)
        nodes |= needed
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
        tree = part.tree
        inner = {tree.nodes[node].parent for node in part.nodes}
        # The last token of a node without children here is a target only.
        valued = part.values is not None
        kept = {node: len(tree.nodes[node].token_ids) - (node not in inner and not valued) for node in part.nodes}
        start: dict[int, int] = {}
        end: dict[int, int] = {}
        depth = {-1: 0}
        cursor = base
        for node in part.nodes:
            start[node] = cursor
            cursor += kept[node]
            depth[node] = depth[tree.nodes[node].parent] + len(tree.nodes[node].token_ids)
        for node in reversed(part.nodes):
            end.setdefault(node, start[node] + kept[node])
            parent = tree.nodes[node].parent
            end[parent] = max(end.get(parent, 0), end[node])
        score_of = np.full(tree.num_tokens, -1, dtype=np.int64)
        credited = np.zeros(tree.num_tokens, dtype=bool)
        for path in part.paths:
            credited[path.tokens] = True
        first = scored
        for node in part.nodes:
            record, size, offset = tree.nodes[node], kept[node], int(tree.offsets[node])
            begin = depth[record.parent]
            out["token_ids"].append(record.token_ids[:size])
            out["positions"].append(np.arange(begin, begin + size))
            out["end"].append(np.full(size, end[node]))
            wanted = np.flatnonzero(credited[offset : offset + len(record.token_ids)])
            if not len(wanted):
                continue
            if record.parent == -1:
                raise LearnerError(f"task {tree.task.id}: a policy node has no prompt before it")
            assert record.sampling is not None and record.behavior_logprobs is not None
            # Inside the node the token before scores; the first token is scored by the parent's last.
            before = start[record.parent] + kept[record.parent] - 1
            out["score_positions"].append(np.where(wanted == 0, before, start[node] + wanted - 1))
            out["targets"].append(record.token_ids[wanted])
            out["temperature"].append(np.full(len(wanted), record.sampling.temperature))
            out["behavior_logprobs"].append(record.behavior_logprobs[wanted])
            offsets, ids = record.sampling.support_offsets, record.sampling.support_ids
            if offsets is None or ids is None:
                support_sizes.append(np.zeros(len(wanted), np.int64))
            else:
                support_sizes.append(np.diff(offsets)[wanted].astype(np.int64))
                out["support_ids"].extend(ids[offsets[i] : offsets[i + 1]] for i in wanted)
            out["origin_tree"].append(np.full(len(wanted), part.tree_index))
            out["origin_token"].append(offset + wanted)
            score_of[offset + wanted] = scored + np.arange(len(wanted))
            scored += len(wanted)
        c_pos, c_neg, weight = (np.zeros(scored - first) for _ in range(3))
        for path in part.paths:
            where = score_of[path.tokens]
            gain = path.weights * path.advantages
            np.add.at(c_pos, where - first, np.where(path.advantages >= 0, gain, 0.0))
            np.add.at(c_neg, where - first, np.where(path.advantages < 0, gain, 0.0))
            np.add.at(weight, where - first, path.weights)
            out["path_index"].append(np.full(len(where), num_paths))
            out["path_token"].append(where)
            out["path_advantage"].append(path.advantages)
            out["path_weight"].append(path.weights)
            num_paths += 1
        out["c_pos"].append(c_pos)
        out["c_neg"].append(c_neg)
        out["weight"].append(weight)
        if part.values is not None:
            last = {node: start[node] + kept[node] - 1 for node in part.nodes}
            num_states += _add_states(out, part, part.values, last, num_states)
        base = cursor
    sizes = np.concatenate(support_sizes) if support_sizes else np.zeros(0, np.int64)
    out["support_offsets"] = [np.concatenate([[0], np.cumsum(sizes)])]
    unknown = [np.full(scored, np.nan)]
    out["reference_logprobs"] = out["proximal_logprobs"] = unknown
    arrays: dict[str, Any] = {
        name: np.concatenate(pieces or [np.zeros(0)]).astype(np.float64 if name in _FLOATS else np.int64)
        for name, pieces in out.items()
    }
    return Row(**arrays)


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
