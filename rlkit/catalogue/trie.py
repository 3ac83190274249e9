"""The catalogue's semantic IDs as one token trie in flat arrays: what may follow a prefix, and which items it means.

Nodes are numbered level by level from the root 0, and inside a level by path, so children are neighbours and no array
of pointers is needed:

    items 7: a c   8: a d   9: b c   5: a d        tokens a=1 b=2 c=3 d=4

    node          0      1    2    3    4    5
    path          ()     a    b    ac   ad   bc
    token        -1      1    2    3    4    3
    parent       -1      0    0    1    1    2
    depth         0      1    1    2    2    2
    first_child   1      3    5    6    6    6   6      children of node 0: 1..2, of 1: 3..4, of 2: 5
    first_item    0      0    3    0    1    3
    end_item      4      3    4    1    3    4          items below node 1: item_order[0:3]
    item_order    0      1    3    2                    rows of `sids`: 1 and 3 share the path ad

Every semantic ID of a catalogue has the same number of levels, so leaves are exactly the nodes of depth L. A million
items take a second to build and about 60 MB. Everything is numpy and immutable; lookups take whole batches.

    I items · L levels · N nodes · B nodes asked at once · K children found
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import DataError

__all__ = ["ABSENT", "Trie"]

Ints = NDArray[np.int64]
ABSENT = -1
"""The node of a path that no item has."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie:
    """See the module. Built by `Trie.of`; node 0 is the root."""

    token: Ints
    """[N] token that leads to the node; -1 for the root."""
    parent: Ints
    """[N] -1 for the root."""
    depth: Ints
    """[N] 0 for the root, L for leaves."""
    first_child: Ints
    """[N + 1] children of node n are the nodes `first_child[n] .. first_child[n + 1] - 1`, by ascending token."""
    first_item: Ints
    """[N] items below node n are `item_order[first_item[n]:end_item[n]]`."""
    end_item: Ints
    """[N]"""
    item_order: Ints
    """[I] rows of the `sids` that the trie was built from, by path, ties by row."""
    leaf_of_item: Ints
    """[I] leaf of each row."""

    @classmethod
    def of(cls, sids: NDArray[np.integer]) -> Trie:
        """Build from token ids [I, L], one row per item; equal rows are one leaf. Raises `DataError` if there are none.

        Tokens are the model's ids, at least 0 and below 2^31.
        """
        if sids.ndim != 2 or not sids.size:
            raise DataError(f"trie: needs semantic IDs [items, levels] with at least one of each, not {sids.shape}")
        if sids.min() < 0 or sids.max() >= 2**31:
            raise DataError(f"trie: token ids lie in [0, 2^31), not in [{sids.min()}, {sids.max()}]")
        num_items, levels = sids.shape
        order = np.lexsort(sids.T[::-1]).astype(np.int64)  # the last key counts most, so the first level goes last
        ordered = sids[order]
        new = np.zeros(num_items, bool)  # whether a path differs from the one before, up to the current level
        new[0] = True
        parts: dict[str, list[NDArray[np.integer]]] = {"token": [np.array([-1])], "parent": [np.array([-1])]}
        starts, above, base = [np.array([0])], np.zeros(num_items, np.int64), 1
        for level in range(levels):
            new[1:] |= ordered[1:, level] != ordered[:-1, level]
            first = np.flatnonzero(new)
            parts["token"].append(ordered[first, level])
            parts["parent"].append(above[first])
            starts.append(first)
            above = base + np.cumsum(new) - 1  # node of every item at this level
            base += len(first)
        token, parent = (np.concatenate(parts[name]).astype(np.int64) for name in ("token", "parent"))
        counts = np.bincount(parent[1:], minlength=len(token))
        leaf_of_item = np.empty(num_items, np.int64)
        leaf_of_item[order] = above
        found = cls(
            token=token,
            parent=parent,
            depth=np.repeat(np.arange(levels + 1), [len(start) for start in starts]),
            first_child=np.concatenate([[1], 1 + np.cumsum(counts)]),
            first_item=np.concatenate(starts),
            end_item=np.concatenate([np.append(start[1:], num_items) for start in starts]),
            item_order=order,
            leaf_of_item=leaf_of_item,
        )
        for array in vars(found).values():
            array.flags.writeable = False
        return found

    @property
    def num_nodes(self) -> int:
        """N, the root included."""
        return len(self.token)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.item_order)

    @property
    def levels(self) -> int:
        """L, tokens of one semantic ID."""
        return int(self.depth[-1])

    @property
    def first_leaf(self) -> int:
        """Leaves are the nodes from here to the last, in the order of their paths."""
        return int(np.searchsorted(self.depth, self.levels))

    @property
    def num_leaves(self) -> int:
        """Distinct semantic IDs."""
        return self.num_nodes - self.first_leaf

    @property
    def num_shared(self) -> int:
        """Items that share their semantic ID with at least one other item."""
        sizes = self.num_below(np.arange(self.first_leaf, self.num_nodes))
        return int(sizes[sizes > 1].sum())

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: equal for tries with the same items on the same paths, in the same rows."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.first_child, self.token, self.leaf_of_item):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    def num_children(self, nodes: Ints) -> Ints:
        """[B] children of each node; 0 for leaves."""
        return self.first_child[nodes + 1] - self.first_child[nodes]

    def children(self, nodes: Ints) -> tuple[Ints, Ints]:
        """Ragged: offsets [B + 1] and child nodes [K]; their tokens are `trie.token[children]`, ascending per node."""
        counts = self.num_children(nodes)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return offsets, np.repeat(self.first_child[nodes], counts) + inside

    def children_padded(self, nodes: Ints) -> Ints:
        """[B, most children of any of them]: child nodes, then `ABSENT`."""
        counts = self.num_children(nodes)
        column = np.arange(counts.max(initial=0))
        return np.where(column < counts[:, None], self.first_child[nodes][:, None] + column, ABSENT)

    def child(self, nodes: Ints, tokens: NDArray[np.integer]) -> Ints:
        """[B] the child that `tokens` [B] leads to from `nodes` [B]; `ABSENT` where there is none.

        `ABSENT` nodes and tokens outside the vocabulary have no children.
        """
        nodes, tokens = np.asarray(nodes, np.int64), np.asarray(tokens, np.int64)
        asked = (np.maximum(nodes, 0) << 31) | np.clip(tokens, 0, 2**31 - 1)
        place = np.minimum(np.searchsorted(self._edges, asked), len(self._edges) - 1)
        found = (self._edges[place] == asked) & (nodes >= 0) & (tokens >= 0)
        return np.where(found, place + 1, ABSENT)

    def walk(self, tokens: NDArray[np.integer]) -> Ints:
        """[B] the node at the end of each path of tokens [B, D], D <= L; `ABSENT` where it leaves the trie."""
        nodes = np.zeros(len(tokens), np.int64)
        for level in range(tokens.shape[1]):
            nodes = self.child(nodes, tokens[:, level])
        return nodes

    def path(self, nodes: Ints) -> Ints:
        """[B, D] tokens from the root to nodes [B] of one depth D. Raises `ValueError` for different depths."""
        nodes = np.asarray(nodes, np.int64)
        depths = np.unique(self.depth[nodes])
        if len(depths) > 1:
            raise ValueError(f"path: nodes of one depth at a time, not of {depths.tolist()}")
        out = np.empty((len(nodes), int(depths[0]) if len(depths) else 0), np.int64)
        for level in range(out.shape[1] - 1, -1, -1):
            out[:, level] = self.token[nodes]
            nodes = self.parent[nodes]
        return out

    def item_path(self, items: Ints) -> Ints:
        """[B, L] tokens of the semantic IDs of item rows [B]."""
        return self.path(self.leaf_of_item[items])

    def num_below(self, nodes: Ints) -> Ints:
        """[B] items below each node; for a leaf, how many share its semantic ID."""
        return self.end_item[nodes] - self.first_item[nodes]

    def items_below(self, node: int) -> Ints:
        """Item rows below one node, by path; for a leaf, the items that share its semantic ID, ascending."""
        return self.item_order[self.first_item[node] : self.end_item[node]]

    @cached_property
    def _edges(self) -> Ints:
        """[N - 1] (parent, token) of nodes 1.. as one number each; ascending, because nodes are in that order."""
        return (self.parent[1:] << 31) | self.token[1:]
