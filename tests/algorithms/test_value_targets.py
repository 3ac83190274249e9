"""Value targets against oracle (c) of papers/v_star_paper.md section 10, from rewards to the learner's loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlkit.algorithms import grpo
from rlkit.algorithms.value_targets import calibration, level_rewards, returns, value_edges, with_values
from rlkit.data.packing import pack
from rlkit.errors import LearnerError
from rlkit.learner.gradient import add_gradients, squared_errors
from rlkit.learner.tree_policy import RowInputs, TreePolicy
from rlkit.models.value_head import add_value_head
from rlkit.recipe import ValueSettings
from rlkit.records import Leaf, Node, NodeSearch, SamplingState, ScoredTree, Task, Tree
from tests.forest import scored, tiny_model

SIDS = [(1, 2, 3), (1, 2, 4), (1, 5, 6), (7, 8, 9), (7, 8, 10)]
REWARDS = np.array(
    [[0.3, 0.5, 1.0], [0.3, 0.5, -0.2], [0.3, -0.2, -0.4], [-0.3949, -0.6581, -1.0], [-0.3949, -0.6581, -1.6]]
)
VALUES = {
    (1,): 0.5, (1, 2): 0.7, (1, 2, 3): 0.9, (1, 2, 4): -0.2, (1, 5): -0.1, (1, 5, 6): -0.3,
    (7,): -0.2, (7, 8): -0.3, (7, 8, 9): -0.8, (7, 8, 10): -1.2,
}  # fmt: skip
SETTINGS = ValueSettings(head="mlp", reward="near")


def trie_tree(prompt: int = 11) -> tuple[Tree, dict[tuple[int, ...], int]]:
    """The five candidates below a prompt of two tokens, and the node of each prefix."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.array([prompt, 12], np.int32))]
    at: dict[tuple[int, ...], int] = {(): 0}
    for sid in SIDS:
        for level in (1, 2, 3):
            if (prefix := sid[:level]) not in at:
                at[prefix] = len(nodes)
                nodes.append(
                    Node(
                        parent=at[prefix[:-1]],
                        author="policy",
                        token_ids=np.array([prefix[-1]], np.int32),
                        behavior_logprobs=np.full(1, -1.0, np.float32),
                        sampling=SamplingState(),
                    )
                )
    leaves = tuple(Leaf(node=at[sid], sample_index=i, status="done") for i, sid in enumerate(SIDS))
    return Tree(task=Task(id=f"u{prompt}", question="?"), nodes=tuple(nodes), leaves=leaves), at


def group(tree: Tree, hits: tuple[float, ...] = (1, 0, 0, 0, 0)) -> ScoredTree:
    levels = [(f"near/level_{level + 1}", 0.0, REWARDS[:, level]) for level in range(3)]
    return scored(tree, ("hit", 1.0, hits), *levels)


def test_the_squared_td_error_is_that_of_the_worked_example() -> None:
    tree, at = trie_tree()
    [edges] = value_edges([group(tree)], SETTINGS)
    credited = with_values(grpo.ALGORITHM.credit([group(tree)], grpo.GrpoConfig(), None), SETTINGS)
    [row] = pack(credited, 100).rows
    prefixes = sorted(at.items(), key=lambda item: item[1])
    values = torch.tensor([0.0, *(VALUES[prefix] for prefix, _ in prefixes[1:])], dtype=torch.float64)
    errors, weights = squared_errors(values, row)
    assert len(edges.node) == len(errors) == 15
    assert float((errors * weights).sum()) == pytest.approx(0.385739, abs=2e-5)  # rewards are given to 4 digits


def test_targets_bootstrap_on_the_next_prefix_and_include_the_token_already_placed() -> None:
    tree, at = trie_tree()
    [edges] = value_edges([group(tree)], SETTINGS)
    name = {node: prefix for prefix, node in at.items()}
    targets = [
        float(r) + 0.99 * (VALUES[name[int(n)]] if n >= 0 else 0.0)
        for r, n in zip(edges.reward, edges.next, strict=True)
    ]
    expected = [0.993, 1.391, 1.0, 0.993, 0.302, -0.2, 0.201, -0.497, -0.4]
    expected += [-0.6919, -1.4501, -1.0, -0.6919, -1.8461, -1.6]
    assert targets == pytest.approx(expected, abs=1e-4)


def test_monte_carlo_targets_are_the_discounted_sums() -> None:
    expected = [[1.7751, 1.49, 1.0], [0.599, 0.302, -0.2], [-0.29, -0.596, -0.4]]
    expected += [[-2.0265, -1.6481, -1.0], [-2.6146, -2.2421, -1.6]]
    assert returns(REWARDS, 0.99) == pytest.approx(np.array(expected), abs=1e-4)
    tree, _ = trie_tree()
    [edges] = value_edges([group(tree)], replace(SETTINGS, target="monte_carlo"))
    assert (edges.next == -1).all() and edges.reward.reshape(5, 3) == pytest.approx(np.array(expected), abs=1e-4)


