"""The gradient of the tree equals the gradient of the flattened batch, to rounding, for the whole family.

The flat side below is the textbook: every trajectory is a row of its own through the plain causal model, objectives
are written per trajectory from the papers' formulas, and nothing is shared with rlkit's credit, packing or losses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rlkit.algorithms import cispo, dapo, dr_grpo, grpo, gspo, reinforce_pp, rloo, sft, sibling_grpo, turn_grpo
from rlkit.algorithms.base import Algorithm, AlgorithmConfig
from rlkit.data.packing import pack, uncredited, with_logprobs
from rlkit.learner.gradient import add_gradients, reference_kl, score_rows
from rlkit.learner.tree_policy import TreePolicy
from rlkit.records import ScoredTree
from tests.forest import random_forest as bare_forest
from tests.forest import tiny_model

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": grpo.ALGORITHM,
    "dr_grpo": dr_grpo.ALGORITHM,
    "dapo": dapo.ALGORITHM,
    "gspo": gspo.ALGORITHM,
    "cispo": cispo.ALGORITHM,
    "rloo": rloo.ALGORITHM,
    "reinforce_pp": reinforce_pp.ALGORITHM,
    "sibling_grpo": sibling_grpo.ALGORITHM,
    "turn_grpo": turn_grpo.ALGORITHM,
    "sft": sft.ALGORITHM,
}


def random_forest(seed: int, **options) -> list[ScoredTree]:
    """Random trees whose second reward speaks of some turns, which only `turn_grpo` listens to."""
    rng, out = np.random.default_rng(seed), []
    for scored in bare_forest(seed, **options):
        silent = rng.random(len(scored.tree.nodes)) < 0.3
        spoken = np.where(silent, np.nan, rng.normal(0, 1, len(silent)))
        out.append(replace(scored, terms=(scored.terms[0], replace(scored.terms[1], node_values=spoken))))
    return out


AGGREGATIONS = ["sequence_mean", "sequence_sum", "token_mean", "group_token_mean", "constant"]
KL_MODES = [None, *itertools.product(["loss", "reward"], ["k1", "k2", "k3"])]


# ---------------------------------------------------------------------------------------------- the flat textbook


def flat_logprobs(model: torch.nn.Module, tree_index: int, scored: ScoredTree, leaf: int) -> Tensor:
    """[R] log-probabilities of one trajectory, as a row of its own through the plain causal model."""
    nodes = scored.tree.trajectory(leaf).nodes
    ids = torch.tensor(np.concatenate([n.token_ids for n in nodes]), dtype=torch.long)[None]
    logits = model(input_ids=ids).logits[0]
    out, position = [], 0
    for node in nodes:
        for i, token in enumerate(node.token_ids):
            if node.author == "policy":
                row = logits[position - 1] / node.sampling.temperature
                if node.sampling.support_offsets is not None:
                    kept = node.sampling.support_ids[
                        node.sampling.support_offsets[i] : node.sampling.support_offsets[i + 1]
                    ]
                    inside = torch.full_like(row, -torch.inf)
                    inside[torch.tensor(kept, dtype=torch.long)] = 0
                    row = row + inside
                out.append(torch.log_softmax(row, -1)[int(token)])
            position += 1
    return torch.stack(out)


def kl_term(policy: Tensor, reference: Tensor, config: AlgorithmConfig) -> Tensor:
    d = reference - policy
    value = {"k1": -d, "k2": d * d / 2, "k3": torch.exp(d) - 1 - d}[config.kl_estimator]
    return value if config.kl_max is None else value.clamp(-config.kl_max, config.kl_max)


def flat_advantages(name: str, rewards: list[np.ndarray], config: AlgorithmConfig) -> list[np.ndarray]:
    out = []
    for r in rewards:
        if name in ("grpo", "dapo", "gspo", "cispo", "sibling_grpo"):
            spread = np.std(r, ddof=config.std_ddof) if len(r) > 1 else 0.0
            out.append((r - r.mean()) / (spread + config.eps) if spread > 1e-8 else r * 0)
        elif name == "dr_grpo":
            out.append(r - r.mean())
        elif name == "rloo":
            out.append(np.array([r[i] - np.delete(r, i).mean() for i in range(len(r))]) if len(r) > 1 else r * 0)
        elif name == "sft":
            out.append(np.ones_like(r))
    return out


def flat_loss(
    name: str, model: torch.nn.Module, reference: torch.nn.Module, forest: list[ScoredTree], config
) -> Tensor:
    """The whole objective, one trajectory at a time."""
    groups = [np.flatnonzero(s.valid) for s in forest]
    new = [
        [flat_logprobs(model, i, s, leaf) for leaf in g] for i, (s, g) in enumerate(zip(forest, groups, strict=True))
    ]
    with torch.no_grad():
        ref = [
            [flat_logprobs(reference, i, s, leaf) for leaf in g]
            for i, (s, g) in enumerate(zip(forest, groups, strict=True))
        ]
    old = [
        [torch.tensor(s.tree.behavior_logprobs[s.tree.policy_tokens(leaf)]) for leaf in g]
        for s, g in zip(forest, groups, strict=True)
    ]
    rewards = [s.rewards[g] for s, g in zip(forest, groups, strict=True)]
    in_reward = config.kl_coef and config.kl_in == "reward"
    cost = [
        [config.kl_coef * kl_term(n.detach(), r, config).numpy() for n, r in zip(ns, rs, strict=True)]
        for ns, rs in zip(new, ref, strict=True)
    ]
    if name == "reinforce_pp":
        returns = [
            [
                rewards[i][j] - (np.cumsum(cost[i][j][::-1])[::-1] if in_reward else np.zeros(len(new[i][j])))
                for j in range(len(groups[i]))
            ]
            for i in range(len(forest))
        ]
        everything = np.concatenate([x for group in returns for x in group])
        mean, std = everything.mean(), everything.std()
        advantages = [[torch.tensor((x - mean) / (std + config.eps)) for x in group] for group in returns]
    else:
        if in_reward:
            rewards = [
                np.array([r - c.sum() for r, c in zip(rs, cs, strict=True)])
                for rs, cs in zip(rewards, cost, strict=True)
            ]
        if name == "turn_grpo":
            advantages = [flat_turns(s, g, r, config) for s, g, r in zip(forest, groups, rewards, strict=True)]
        else:
            scalars = flat_advantages(name, rewards, config)
            advantages = [
                [torch.full_like(n, float(a)) for n, a in zip(ns, scalar, strict=True)]
                for ns, scalar in zip(new, scalars, strict=True)
            ]
    num_sequences = sum(len(g) for g in groups)
    num_tokens = sum(len(n) for ns in new for n in ns)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(forest)):
        group_tokens = sum(len(n) for n in new[i])
        for n, o, r, a in zip(new[i], old[i], ref[i], advantages[i], strict=True):
            w = {
                "sequence_mean": 1 / (num_sequences * len(n)),
                "sequence_sum": 1 / num_sequences,
                "token_mean": 1 / num_tokens,
                "group_token_mean": 1 / (len(forest) * group_tokens),
                "constant": 1 / (num_sequences * config.constant_tokens),
            }[config.aggregation]
            ratio = (n - o).exp()
            if name == "gspo":
                s = (n - o).mean().exp()
                inside = torch.clamp(s, 1 - config.clip_low, 1 + config.clip_high)
                total = total - w * len(n) * torch.minimum(s * a[0], inside * a[0])
            elif name == "cispo":
                inside = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high).detach()
                total = total - (w * inside * a * n).sum()
            elif name == "sft":
                total = total - (w * n).sum()
            else:
                inside = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
                total = total - (w * torch.minimum(ratio * a, inside * a)).sum()
            if config.kl_coef and config.kl_in == "loss":
                total = total + config.kl_coef * (w * kl_term(n, r, config)).sum()
    if name == "sibling_grpo":
        total = total + flat_siblings(forest, groups, new, old, ref, rewards, config)
    return total


def flat_turns(scored: ScoredTree, group: np.ndarray, rewards: np.ndarray, config) -> list[Tensor]:
    """Per trajectory, from its first turn on: what is still to come, less the group's mean, over its deviation."""
    paths = [[n for n in scored.tree.path(scored.tree.leaves[leaf].node) if n in spoken(scored)] for leaf in group]
    most = max(map(len, paths))
    to_come = np.empty((len(paths), most))
    for row, (path, reward) in enumerate(zip(paths, rewards, strict=True)):
        left = reward
        for turn in range(most):
            to_come[row, turn] = left
            left -= spoken(scored)[path[turn]] if turn < len(path) else 0.0
    columns = flat_advantages("grpo", list(to_come.T), config)
    sizes = [[len(scored.tree.nodes[n].token_ids) for n in path] for path in paths]
    return [
        torch.tensor(np.repeat([columns[turn][row] for turn in range(len(size))], size))
        for row, size in enumerate(sizes)
    ]


