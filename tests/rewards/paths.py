"""Trajectories written as text: `m:` what the model wrote, `e:` what the environment said."""

from __future__ import annotations

import numpy as np

from rlkit.records import Author, Leaf, Node, SamplingState, Task, Trajectory

TASK = Task(id="t", question="Who sings?", answers=("Eddie Argos", "Argos, Eddie"))


def path(*parts: str, answer: str | None = None, task: Task = TASK) -> Trajectory:
    """One node per part, a turn per part of the model; the answer is what an environment would have parsed."""
    nodes = [_node("prompt", "Question: Who sings?", -1, 0)]
    turn = -1
    for part in parts:
        author: Author = "policy" if part.startswith("m:") else "environment"
        turn += author == "policy"
        nodes.append(_node(author, part[2:], len(nodes) - 1, turn))
    leaf = Leaf(node=len(nodes) - 1, sample_index=0, status="done", answer=answer)
    return Trajectory(task=task, leaf=leaf, nodes=tuple(nodes))


def _node(author: Author, text: str, parent: int, turn: int) -> Node:
    ids = np.arange(len(text) or 1, dtype=np.int32)  # a lone end token has no text
    if author != "policy":
        return Node(parent=parent, author=author, token_ids=ids, text=text, turn=turn)
    logprobs = np.zeros(len(ids), np.float32)
    return Node(
        parent=parent,
        author=author,
        token_ids=ids,
        text=text,
        behavior_logprobs=logprobs,
        policy_version=0,
        sampling=SamplingState(),
        turn=turn,
    )
