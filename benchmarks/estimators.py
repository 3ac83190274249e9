"""Bias and variance of policy gradients from beam, VED, i.i.d. and without-replacement candidates, by enumeration.

    python -m benchmarks.estimators            writes docs/estimators.md

The policy is a table: free logits at every node of a random trie of a few hundred items, so the gradient of J = E_π[R]
is a sum over all items. The searches are those of the engine (rlkit/policy). Reward 1 for one item, which is drawn from
the policy. Values that guide VED are E_π[R | prefix] plus noise.

    g = Σ_y a_y ∇ ln π(y)     a_y is what an estimator pays candidate y
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.algorithms.sibling_grpo import SiblingGrpoConfig, sibling_advantages
from rlkit.catalogue.ranking import rank_penalties
from rlkit.catalogue.trie import Trie
from rlkit.policy.decoders import beam, inclusion_logprob, sample, without_replacement
from rlkit.policy.search_tree import Search, SearchTree
from rlkit.policy.ved import VedSettings, ved
from rlkit.records import Leaf, Node, SamplingState, Task, Tree

Floats = NDArray[np.float64]
SHAPE = (6, 7, 8)
NUM_ITEMS = 240
DANGER_DRAWS = 200
"""Candidate sets per world of the table of sibling rewards."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One catalogue, policy and target. N nodes of the trie, I items."""

    trie: Trie
    logprob: Floats
    """[N] ln π(node | its parent); 0 for the root."""
    value: Floats
    """[N] E_π[R | node] plus noise."""
    steps: NDArray[np.int64]
    """[I, L] nodes on the way to each leaf."""
    reward: Floats
    """[I]"""

    @property
    def total(self) -> Floats:
        """[I] ln π of every item."""
        found: Floats = self.logprob[self.steps].sum(1)
        return found

    def gradient(self, coefficients: Floats) -> Floats:
        """[N] of Σ_n c_n·ln π(n | parent) with respect to the logits; `coefficients` [N]."""
        parent = np.maximum(self.trie.parent, 0)
        sums = np.bincount(parent[1:], weights=coefficients[1:], minlength=len(parent))
        out: Floats = coefficients - np.exp(self.logprob) * sums[parent]
        out[0] = 0
        return out

    def of_leaves(self, leaves: NDArray[np.int64], pay: Floats) -> Floats:
        """[N] gradient of Σ pay·ln π(leaf); `leaves` are rows of `steps`."""
        coefficients = np.zeros(self.trie.num_nodes)
        np.add.at(coefficients, self.steps[leaves], pay[:, None])
        return self.gradient(coefficients)

    @property
    def exact(self) -> Floats:
        """[N] the gradient of E_π[R]."""
        return self.of_leaves(np.arange(len(self.reward)), np.exp(self.total) * self.reward)


def world(rng: np.random.Generator, *, spread: float = 1.5, noise: float = 0.05) -> World:
    """A random trie with a random policy, peaked as `spread` says."""
    paths = rng.permutation(int(np.prod(SHAPE)))[:NUM_ITEMS]
    trie = Trie.of(np.stack(np.unravel_index(paths, SHAPE), 1))
    logprob = np.zeros(trie.num_nodes)
    for node in range(trie.first_leaf):
        children = slice(trie.first_child[node], trie.first_child[node + 1])
        logits = rng.normal(0, spread, children.stop - children.start)
        logprob[children] = logits - np.log(np.exp(logits).sum())
    leaves = np.arange(trie.first_leaf, trie.num_nodes)
    steps = np.empty((len(leaves), trie.levels), np.int64)
    at = leaves
    for level in range(trie.levels - 1, -1, -1):
        steps[:, level], at = at, trie.parent[at]
    mass = np.exp(logprob[steps].sum(1))
    reward = np.zeros(len(leaves))
    reward[rng.choice(len(leaves), p=mass / mass.sum())] = 1.0
    value = np.zeros(trie.num_nodes)
    value[leaves] = reward
    for node in range(trie.first_leaf - 1, -1, -1):
        children = slice(trie.first_child[node], trie.first_child[node + 1])
        value[node] = np.exp(logprob[children]) @ value[children]
    return World(trie=trie, logprob=logprob, value=value + rng.normal(0, noise, len(value)), steps=steps, reward=reward)


