"""Trees written by hand: a group of trajectories as text, for probes of rewards, examples and tests.

    group = transcript(task, Written(parts=(("policy", "<answer>x</answer>"),), answer="x"))

Tokens are stand-ins, one per character, so that lengths are in proportion; a reward that reads token ids needs a tree
of a real run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rlkit.records import Author, Leaf, LeafStatus, Node, SamplingState, Task, Trajectory, Tree

__all__ = ["Written", "transcript", "written"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One trajectory as text."""

    parts: tuple[tuple[Author, str], ...]
    """Author and text of each node after the prompt; a completion and what follows it are one turn."""
    answer: str | None = None
    """As an environment would have parsed it."""
    status: LeafStatus = "done"
    """How it ended."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """Counts of the environment."""


def transcript(task: Task, *group: Written, prompt: str = "") -> Tree:
    """The tree of a group: the prompt with one branch for each trajectory; `prompt` is the question if it is empty."""
    nodes = [_node("prompt", prompt or task.question, -1, 0)]
    leaves = []
    for index, trajectory in enumerate(group):
        parent, turn, spoken = 0, 0, False
        for author, text in trajectory.parts:
            turn, spoken = turn + (spoken and author == "policy"), spoken or author == "policy"
            nodes.append(_node(author, text, parent, turn))
            parent = len(nodes) - 1
        leaves.append(
            Leaf(
                node=parent,
                sample_index=index,
                status=trajectory.status,
                answer=trajectory.answer,
                signals=dict(trajectory.signals),
            )
        )
    return Tree(task=task, nodes=tuple(nodes), leaves=tuple(leaves))


def written(trajectory: Trajectory) -> Written:
    """The text of a trajectory, as `transcript` reads it."""
    return Written(
        parts=tuple((node.author, node.text) for node in trajectory.nodes if node.author != "prompt"),
        answer=trajectory.answer,
        status=trajectory.leaf.status,
        signals=trajectory.signals,
    )


def _node(author: Author, text: str, parent: int, turn: int) -> Node:
    ids = np.arange(len(text) or 1, dtype=np.int32)  # a lone end token has no text
    if author != "policy":
        return Node(parent=parent, author=author, token_ids=ids, text=text, turn=turn)
    return Node(
        parent=parent,
        author=author,
        token_ids=ids,
        text=text,
        turn=turn,
        behavior_logprobs=np.zeros(len(ids), np.float32),
        policy_version=0,
        sampling=SamplingState(),
    )
