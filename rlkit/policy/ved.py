"""VED, value-guided efficient decoding: a beam, then search where value and uncertainty are high.

Jiang et al. 2026 (V-STAR, arXiv:2602.10699), section 3; oracle (b) of papers/v_star_paper.md is the test.

    H(s) = -Σ_v π(v|s) ln π(v|s)                          over the valid children
    G(s) = V(s) + λ·H(s),  V(s) at a leaf                 priority
    U(s) = G(s) + β·sqrt( ln(N_root + 1) / (N(s) + 1) )   which child a traversal takes
    G(s) >= mean of G over the tree's nodes of its depth  gate: only then s gets one more child

The paper leaves open, and we choose (a setting where the choice matters): N = 0 at birth, a traversal adds 1 to the
root and to every node on its path; the root's gate always passes; subtrees with nothing left to add are not entered;
the search ends after `max_stall` traversals that added nothing, with its unspent budget in the report; values are not
averaged upwards. The authors' released code never expands a node; this is the paper's algorithm.

`scope: live` is another reading of the gate, in which no traversal is in vain: it is part of the selection, so the path
ends at a node that will be expanded, and N = 1 at birth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.policy.decoders import beam
from rlkit.policy.search_tree import Search, SearchTree
from rlkit.settings import at_least

__all__ = ["Pick", "VedSettings", "ved"]

Pick = Callable[[NDArray[np.float64]], int]
"""Index drawn from log-probabilities that need not add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VedSettings:
    """Defaults are the paper's where it says them."""

    beam: int = 8
    """W, width of the initial beam."""
    entropy_coef: float = 0.1
    """λ."""
    exploration: float = 1.0
    """β; the paper is silent, the released script says 1."""
    budget: int | None = None
    """Tokens per request, prefill excluded; null: those of a beam as wide as the group, times `budget_multiple`."""
    budget_multiple: float = 1.0
    """1, 2, 3, 4 are 33, 65, 97, 129 tokens for 16 candidates of 3 levels, as in the paper."""
    scope: Literal["path", "end", "live"] = "path"
    """Which nodes of a traversal may get a child: all, the last, or (see the module) the first that is live."""
    gate: bool = True
    """False: every node with a child left passes."""
    expand_root: bool = True
    """The root passes its gate always; False: it gets no child beyond the beam's, so no token goes there."""
    max_stall: int = 32
    """Traversals in a row that may add nothing."""
    leaf_values: Literal["own", "parent"] = "own"
    """A leaf is ranked by its own V, which costs a token, or by its parent's V and then by likelihood (the initial
    beam's leaves then cost nothing, as in the paper's count)."""
    order: Literal["logprob", "value"] = "logprob"
    """How candidates are numbered; a reward that reads positions is meaningful for `logprob` only."""

    def __post_init__(self) -> None:
        at_least(self, 1, "beam", "max_stall", "budget")
        at_least(self, 0, "entropy_coef", "exploration", "budget_multiple")

    def tokens(self, count: int, levels: int) -> int:
        """The budget of a request for `count` candidates: 1 + (L - 1)·G tokens are a beam's, times the multiple."""
        return self.budget if self.budget is not None else int(1 + self.budget_multiple * (levels - 1) * count)


def ved(tree: SearchTree, settings: VedSettings, count: int, budget: int, pick: Pick) -> Search:
    """The `count` leaves of highest value found within `budget` tokens; fewer where there are not so many.

    `pick` draws one of the children that are not in the tree yet from their log-probabilities.
    """
    own = settings.leaf_values == "own"
    yield from beam(tree, settings.beam, evaluate_leaves=own)
    search = _Ved(tree, settings)
    stalled = 0
    while tree.num_charged < budget and stalled < settings.max_stall and not search.exhausted[0]:
        path = search.live_path() if settings.scope == "live" else search.path()
        if path is None:
            break
        search.visit(path)
        added = 0
        for node in path if settings.scope == "path" else path[-1:]:
            if tree.num_charged >= budget:
                break
            if search.may_expand(node):
                options = tree.unexpanded(node)
                logprobs = tree.child_logprobs[node]
                assert logprobs is not None
                child = tree.add(node, int(options[pick(logprobs[options])]))
                if own or not tree.is_leaf(child):
                    yield [child]
                tree.num_charged += 1
                search.born(child)
                added += 1
        stalled = 0 if added else stalled + 1
    return search.candidates(count)


