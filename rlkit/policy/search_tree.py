"""The tree that a search grows over a catalogue's trie for one request, and what it knows of every node.

A search is a generator: it yields the nodes whose model outputs it needs next and is resumed once they are there, so
that an engine can answer many searches with one forward. It returns its candidates, leaves in order.

    search = beam(tree, 16)          yields [0], then up to 16 nodes of depth 1, ...; returns up to 16 leaves

Nodes are numbered in order of birth; 0 is the root, the state after the prompt. Node i of the tree stands at
`trie_node[i]` of the trie, so no path outside the catalogue can be written down. All numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlkit.catalogue.trie import Trie

__all__ = ["Search", "SearchTree"]

Floats = NDArray[np.float64]
Search = Generator[list[int], None, list[int]]
"""Yields nodes to evaluate, returns candidates: leaves in order, where a leaf may repeat (i.i.d. draws)."""


@dataclass(slots=True, eq=False)
class SearchTree:
    """See the module. C: valid children of a node."""

    trie: Trie
    parent: list[int] = field(default_factory=lambda: [-1])
    trie_node: list[int] = field(default_factory=lambda: [0])
    depth: list[int] = field(default_factory=lambda: [0])
    logprob: list[float] = field(default_factory=lambda: [0.0])
    """ln π(its token | its parent), over the valid children."""
    total: list[float] = field(default_factory=lambda: [0.0])
    """Sum of `logprob` from the root."""
    value: list[float] = field(default_factory=lambda: [math.nan])
    """V, once evaluated; NaN without a value head."""
    entropy: list[float] = field(default_factory=lambda: [math.nan])
    """H over the valid children, once evaluated; 0 for a leaf."""
    visits: list[int] = field(default_factory=lambda: [0])
    in_beam: list[bool] = field(default_factory=lambda: [True])
    child_logprobs: list[Floats | None] = field(default_factory=lambda: [None])
    """[C] ln π over the valid children, by ascending token; None until evaluated, and for leaves."""
    log_mass: list[float] = field(default_factory=lambda: [0.0])
    """ln of the mass that the whole vocabulary's distribution gives to the valid children; 0 where it is unknown."""
    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    """Which valid children (0..C-1) are in the tree, and as which node."""
    num_evaluated: int = 0
    num_evaluated_leaves: int = 0
    num_charged: int = 0
    """Tokens counted against a search's budget."""
    threshold: float = math.nan
    """κ, the perturbed score that a leaf had to exceed to be drawn without replacement."""

    def __len__(self) -> int:
        return len(self.parent)

    def num_valid(self, node: int) -> int:
        """C, what the trie allows after a node; 0 for a leaf."""
        at, first = self.trie_node[node], self.trie.first_child
        return int(first[at + 1] - first[at])

    def is_leaf(self, node: int) -> bool:
        """True for a whole semantic ID."""
        return self.depth[node] == self.trie.levels

    def token(self, node: int) -> int:
        """Token id of a node other than the root."""
        return int(self.trie.token[self.trie_node[node]])

    def path(self, node: int) -> list[int]:
        """Nodes from the first level to `node`, the root left out."""
        found = []
        while node:
            found.append(node)
            node = self.parent[node]
        return found[::-1]

    def evaluated(
        self, node: int, *, value: float = math.nan, logprobs: Floats | None = None, log_mass: float = 0.0
    ) -> None:
        """Fill in what the model says of a node: V, and ln π over its valid children (None for a leaf)."""
        self.value[node] = value
        self.child_logprobs[node] = logprobs
        self.log_mass[node] = log_mass
        if logprobs is None:
            self.entropy[node] = 0.0
        else:  # a child of probability 0 adds nothing
            self.entropy[node] = -float(np.sum(np.exp(logprobs) * np.maximum(logprobs, -1e300)))
        self.num_evaluated += 1
        self.num_evaluated_leaves += self.is_leaf(node)

    def add(self, parent: int, child: int, *, in_beam: bool = False) -> int:
        """The node of valid child `child` (0..C-1) of an evaluated node; a new one unless it is there already."""
        known = self.children[parent].get(child)
        if known is not None:
            return known
        logprobs = self.child_logprobs[parent]
        assert logprobs is not None, "a search asks for children of nodes that were evaluated"
        node, logprob = len(self.parent), float(logprobs[child])
        self.children[parent][child] = node
        self.parent.append(parent)
        self.trie_node.append(int(self.trie.first_child[self.trie_node[parent]]) + child)
        self.depth.append(self.depth[parent] + 1)
        self.logprob.append(logprob)
        self.total.append(self.total[parent] + logprob)
        self.value.append(math.nan)
        self.entropy.append(math.nan)
        self.visits.append(0)
        self.in_beam.append(in_beam)
        self.child_logprobs.append(None)
        self.log_mass.append(0.0)
        self.children.append({})
        return node

    def unexpanded(self, node: int) -> NDArray[np.int64]:
        """Valid children of an evaluated node that are not in the tree yet, ascending."""
        missing = np.ones(self.num_valid(node), bool)
        missing[list(self.children[node])] = False
        return np.flatnonzero(missing)