def spoken(scored: ScoredTree) -> dict[int, float]:
    """What the weighted rewards said of each turn of the policy; silence is 0."""
    found = {index: 0.0 for index, node in enumerate(scored.tree.nodes) if node.author == "policy"}
    for term in scored.terms:
        for index in found if term.node_values is not None else ():
            found[index] += term.weight * np.nan_to_num(term.node_values[index])
    return found


def flat_siblings(forest, groups, new, old, ref, rewards, config) -> Tensor:
    """Eq. 19 from the candidates' point of view: a node's credit is spread evenly over the candidates through it."""
    total = torch.zeros((), dtype=torch.float64)
    for i, s in enumerate(forest):
        through: dict[int, list[tuple[int, int]]] = {}
        for j, leaf in enumerate(groups[i]):
            start = 0
            for node in s.tree.path(s.tree.leaves[leaf].node):
                if s.tree.nodes[node].author == "policy":
                    through.setdefault(node, []).append((j, start))
                    start += len(s.tree.nodes[node].token_ids)
        score = {node: np.mean([rewards[i][j] for j, _ in at]) for node, at in through.items()}
        for node, at in through.items():
            family = [score[m] for m in through if s.tree.nodes[m].parent == s.tree.nodes[node].parent]
            if len(family) < 2 or np.std(family) <= 1e-8:
                continue
            a = (score[node] - np.mean(family)) / (np.std(family) + config.eps)
            size = len(s.tree.nodes[node].token_ids)
            for j, start in at:
                span = slice(start, start + size)
                n, o, r = new[i][j][span], old[i][j][span], ref[i][j][span]
                w = 1 / (len(groups[i]) * size * len(at) * len(forest))
                ratio = (n - o).exp()
                inside = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
                total = total - (w * torch.minimum(ratio * a, inside * a)).sum()
                if config.kl_coef and config.kl_in == "loss":
                    total = total + config.kl_coef * (w * kl_term(n, r, config)).sum()
    return total