def searched(known: World, tree: SearchTree, search: Search) -> list[int]:
    """Run a search on the tables; its candidates as nodes of `tree`."""
    try:
        while True:
            for node in next(search):
                at = tree.trie_node[node]
                children = slice(known.trie.first_child[at], known.trie.first_child[at + 1])
                inner = not tree.is_leaf(node)
                tree.evaluated(node, value=float(known.value[at]), logprobs=known.logprob[children] if inner else None)
    except StopIteration as end:
        return list(end.value)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What one search chose. C candidates."""

    leaves: NDArray[np.int64]
    """[C] rows of `World.steps`."""
    inclusion: Floats | None
    """[C] ln of the probability that each is drawn, where the sampler knows it."""


def choose(known: World, sampler: str, count: int, rng: np.random.Generator) -> Candidates:
    """Candidates of one sampler, all at the token budget of a beam of `count`."""
    tree, inclusion = SearchTree(known.trie), None
    if sampler == "beam":
        found = searched(known, tree, beam(tree, count))
    elif sampler == "iid":
        found = searched(known, tree, sample(tree, count, lambda index, level: float(rng.random())))
    elif sampler == "ved":
        settings = VedSettings(leaf_values="own")
        budget = settings.tokens(count, known.trie.levels)
        found = searched(known, tree, ved(tree, settings, count, budget, drawer(rng)))
    else:
        found = searched(known, tree, without_replacement(tree, count, rng))
        inclusion = inclusion_logprob(np.array([tree.total[leaf] for leaf in found]), tree.threshold)
    leaves = np.array([tree.trie_node[leaf] for leaf in found]) - known.trie.first_leaf
    return Candidates(leaves=leaves, inclusion=inclusion)


def drawer(rng: np.random.Generator) -> Callable[[Floats], int]:
    """Draws an index from log-probabilities."""

    def draw(logprobs: Floats) -> int:
        mass = np.exp(logprobs - logprobs.max())
        return int(rng.choice(len(mass), p=mass / mass.sum()))

    return draw


def centered(known: World, found: Candidates) -> Floats:
    """Every candidate is paid (R - mean of the others) / C: REINFORCE with a leave-one-out baseline."""
    reward, size = known.reward[found.leaves], len(found.leaves)
    return known.of_leaves(found.leaves, (reward - reward.mean()) / max(1, size - 1))


def grpo(known: World, found: Candidates) -> Floats:
    """(R - mean) / (std + ε) / C."""
    reward = known.reward[found.leaves]
    std = reward.std(ddof=1) if len(reward) > 1 else 0.0
    pay = (reward - reward.mean()) / (std + 1e-4) if std > 0 else np.zeros(len(reward))
    return known.of_leaves(found.leaves, pay / len(reward))


def sibling(known: World, found: Candidates) -> Floats:
    """Sibling-GRPO alone, a node counted once (V-STAR, eq. 19)."""
    return known.gradient(sibling_credit(known, found, known.reward[found.leaves], SiblingGrpoConfig()))


def sibling_credit(known: World, found: Candidates, rewards: Floats, config: SiblingGrpoConfig) -> Floats:
    """Credit [N] of the trie's nodes: A / C where siblings differ, else 0."""
    tree, steps = candidate_tree(known.steps[found.leaves])
    advantages, _, _ = sibling_advantages(tree, rewards, config)
    credit = np.zeros(known.trie.num_nodes)
    credit[steps] = advantages / len(found.leaves)
    return credit


def candidate_tree(paths: NDArray[np.int64]) -> tuple[Tree, list[int]]:
    """Candidates [C, L] of trie nodes as a record, depth-first; and the trie node that each of its nodes stands for."""
    order = sorted({(0,), *((0, *map(int, path[:level])) for path in paths for level in range(1, len(path) + 1))})
    place = {path: index for index, path in enumerate(order)}
    nodes = [Node(parent=-1, author="prompt", token_ids=np.zeros(1, np.int32))]
    for path in order[1:]:
        nodes.append(
            Node(
                parent=place[path[:-1]],
                author="policy",
                token_ids=np.zeros(1, np.int32),
                behavior_logprobs=np.zeros(1, np.float32),
                sampling=SamplingState(),
            )
        )
    leaves = [
        Leaf(node=place[(0, *map(int, path))], sample_index=index, status="done") for index, path in enumerate(paths)
    ]
    tree = Tree(task=Task(id="w", question="?"), nodes=tuple(nodes), leaves=tuple(leaves))
    return tree, [path[-1] for path in order]