def test_levels_that_were_not_judged_are_left_out_and_requests_weigh_the_same() -> None:
    tree, _ = trie_tree()
    broken = group(tree)
    silent = broken.terms[2].values.copy()
    silent[[0, 3]] = np.nan
    term = replace(
        broken.terms[2], values=silent, status=tuple("ok" if np.isfinite(v) else "failed: x" for v in silent)
    )
    broken = replace(broken, terms=(*broken.terms[:2], term, broken.terms[3]))
    first, second = value_edges([broken, group(trie_tree(13)[0])], SETTINGS)
    assert len(first.node) == 13 and len(second.node) == 15
    assert first.weight.sum() == pytest.approx(0.5) and second.weight.sum() == pytest.approx(0.5)
    assert np.isnan(level_rewards(broken, "near")[0, 1])


def test_a_reward_without_levels_is_refused_by_name() -> None:
    tree, _ = trie_tree()
    with pytest.raises(LearnerError, match="'hit/level_1'"):
        value_edges([group(tree)], replace(SETTINGS, reward="hit"))


def policy(head: str = "block") -> TreePolicy:
    model = tiny_model()
    add_value_head(model, head)  # type: ignore[arg-type]
    torch.manual_seed(5)
    torch.nn.init.normal_(model.value_head.regressor[-1].weight)
    return TreePolicy(model)


def gradients(module: TreePolicy, trees: list[ScoredTree], row_tokens: int, *, warm: bool = False) -> dict[str, object]:
    module.zero_grad()
    credited = with_values(grpo.ALGORITHM.credit(trees, grpo.GrpoConfig(), None), SETTINGS, policy_learns=not warm)
    metrics = add_gradients(module, pack(credited, row_tokens).rows, grpo.ALGORITHM, grpo.GrpoConfig())
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"metrics": metrics, **found}


@pytest.mark.parametrize("head", ["mlp", "block"])
def test_values_of_a_packed_tree_are_those_of_single_paths(head: str) -> None:
    tree, at = trie_tree()
    module = policy(head)
    [row] = pack(with_values(grpo.ALGORITHM.credit([group(tree)], grpo.GrpoConfig(), None), SETTINGS), 100).rows
    values = module(RowInputs.of(row, torch.device("cpu"), torch.float64))[2].detach()
    model = tiny_model()
    model.load_state_dict({n: p for n, p in module.model.state_dict().items() if not n.startswith("value_head")})
    for index, (prefix, _) in enumerate(sorted(at.items(), key=lambda item: item[1])):
        ids = torch.tensor([[11, 12, *prefix]])
        states = model.base_model(input_ids=ids).last_hidden_state[0, 1:]
        alone = module.model.value_head(states[None], torch.ones(1, len(states), dtype=torch.bool))
        assert float(values[index]) == pytest.approx(alone.item(), abs=1e-10), prefix


def test_a_value_gradient_does_not_depend_on_how_trees_are_packed() -> None:
    trees = [group(trie_tree(prompt)[0]) for prompt in (11, 13, 14)]
    module = policy()
    whole, split = gradients(module, trees, 200), gradients(module, trees, 9)
    assert set(whole) == set(split)
    for name in set(whole) - {"metrics"}:
        assert torch.allclose(whole[name], split[name], rtol=1e-9, atol=1e-12), name  # type: ignore[arg-type]
    total, weight = whole["metrics"]["value/loss"]  # type: ignore[index]
    assert weight == pytest.approx(1.0) and total > 0


def test_a_detached_head_leaves_the_policy_alone_and_a_warm_up_only_trains_values() -> None:
    trees = [group(trie_tree()[0], hits=(0, 0, 0, 0, 0))]  # no hit: GRPO has nothing to say
    module = policy()
    attached = gradients(module, trees, 100)
    assert float(attached["model.model.embed_tokens.weight"].norm()) > 0  # type: ignore[attr-defined]
    module.detach_values = True
    detached = gradients(module, trees, 100)
    assert float(detached["model.model.embed_tokens.weight"].norm()) == 0  # type: ignore[attr-defined]
    assert float(detached["model.value_head.regressor.2.weight"].norm()) > 0  # type: ignore[attr-defined]
    hit = [group(trie_tree()[0])]
    assert float(gradients(module, hit, 100)["model.model.embed_tokens.weight"].norm()) > 0  # type: ignore[attr-defined]
    warm = gradients(module, hit, 100, warm=True)
    assert float(warm["model.model.embed_tokens.weight"].norm()) == 0  # type: ignore[attr-defined]


def test_calibration_compares_what_the_search_believed_with_what_followed() -> None:
    tree, at = trie_tree()
    searched = {
        at[prefix]: NodeSearch(value=value, entropy=0.0, visits=1, in_beam=True) for prefix, value in VALUES.items()
    }
    nodes = tuple(replace(node, search=searched.get(index)) for index, node in enumerate(tree.nodes))
    found = calibration([group(replace(tree, nodes=nodes))], SETTINGS)
    told = returns(REWARDS, 0.99)
    errors = [VALUES[sid[: level + 1]] - told[i, level] for i, sid in enumerate(SIDS) for level in range(3)]
    assert found["value/bias"] == pytest.approx((sum(errors), 15))
    assert found["value/squared_error"] == pytest.approx((sum(e * e for e in errors), 15))
    # Level 1 has two prefixes only. Level 2: V orders .7, -.1, -.3 as the mean returns .896, -.596, -1.945; level 3:
    # V .9, -.2, -.3, -.8, -1.2 as the returns 1, -.2, -.4, -1, -1.6. Both in perfect order.
    assert found["value/rank_correlation"] == pytest.approx((2.0, 2.0))