class _Ved:
    """Priorities, depth averages and what is exhausted, kept up to date as nodes are born."""

    def __init__(self, tree: SearchTree, settings: VedSettings) -> None:
        self.tree, self.settings = tree, settings
        self.priority: list[float] = []
        self.sums = [0.0] * (tree.trie.levels + 1)
        self.counts = [0] * (tree.trie.levels + 1)
        self.exhausted: list[bool] = []
        """Nothing can be added below; leaves are not marked, so that a traversal may end at one."""
        self.missing = [0] * len(tree)
        """Children that are not exhausted or not there."""
        for node in range(len(tree)):
            self._enter(node)
        for node in range(len(tree) - 1, -1, -1):
            self._settle(node)

    def born(self, node: int) -> None:
        """Take a new node in, once it was evaluated."""
        self.missing.append(0)
        self._enter(node)
        self._settle(node)

    def _enter(self, node: int) -> None:
        tree = self.tree
        value = tree.value[tree.parent[node]] if tree.is_leaf(node) and self._inherits else tree.value[node]
        value = 0.0 if math.isnan(value) else value
        leaf = tree.is_leaf(node)
        priority = value if leaf else value + self.settings.entropy_coef * tree.entropy[node]
        self.priority.append(priority)
        self.sums[tree.depth[node]] += priority
        self.counts[tree.depth[node]] += 1
        self.exhausted.append(False)
        self.missing[node] = tree.num_valid(node)
        if self.settings.scope == "live":
            tree.visits[node] = 1

    def _settle(self, node: int) -> None:
        """Mark what became exhausted with this node, from it upwards."""
        tree = self.tree
        done = tree.is_leaf(node)
        while done and node:
            parent = tree.parent[node]
            self.missing[parent] -= 1
            done = self.missing[parent] == 0
            self.exhausted[parent] = done
            node = parent

    @property
    def _inherits(self) -> bool:
        return self.settings.leaf_values == "parent"

    def may_expand(self, node: int) -> bool:
        """Whether a node has a child left to add and passes its gate."""
        tree = self.tree
        if tree.is_leaf(node) or len(tree.children[node]) == tree.num_valid(node):
            return False
        if node == 0:
            return self.settings.expand_root
        if not self.settings.gate:
            return True
        depth = tree.depth[node]
        return self.priority[node] >= self.sums[depth] / self.counts[depth]

    def path(self) -> list[int]:
        """From the root, the child of largest U, to a leaf or a node whose children are exhausted or not there."""
        path = [0]
        while options := [node for node in self.tree.children[path[-1]].values() if not self.exhausted[node]]:
            path.append(self._best(options))
        return path

    def live_path(self) -> list[int] | None:
        """From the root, the live child of largest U, to a node that may be expanded and has no live child."""
        live = self._live()
        if 0 not in live:
            return None
        path = [0]
        while options := [node for node in self.tree.children[path[-1]].values() if node in live]:
            path.append(self._best(options))
        return path

    def _live(self) -> set[int]:
        found: set[int] = set()
        for node in range(len(self.tree) - 1, -1, -1):
            if self.may_expand(node) or any(child in found for child in self.tree.children[node].values()):
                found.add(node)
        return found

    def _best(self, nodes: list[int]) -> int:
        """The node of largest U; ties go to the likelier one, then to the smaller token."""
        visits, logprob = self.tree.visits, self.tree.logprob
        root = visits[0]
        if self.settings.scope == "live":
            root = 1 + sum(visits[node] for node in self.tree.children[0].values())
        bonus = self.settings.exploration * math.sqrt(math.log(root + 1))

        def rank(node: int) -> tuple[float, float, int]:
            u = self.priority[node] + bonus / math.sqrt(visits[node] + 1)
            return u, logprob[node], -self.tree.token(node)

        return max(nodes, key=rank)

    def visit(self, path: list[int]) -> None:
        """Count a traversal."""
        for node in path:
            self.tree.visits[node] += 1

    def candidates(self, count: int) -> list[int]:
        """Leaves by value; if too few, likely children of valuable prefixes that were evaluated, without a forward."""
        tree = self.tree
        leaves = [node for node in range(len(tree)) if tree.is_leaf(node)]
        chosen = sorted(leaves, key=lambda node: (-self.priority[node], -tree.total[node], node))[:count]
        chosen += self._completed(count - len(chosen))
        if self.settings.order == "logprob":
            chosen.sort(key=lambda node: (-tree.total[node], node))
        return chosen

    def _completed(self, count: int) -> list[int]:
        """Leaves below prefixes of depth L - 1, whose children's distribution is known: one each, best prefix first."""
        tree = self.tree
        prefixes = [node for node in range(len(tree)) if tree.depth[node] == tree.trie.levels - 1]
        prefixes.sort(key=lambda node: (-self.priority[node], -tree.total[node], node))
        found: list[int] = []
        while prefixes and len(found) < count:
            for node in prefixes[: count - len(found)]:
                options = tree.unexpanded(node)
                logprobs = tree.child_logprobs[node]
                if len(options) and logprobs is not None:
                    found.append(tree.add(node, int(options[np.argmax(logprobs[options])])))
            prefixes = [node for node in prefixes if len(tree.children[node]) < tree.num_valid(node)]
        return found
