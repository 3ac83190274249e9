"""From paths to one prefix tree: runs of tokens are shared for being the same run, not for looking alike.

Two siblings that happen to sample the same words stay two nodes: they are two draws, and an estimator counts
both. A forked sample shares its parent's nodes up to the fork, because its path holds the same keys:

    sample 0:  prompt (0,0,policy) (0,0,environment) (0,1,policy)
    sample 1:  prompt (0,0,policy) (0,0,environment) (1,1,policy)      forked from sample 0 before turn 1
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

from rlkit.records import Leaf, Node, SearchReport, Task, Tree

__all__ = ["NodeKey", "Path", "assemble"]

NodeKey = Hashable
"""Identity of a run of tokens within one task: who produced it and when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One trajectory before it has a place in the tree."""

    keys: tuple[NodeKey, ...]
    """Its runs, root first."""
    leaf: Leaf
    """How it ended; `leaf.node` is filled in by `assemble`."""


def assemble(
    task: Task, nodes: Mapping[NodeKey, Node], paths: Iterable[Path], search: SearchReport | None = None
) -> Tree:
    """Merge paths into one depth-first tree; children stand in the order of their lowest sample index.

    `nodes` holds each run once; its `parent` is replaced. `search` says how an engine chose the paths, if it did.
    Raises `ValueError` if the paths are no tree: two roots, one run below two parents, or an empty path.
    """
    ordered = sorted(paths, key=lambda path: path.leaf.sample_index)
    parents: dict[NodeKey, NodeKey | None] = {}
    children: dict[NodeKey | None, list[NodeKey]] = {None: []}
    for path in ordered:
        if not path.keys:
            raise ValueError(f"task {task.id}: the path of sample {path.leaf.sample_index} is empty")
        for parent, key in zip((None, *path.keys), path.keys, strict=False):
            if key not in parents:
                parents[key] = parent
                children[key] = []
                children[parent].append(key)
            elif parents[key] != parent:
                raise ValueError(f"task {task.id}: run {key} follows both {parents[key]} and {parent}")
    if len(children[None]) != 1:
        raise ValueError(f"task {task.id}: a tree has one root, the paths have {children[None]}")

    places: dict[NodeKey | None, int] = {None: -1}
    placed: list[Node] = []
    waiting = list(children[None])
    while waiting:
        key = waiting.pop()
        places[key] = len(placed)
        placed.append(replace(nodes[key], parent=places[parents[key]]))
        waiting += reversed(children[key])
    leaves = tuple(replace(path.leaf, node=places[path.keys[-1]]) for path in ordered)
    return Tree(task=task, nodes=tuple(placed), leaves=leaves, search=search)
