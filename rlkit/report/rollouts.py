"""The stored trees that a page shows, and why leaves failed in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlkit.errors import DataError
from rlkit.live import Phase
from rlkit.recorder import rollout_files
from rlkit.records import CreditedTree, ScoredTree
from rlkit.report.evidence import Evidence, answer_parts, read_evidence, walk_of
from rlkit.store import StoredTree, read_trees

__all__ = ["Reasons", "read_rollouts"]

T = TypeVar("T")
Reasons = dict[str, Counter[str]]
"""`reward em failed` -> how often each reason was given."""

PHASES: dict[Phase, str] = {"train": "step", "eval": "held out, step"}
MAX_TREES = 48
"""Trees embedded in one page."""
MAX_TOKENS = 60_000
"""Tokens embedded in one page: about 5 MB."""
MAX_NODE_TOKENS = 1_500
"""Tokens shown of one node."""


def read_rollouts(run_dir: Path, notes: list[str]) -> tuple[dict[str, Any], Reasons]:
    """Trees by step, evenly spaced within the page's budget, and why leaves failed in all that were read."""
    stored: list[tuple[str, StoredTree]] = []
    for phase, label in PHASES.items():
        for step, path in _spaced(list(rollout_files(run_dir, phase).items()), MAX_TREES):
            try:
                stored += [(f"{label} {step}", tree) for tree in read_trees(path)]
            except DataError as error:
                notes.append(f"Rollouts of {path.name} are left out: {error.__cause__ or error}.")
    reasons: Reasons = {}
    for _, tree in stored:
        _count_reasons(tree.scored, reasons)
    shown = _within_budget(stored)
    about = read_evidence(run_dir, notes)
    groups: dict[str, list[dict[str, Any]]] = {}
    for label, tree in shown:
        groups.setdefault(label, []).append(_tree(tree, about))
    left_out = f"To stay small, the page holds {len(shown)} of the {len(stored)} trees that were read."
    return {
        "groups": [{"label": label, "trees": trees} for label, trees in groups.items()],
        "note": left_out if len(shown) < len(stored) else "",
    }, reasons


def _within_budget(stored: Sequence[tuple[str, StoredTree]]) -> list[tuple[str, StoredTree]]:
    """As many trees as fit, evenly spaced; one at least."""
    for count in range(min(MAX_TREES, len(stored)), 1, -1):
        chosen = _spaced(stored, count)
        if sum(tree.tree.num_tokens for _, tree in chosen) <= MAX_TOKENS:
            return chosen
    return list(stored[:1])


def _spaced(items: Sequence[T], limit: int) -> list[T]:
    if len(items) <= limit:
        return list(items)
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, limit)]


def _count_reasons(scored: ScoredTree, reasons: Reasons) -> None:
    for leaf in scored.tree.leaves:
        if leaf.status != "done":
            reasons.setdefault(f"rollout {leaf.status}", Counter())[leaf.reason or "no reason given"] += 1
    for term in scored.terms:
        for status in term.status:
            if status.startswith("failed"):
                why = status.removeprefix("failed").removeprefix(":").strip()
                reasons.setdefault(f"reward {term.name} failed", Counter())[why or "no reason given"] += 1


def _tree(stored: StoredTree, about: Evidence) -> dict[str, Any]:
    tree, texts = stored.tree, stored.token_texts
    return {
        "task": {"id": tree.task.id, "question": tree.task.question, "answers": tree.task.answers},
        "unique": tree.num_tokens,
        "flat": tree.num_flat_tokens,
        "search": tree.search and asdict(tree.search),
        "walk": walk_of(tree.task.question, about),
        "leaves": [_leaf(stored, index, about) for index in range(len(tree.leaves))],
        "nodes": [_node(stored, index, None if texts is None else texts[index]) for index in range(len(tree.nodes))],
    }


def _leaf(stored: StoredTree, index: int, about: Evidence) -> dict[str, Any]:
    leaf, record = stored.tree.leaves[index], stored.record
    paths = record.paths if isinstance(record, CreditedTree) else ()
    advantages = [advantage for path in paths if path.leaf == index for advantage in path.advantages]
    terms = [
        {"name": term.name, "weight": term.weight, "value": term.values[index], "status": term.status[index]}
        for term in stored.scored.terms
    ]
    return {
        "node": leaf.node,
        "sample": leaf.sample_index,
        "status": leaf.status,
        "reason": leaf.reason,
        "answer": leaf.answer,
        "parts": answer_parts(stored.tree.trajectory(index), about),
        "signals": leaf.signals,
        "terms": terms,
        "total": stored.scored.rewards[index],
        "advantage": np.mean(advantages) if advantages else None,
    }


def _node(stored: StoredTree, index: int, texts: Sequence[str] | None) -> dict[str, Any]:
    node, record = stored.tree.nodes[index], stored.record
    cut, start = slice(MAX_NODE_TOKENS), int(stored.tree.offsets[index])
    span = slice(start, start + min(len(node.token_ids), MAX_NODE_TOKENS))
    credit = record if isinstance(record, CreditedTree) and node.author == "policy" else None
    offsets = node.sampling.support_offsets if node.sampling else None
    return {
        "parent": node.parent,
        "author": node.author,
        "turn": node.turn,
        "version": node.policy_version,
        "temperature": node.sampling.temperature if node.sampling else None,
        "text": node.text,
        "size": len(node.token_ids),
        "ids": node.token_ids[cut],
        "texts": texts and texts[cut],
        "logprobs": None if node.behavior_logprobs is None else node.behavior_logprobs[cut],
        "kept": None if offsets is None else np.diff(offsets)[cut],
        "plus": credit and credit.c_pos[span],
        "minus": credit and credit.c_neg[span],
        "search": node.search and asdict(node.search),
        "sibling": _sibling(credit, start) if node.search else None,
    }


def _sibling(credit: CreditedTree | None, start: int) -> float | None:
    """Advantage of a node among its siblings, where an algorithm gave one; `start` is its first token."""
    paths = () if credit is None else credit.paths
    found = [float(p.advantages[0]) for p in paths if p.leaf == -1 and len(p.tokens) and p.tokens[0] == start]
    return found[0] if found else None
