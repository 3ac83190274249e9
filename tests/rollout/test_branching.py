"""Samples that share their first turns."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from rlkit.algorithms import sibling_grpo, turn_grpo
from rlkit.env import EnvStep
from rlkit.envs.agentic_search import AgenticSearch
from rlkit.policy.base import SampleRequest, Sampling
from rlkit.policy.fake import FakeEngine
from rlkit.records import ScoredTree, Task, Tree
from rlkit.render import Renderer
from rlkit.retriever import Passage, Retrieval
from rlkit.rollout.branching import Branching
from rlkit.rollout.loop import rollout_tree
from rlkit.rollout.scoring import RewardSpec, Scorer
from tests.rollout.chats import chat_tokenizer
from tests.rollout.scenes import Scene

CHAT = chat_tokenizer("chatml")
TASK = Task(
    id="q1", question="Where?", answers=("Ulm",), data={"reference": {"ref_steps": ["red fox", "fox den of [it]"]}}
)
FORKED = Branching(branches=2)


class Library:
    """Answers every query with a passage that names it."""

    async def search(self, queries: list[str], top_k: int) -> list[Retrieval]:
        return [Retrieval(passages=(Passage(id="p", title="", text=f"about {query}"),)) for query in queries]


def script(request: SampleRequest) -> str:
    """Everyone searches first; then sample 1 answers, the others search once more, each in its own words."""
    if request.turn == 0:
        return f"<think>1. red fox\n2. fox den</think><search>red fox {request.sample_index}</search>"
    if request.turn == 1 and request.sample_index != 1:
        return f"<search>fox den {request.sample_index}</search>"
    return "<answer>Ulm</answer>" if request.sample_index % 2 else "<answer>Bern</answer>"


def roll(branching: Branching, *, says: Any = script, group_size: int = 4, envs: Any = None, **options: Any) -> Tree:
    engine = FakeEngine(script=says, tokenizer=CHAT)
    return asyncio.run(
        rollout_tree(
            TASK,
            envs=envs or AgenticSearch(AgenticSearch.Config(), Library()),  # type: ignore[arg-type]
            engine=engine,
            renderer=Renderer(CHAT),
            sampling=Sampling(),
            group_size=group_size,
            max_completion_tokens=200,
            max_path_tokens=4000,
            branching=branching,
            **options,
        )
    )


def said(tree: Tree, leaf: int) -> list[str]:
    return [node.text for node in tree.trajectory(leaf).nodes if node.author == "policy"]


def test_siblings_share_the_first_search_and_part_after_it() -> None:
    tree = roll(FORKED)
    assert [leaf.sample_index for leaf in tree.leaves] == [0, 1, 2, 3]
    for trunk, branch in ((0, 1), (2, 3)):
        one, other = tree.path(tree.leaves[trunk].node), tree.path(tree.leaves[branch].node)
        assert one[:3] == other[:3] and not set(one[3:]) & set(other[3:])  # prompt, search, observation
    assert "red fox 0" in said(tree, 1)[0] and "red fox 2" in said(tree, 3)[0]
    assert "fox den 3" in said(tree, 3)[1]  # the branch's own draw
    assert tree.num_tokens < roll(Branching()).num_tokens


def test_each_branch_keeps_its_own_counts() -> None:
    tree = roll(FORKED)
    assert [leaf.signals["num_searches"] for leaf in tree.leaves] == [2, 1, 2, 2]
    assert [leaf.answer for leaf in tree.leaves] == ["Bern", "Ulm", "Bern", "Ulm"]


def test_a_trunk_may_be_of_several_turns() -> None:
    tree = roll(replace(FORKED, fork_turn=2))
    assert [leaf.signals["num_searches"] for leaf in tree.leaves] == [2, 2, 2, 2]
    assert tree.path(tree.leaves[0].node)[:5] == tree.path(tree.leaves[1].node)[:5]


def test_a_trunk_that_ends_before_the_fork_has_nothing_to_share() -> None:
    tree = roll(FORKED, says=lambda request: f"<answer>{request.sample_index}</answer>")
    assert [leaf.answer for leaf in tree.leaves] == ["0", "1", "2", "3"]
    assert [tree.nodes[leaf.node].parent for leaf in tree.leaves] == [0, 0, 0, 0]


def test_a_branch_is_replayed_alone_with_its_trunk() -> None:
    whole, alone = roll(FORKED), roll(FORKED, sample_indices=[3])
    assert [leaf.sample_index for leaf in alone.leaves] == [3]
    assert [node.text for node in alone.trajectory(0).nodes] == [node.text for node in whole.trajectory(3).nodes]
    assert [list(node.token_ids) for node in alone.trajectory(0).nodes] == [
        list(node.token_ids) for node in whole.trajectory(3).nodes
    ]


def test_a_budget_of_unique_tokens_stops_new_branches() -> None:
    eight = roll(Branching(branches=4), group_size=8)
    assert len(eight.leaves) == 8
    tight = roll(Branching(branches=4, max_unique_tokens=1), group_size=8)
    assert [leaf.sample_index for leaf in tight.leaves] == [0, 1, 4, 5]  # the first branch of each trunk is begun
    enough = roll(Branching(branches=4, max_unique_tokens=tight.num_tokens + 1), group_size=8)
    assert [leaf.sample_index for leaf in enough.leaves] == [0, 1, 2, 4, 5, 6]
    assert enough.num_tokens <= eight.num_tokens


def test_an_environment_that_cannot_fork_fails_the_branches_only() -> None:
    tree = roll(FORKED, envs=Scene(lambda n: {0: EnvStep(text=" more")}), says=lambda request: "hm")
    assert [leaf.status for leaf in tree.leaves] == ["done", "failed", "done", "failed"]
    assert tree.leaves[1].reason == "Act has no fork(), so its samples cannot share their first turns"


def score(tree: Tree) -> ScoredTree:
    spec = RewardSpec(name="p1", spec="rlkit.rewards.search_p1:search_p1", settings={"turn_credit": True})
    scorer = Scorer([spec], isolate=False)
    try:
        return asyncio.run(scorer.score(tree))
    finally:
        scorer.close()


def test_turn_credit_reaches_the_nodes_of_a_forked_tree() -> None:
    scored = score(roll(FORKED))
    term = scored.terms[0]
    assert term.node_values is not None
    first = scored.tree.path(scored.tree.leaves[0].node)[1]
    # The first search does one of two steps with one search: 0.3 · 1/2 · 1/1, for both leaves below it.
    assert term.node_values[first] == pytest.approx(0.15)
    second = scored.tree.path(scored.tree.leaves[0].node)[3]
    assert term.node_values[second] == pytest.approx(0.15)  # then R_path is 2/2 · 2/2
    # Leaves: Bern after 2 searches 0.3·1 + 0.6·0.2 + 0.1, Ulm after 1: 0.3·0.5 + 0.6 + 0.1, Ulm after 2: 1.
    assert scored.rewards == pytest.approx([0.52, 0.85, 0.52, 1.0])


@pytest.mark.parametrize("algorithm", [sibling_grpo.ALGORITHM, turn_grpo.ALGORITHM])
def test_siblings_of_one_fork_get_different_credit(algorithm: Any) -> None:
    scored = score(roll(FORKED))
    [credited] = algorithm.credit([scored], algorithm.config(), None)
    tree = scored.tree
    starts = [tree.offsets[tree.path(leaf.node)[3]] for leaf in tree.leaves]
    net = [credited.c_pos[start] + credited.c_neg[start] for start in starts]
    assert net[1] > 0 > net[0] and net[3] > 0 > net[2]
