"""Engines that grow a task's whole tree: what the loop makes of it, with a grower that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rlkit.env import EnvStep
from rlkit.errors import EngineError
from rlkit.metrics import finalise, rollout_metrics
from rlkit.policy.base import Grower, GrowRequest, Growth, Sampling
from rlkit.policy.fake import FakeEngine
from rlkit.records import Message, Node, NodeSearch, SamplingState, ScoredTree, SearchReport, Tree
from rlkit.render import Renderer
from rlkit.rollout.loop import rollout_tree
from tests.rollout.chats import chat_tokenizer
from tests.rollout.scenes import TASK, Scene

CHAT = chat_tokenizer("chatml")
REPORT = SearchReport(sampler="ved", budget=10, num_charged=8, num_evaluated=7, num_forwards=4, num_leaves=2)


class ScriptedGrower:
    """Grows the words of `answers`, letter by letter; equal beginnings are shared."""

    version = 4

    def __init__(self, answers: Sequence[str], problem: str = "") -> None:
        self.answers, self.problem = answers, problem
        self.asked: list[GrowRequest] = []

    async def grow(self, request: GrowRequest) -> Growth:
        self.asked.append(request)
        if self.problem:
            raise EngineError(self.problem)
        nodes: list[Node] = []
        places: dict[str, int] = {"": -1}
        for answer in self.answers:
            for size, letter in enumerate(answer, start=1):
                if answer[:size] not in places:
                    places[answer[:size]] = len(nodes)
                    nodes.append(
                        Node(
                            parent=places[answer[: size - 1]],
                            author="policy",
                            token_ids=np.array(CHAT.encode(letter), np.int32)[:1],
                            text=letter,
                            behavior_logprobs=np.array([-1.0], np.float32),
                            policy_version=4,
                            sampling=SamplingState(),
                            search=NodeSearch(value=0.0, entropy=0.0, visits=1, in_beam=answer != "cc"),
                        )
                    )
        return Growth(nodes=tuple(nodes), candidates=tuple(places[answer] for answer in self.answers), search=REPORT)

    async def sample(self, request: Any) -> Any:
        raise EngineError("it grows trees")

    def release(self, task_id: str) -> None:
        pass


def roll(engine: Any, scene: Scene | None = None, **changes: Any) -> Tree:
    settings = {"sampling": Sampling(), "group_size": 4, "max_completion_tokens": 3, "max_path_tokens": 500} | changes
    call = rollout_tree(TASK, envs=scene or Scene(), engine=engine, renderer=Renderer(CHAT), **settings)
    return asyncio.run(call)


def test_candidates_share_the_nodes_that_were_grown_once() -> None:
    engine = ScriptedGrower(["ab", "ac", "ab", "b"])
    tree = roll(engine)
    assert [node.text for node in tree.nodes[1:]] == ["a", "b", "c", "b"]
    assert [node.parent for node in tree.nodes[1:]] == [0, 1, 1, 0]
    assert [leaf.answer for leaf in tree.leaves] == ["ab", "ac", "ab", "b"]
    assert tree.leaves[0].node == tree.leaves[2].node  # drawn twice, one node
    assert tree.search == REPORT
    [request] = engine.asked
    assert (request.num_candidates, request.max_tokens, request.task_id) == (4, 3, "q1")
    assert request.token_ids.tolist() == tree.nodes[0].token_ids.tolist()


def test_fewer_candidates_than_samples_leave_fewer_leaves_and_no_copies() -> None:
    scene = Scene()
    tree = roll(ScriptedGrower(["a", "b"]), scene)
    assert [(leaf.sample_index, leaf.answer) for leaf in tree.leaves] == [(0, "a"), (1, "b")]
    assert [act.closed for act in scene.made] == [1, 1, 1, 1]


def test_a_replayed_sample_is_the_one_it_was_in_its_group() -> None:
    engine = ScriptedGrower(["a", "b", "c"])
    tree = roll(engine, sample_indices=[2])
    assert [leaf.answer for leaf in tree.leaves] == ["c"] and engine.asked[0].num_candidates == 4


def test_a_grower_that_fails_fails_every_sample_with_its_reason() -> None:
    tree = roll(ScriptedGrower([], problem="budget below one path"))
    assert {(leaf.status, leaf.reason) for leaf in tree.leaves} == {("failed", "engine: budget below one path")}
    assert len(tree.leaves) == 4


def test_an_environment_that_asks_on_is_told_that_only_trees_are_grown() -> None:
    more = EnvStep(messages=(Message(role="user", content="and then?"),))
    tree = roll(ScriptedGrower(["a", "b", "c", "d"]), Scene(lambda n: {0: more} if n == 1 else {}))
    assert [leaf.status for leaf in tree.leaves] == ["done", "failed", "done", "done"]
    assert tree.leaves[1].reason == "engine: it grows trees"


def test_only_an_engine_with_grow_is_a_grower() -> None:
    assert isinstance(ScriptedGrower([]), Grower)
    assert not isinstance(FakeEngine(script=("x",), tokenizer=CHAT), Grower)


def test_what_a_search_cost_is_measured() -> None:
    tree = roll(ScriptedGrower(["ab", "ac", "ab", "cc"]))
    found = finalise(rollout_metrics([ScoredTree(tree=tree, terms=())], learner_version=4))
    searched = {name: value for name, value in found.items() if name.startswith("search/")}
    assert searched == {
        "search/evaluated": 7.0,
        "search/leaves": 2.0,
        "search/charged": 8.0,
        "search/unspent": pytest.approx(0.2),
        "search/forwards": 4.0,
        "search/candidates": 3.0,  # ab was found twice
        "search/beyond_beam": 0.25,
    }