def weighted(known: World, found: Candidates) -> Floats:
    """Every candidate is paid π(y)·R: exact on what was found, nothing for the rest."""
    return known.of_leaves(found.leaves, np.exp(known.total[found.leaves]) * known.reward[found.leaves])


def importance(known: World, found: Candidates) -> Floats:
    """π(y)/q(y)·R, q the probability of being drawn (Kool et al. 2019): unbiased."""
    assert found.inclusion is not None
    return known.of_leaves(
        found.leaves, np.exp(known.total[found.leaves] - found.inclusion) * known.reward[found.leaves]
    )


Estimator = Callable[[World, Candidates], Floats]
ROWS: tuple[tuple[str, str, Estimator], ...] = (
    ("iid", "R - leave-one-out", centered),
    ("iid", "GRPO", grpo),
    ("iid", "siblings", sibling),
    ("without_replacement", "R - leave-one-out", centered),
    ("without_replacement", "GRPO", grpo),
    ("without_replacement", "siblings", sibling),
    ("without_replacement", "π/q·R (corrected)", importance),
    ("beam", "R - leave-one-out", centered),
    ("beam", "GRPO", grpo),
    ("beam", "siblings", sibling),
    ("beam", "π·R (corrected)", weighted),
    ("ved", "R - leave-one-out", centered),
    ("ved", "GRPO", grpo),
    ("ved", "siblings", sibling),
    ("ved", "π·R (corrected)", weighted),
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One estimator over all worlds; norms relative to that of the exact gradient."""

    bias: float
    """Root mean square over worlds of |E g - g*| / |g*|."""
    shape_bias: float
    """The same after the one factor for all worlds that suits the estimator best: what no learning rate repairs."""
    cosine: float
    """Mean over worlds of cos(E g, g*); worlds in which E g is 0 count as 0."""
    noise: float
    """Root mean square over worlds of the standard deviation of g, after that factor."""
    hit: float
    """Share of candidate sets that hold the target."""


def measure(worlds: list[World], sampler: str, estimator: Estimator, count: int, draws: int, seed: int) -> Figures:
    """Averages over `draws` candidate sets in each world; a beam is deterministic, so one is enough."""
    means, spreads, exact, hits = [], [], [], []
    for index, known in enumerate(worlds):
        rng = np.random.default_rng((seed, index))
        found = [choose(known, sampler, count, rng) for _ in range(1 if sampler == "beam" else draws)]
        gradients = np.array([estimator(known, candidates) for candidates in found])
        size = float(np.linalg.norm(known.exact))
        means.append(gradients.mean(0) / size)
        spreads.append(float(gradients.var(0, ddof=1).sum()) / size**2 if len(found) > 1 else 0.0)
        exact.append(known.exact / size)
        hits.append(np.mean([known.reward[candidates.leaves].any() for candidates in found]))
    dots = [float(mean @ truth) for mean, truth in zip(means, exact, strict=True)]
    # Without the noise of the mean, which would count as bias.
    noise = [spread / (1 if sampler == "beam" else draws) for spread in spreads]
    squares = [max(0.0, float(mean @ mean) - own) for mean, own in zip(means, noise, strict=True)]
    factor = sum(dots) / sum(squares) if sum(squares) else 0.0

    def distance(scale: float) -> float:
        gaps = [
            float(np.sum((scale * mean - truth) ** 2)) - scale**2 * own
            for mean, truth, own in zip(means, exact, noise, strict=True)
        ]
        return float(np.sqrt(max(0.0, np.mean(gaps))))

    cosines = [min(1.0, dot / np.sqrt(square)) if square else 0.0 for dot, square in zip(dots, squares, strict=True)]
    return Figures(
        bias=distance(1.0),
        shape_bias=distance(factor),
        cosine=float(np.mean(cosines)),
        noise=abs(factor) * float(np.sqrt(np.mean(spreads))),
        hit=float(np.mean(hits)),
    )


def table(num_worlds: int, draws: int, count: int, seed: int) -> Iterator[str]:
    """The lines of the table."""
    worlds = [world(np.random.default_rng((seed, 7, index))) for index in range(num_worlds)]
    yield "| candidates | paid | target found | bias | bias of direction | cosine | noise |"
    yield "|" + " --- |" * 7
    for sampler, paid, estimator in ROWS:
        f = measure(worlds, sampler, estimator, count, draws, seed)
        name = sampler.replace("_", " ")
        yield f"| {name} | {paid} | {f.hit:.2f} | {f.bias:.2f} | {f.shape_bias:.2f} | {f.cosine:.2f} | {f.noise:.2f} |"


Place = Literal["log-probability", "value"]
DANGERS: tuple[tuple[str, Place | None, float], ...] = (
    ("rule + rank penalty", "log-probability", 0.0),
    ("rule + rank penalty", "value", 0.0),
    ("rule + rank penalty, deviation at least 0.05", "log-probability", 0.05),
    ("rule alone", None, 0.0),
)
"""What siblings are compared by, what places are by where there is a penalty, and the floor of the deviation."""


def dangers(num_worlds: int, draws: int, count: int, seed: int) -> Iterator[str]:
    """The lines of the table of what siblings are told apart by, over candidate sets of VED with a hit."""
    worlds = [world(np.random.default_rng((seed, 7, index))) for index in range(num_worlds)]
    found = []
    for index, known in enumerate(worlds):
        rng = np.random.default_rng((seed, 11, index))
        found.append([choose(known, "ved", count, rng) for _ in range(draws)])
    columns = ("decisions without a hit", "their share of credit", "bias of direction", "cosine")
    yield f"| siblings compared by | places by | {' | '.join(columns)} |"
    yield "|" + " --- |" * 6
    for paid, place, floor in DANGERS:
        decisions, idle, blamed, spent = 0, 0, 0.0, 0.0
        means = []
        for known, sets in zip(worlds, found, strict=True):
            total = np.zeros(known.trie.num_nodes)
            for candidates in sets:
                hit = known.reward[candidates.leaves]
                if not hit.any():
                    continue  # all rewards are 0: nothing is told apart
                rewards = hit + (_rank_penalty(known, candidates, place) if place else 0.0)
                credit = sibling_credit(known, candidates, rewards, SiblingGrpoConfig(sibling_std_floor=floor))
                parents = np.unique(known.trie.parent[np.flatnonzero(credit)])
                path = {0, *known.steps[np.flatnonzero(known.reward)[0]].tolist()}
                wrong = [parent for parent in parents.tolist() if parent not in path]
                decisions, idle = decisions + len(parents), idle + len(wrong)
                size = np.bincount(np.maximum(known.trie.parent, 0), np.abs(credit), known.trie.num_nodes)
                blamed, spent = blamed + float(size[wrong].sum()), spent + float(size.sum())
                total += known.gradient(credit)
            means.append(total / len(sets) / float(np.linalg.norm(known.exact)))
        exact = [known.exact / float(np.linalg.norm(known.exact)) for known in worlds]
        dots = np.array([mean @ truth for mean, truth in zip(means, exact, strict=True)])
        squares = np.array([mean @ mean for mean in means])
        factor = dots.sum() / squares.sum()
        bias = np.sqrt(np.mean(factor**2 * squares - 2 * factor * dots + 1))
        cosine = np.mean(np.divide(dots, np.sqrt(squares), out=np.zeros_like(dots), where=squares > 0))
        yield f"| {paid} | {place or '-'} | {idle / decisions:.2f} | {blamed / spent:.2f} | {bias:.2f} | {cosine:.2f} |"


def _rank_penalty(known: World, found: Candidates, place: Place) -> Floats:
    """[C] -q of a miss at its place, 0 for the hit (V-STAR section 5)."""
    score = known.total[found.leaves] if place == "log-probability" else known.value[known.steps[found.leaves, -1]]
    out = np.zeros(len(found.leaves))
    out[np.argsort(-score, kind="stable")] = -rank_penalties(len(found.leaves))
    return np.where(known.reward[found.leaves] > 0, 0.0, out)


PAGE = """# What candidates do to the gradient

Generated by `{command}`; edit `benchmarks/estimators.py`.

Only i.i.d. candidates are draws of the policy. Beam search, value-guided search and sampling without replacement choose
others, and GRPO on them is not an estimate of the gradient of E[R]. How far off it is was computed by enumeration:
{items} items on three levels, tabular policies, {worlds} random worlds with one rewarded item each, {count} candidates,
every sampler at the token budget of a beam of {count}, {draws} candidate sets per world. VED is guided by the true
value of a prefix with noise of 0.05.

{table}

*bias* is |E g - g*| / |g*|; *bias of direction* the same after the one factor, common to all worlds, that suits the
estimator best: what no learning rate repairs (1.00: as far off as no gradient at all). *cosine* is that of E g and g*,
0 where E g is 0. *noise* is the standard deviation of one estimate after that factor, relative to |g*|. The part of the
bias that is only the noise of the mean over {draws} draws is subtracted; below noise / √{draws} it is not told from 0.

{dangers}

{budgets}
"""


DANGERS_TEXT = """## What siblings are told apart by

Siblings are normalised, so the rank penalty of two wrong ones, a difference of hundredths, becomes ±1, and the one at
the later place is praised. {worlds} worlds as above, {draws} candidate sets of VED each. *decisions without a hit*: the
share of parents with sibling credit that have no hit below; *their share of credit*: of Σ|A|. What helps are
`algorithm.sibling_reward=sid_match` and `algorithm.sibling_std_floor`; places by value are
`engine.ved.order=value rewards.1.order=sample`.

{table}
"""


BUDGETS = """## How many items a search finds

Readings of VED that the paper leaves open decide whether a search gets down to items at all, the more so with four
levels: {count} candidates are wanted, at 1, 2 and 4 times a beam's tokens. Random policies (Dirichlet 0.1 at every
node) and values on tries of {items} items, {worlds} searches each: candidates found, and how many of them are new: that
the initial beam had not kept.