# ---------------------------------------------------------------------------------------------- the tree


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def flat_gradient(name: str, forest: list[ScoredTree], config) -> dict[str, Tensor]:
    model, reference = tiny_model(0), tiny_model(1)
    flat_loss(name, model, reference, forest, config).backward()
    return gradients(model)


def tree_gradient(
    name: str,
    forest: list[ScoredTree],
    config,
    row_tokens: int = 4096,
    order: Callable = lambda rows: rows,
    chunk: int = 512,
    ranks: int = 1,
) -> dict[str, Tensor]:
    policy, reference = TreePolicy(tiny_model(0), chunk=chunk), TreePolicy(tiny_model(1), chunk=chunk)
    algorithm = ALGORITHMS[name]
    scores = None
    plain = pack([uncredited(s) for s in forest], row_tokens)
    if config.needs_reference:
        scores = score_rows(reference, plain, [s.tree.num_tokens for s in forest])
    current = score_rows(policy, plain, [s.tree.num_tokens for s in forest])
    kl = reference_kl(current, scores, config) if scores is not None and config.kl_in == "reward" else None
    batch = pack(algorithm.credit(forest, config, kl), row_tokens)
    batch = with_logprobs(batch, reference=scores)
    total: dict[str, Tensor] = {}
    for rank in range(ranks):
        policy.zero_grad()
        add_gradients(policy, order(batch.rows[rank::ranks]), algorithm, config)
        for key, grad in gradients(policy.model).items():
            total[key] = total.get(key, 0) + grad
    return total


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest over parameters of |a - b| / |b|; a parameter may be absent only where the other side is 0."""
    worst = 0.0
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        x = torch.zeros_like(y) if x is None else x
        y = torch.zeros_like(x) if y is None else y
        worst = max(worst, float((x - y).norm() / y.norm().clamp(min=1e-12)))
    return worst


def config_for(name: str, aggregation: str = "sequence_mean", kl=None, **more) -> AlgorithmConfig:
    extra: dict = {"aggregation": aggregation, "constant_tokens": 7, **more}
    if kl is not None:
        extra |= {"kl_coef": 0.3, "kl_in": kl[0], "kl_estimator": kl[1]}
    return ALGORITHMS[name].config(**extra)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_tree_gradient_is_the_flat_gradient_for_every_kl_mode(name: str, aggregation: str) -> None:
    forest = random_forest(1)
    for kl in KL_MODES:
        config = config_for(name, aggregation, kl)
        flat, tree = flat_gradient(name, forest, config), tree_gradient(name, forest, config)
        assert relative_difference(tree, flat) <= 1e-10, (name, aggregation, kl)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("seed", range(2, 6))
def test_the_tree_gradient_is_the_flat_gradient_on_many_random_trees(name: str, seed: int) -> None:
    forest = random_forest(seed, truncated=seed % 2 == 0, temperature=0.7 if seed > 3 else 1.0)
    config = config_for(name, AGGREGATIONS[seed % 5], KL_MODES[seed % 7])
    assert relative_difference(tree_gradient(name, forest, config), flat_gradient(name, forest, config)) <= 1e-10


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_a_bounded_kl_is_bounded_in_the_tree_too(place: str) -> None:
    forest = random_forest(3)
    bounded, free = config_for("grpo", kl=(place, "k3"), kl_max=0.5), config_for("grpo", kl=(place, "k3"))
    flat = flat_gradient("grpo", forest, bounded)
    assert relative_difference(tree_gradient("grpo", forest, bounded), flat) <= 1e-10
    assert relative_difference(flat, flat_gradient("grpo", forest, free)) > 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_order_packing_chunks_and_ranks_leave_the_gradient_alone(name: str) -> None:
    forest = random_forest(7, truncated=True)
    config = config_for(name, "token_mean", ("loss", "k3"))
    whole = tree_gradient(name, forest, config)
    variants = {
        "one tree a row": tree_gradient(name, forest, config, row_tokens=60),
        "trees split by leaves": tree_gradient(name, forest, config, row_tokens=35),
        "rows reversed": tree_gradient(name, forest, config, row_tokens=35, order=lambda rows: rows[::-1]),
        "head in chunks of three": tree_gradient(name, forest, config, chunk=3),
        "two ranks": tree_gradient(name, forest, config, row_tokens=35, ranks=2),
        "trees in another order": tree_gradient(name, forest[::-1], config),
    }
    for label, gradient in variants.items():
        assert relative_difference(gradient, whole) <= 1e-10, label


def test_splitting_really_splits() -> None:
    forest = random_forest(7, truncated=True)
    credited = ALGORITHMS["grpo"].credit(forest, config_for("grpo"), None)
    assert len(pack(credited, 4096).rows) == 1
    assert len(pack(credited, 35).rows) > len(forest)