{table}
"""


def searches(num_searches: int, count: int, seed: int, num_items: int = 8000) -> Iterator[str]:
    """The lines of the table of readings."""
    yield "| levels | leaf values | a traversal expands | 1x | 2x | 4x |"
    yield "|" + " --- |" * 6
    for shape in ((96, 64, 64), (256, 128, 128, 128)):
        rng = np.random.default_rng((seed, len(shape)))
        trie = Trie.of(np.stack([rng.zipf(1.3, num_items) % size for size in shape], 1))
        for leaf_values in ("own", "parent"):
            for scope, expand_root in (("path", True), ("path", False), ("end", True), ("live", True)):
                cells = []
                for multiple in (1, 2, 4):
                    settings = VedSettings(
                        scope=scope,  # type: ignore[arg-type]
                        leaf_values=leaf_values,  # type: ignore[arg-type]
                        expand_root=expand_root,
                        budget_multiple=multiple,
                    )
                    found = [_search(trie, settings, count, (seed, index)) for index in range(num_searches)]
                    mean = np.mean(found, 0)
                    cells.append(f"{mean[0]:.1f}, {mean[1]:.1f} new")
                where = {"path": "its whole path", "end": "its end", "live": "the first live node"}[scope]
                where += "" if expand_root else ", not the root"
                yield f"| {len(shape)} | {leaf_values} | {where} | {' | '.join(cells)} |"


def _search(trie: Trie, settings: VedSettings, count: int, seed: tuple[int, int]) -> tuple[int, int]:
    """Candidates of one search, and those with a node that the initial beam did not keep."""
    rng, tree = np.random.default_rng(seed), SearchTree(trie)
    growing = ved(tree, settings, count, settings.tokens(count, trie.levels), drawer(rng))
    try:
        while True:
            for node in next(growing):
                size = tree.num_valid(node)
                mass = np.maximum(rng.dirichlet(np.full(size, 0.1)), 1e-12) if size else None
                value = (tree.value[tree.parent[node]] if node else 0.0) + rng.normal(0, 0.2)
                tree.evaluated(node, value=value, logprobs=None if mass is None else np.log(mass / mass.sum()))
    except StopIteration as end:
        return len(end.value), sum(not tree.in_beam[leaf] for leaf in end.value)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worlds", type=int, default=16)
    parser.add_argument("--draws", type=int, default=800)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/estimators.md"))
    given = parser.parse_args()
    lines = "\n".join(table(given.worlds, given.draws, given.count, given.seed))
    readings = "\n".join(searches(40, given.count, given.seed))
    told = "\n".join(dangers(given.worlds, DANGER_DRAWS, given.count, given.seed))
    page = PAGE.format(
        dangers=DANGERS_TEXT.format(worlds=given.worlds, draws=DANGER_DRAWS, table=told).strip(),
        budgets=BUDGETS.format(count=given.count, items=8000, worlds=40, table=readings).strip(),
        command="python -m benchmarks.estimators",
        items=NUM_ITEMS,
        worlds=given.worlds,
        count=given.count,
        draws=given.draws,
        table=lines,
    )
    given.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
