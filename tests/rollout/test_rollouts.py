"""Many tasks at once, through everything that makes a scored tree."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlkit.policy.fake import FakeEngine
from rlkit.records import ScoredTree, Task, Tree
from rlkit.render import Renderer
from rlkit.rollout.ledger import Draw
from rlkit.rollout.loop import Rollouts, RolloutSettings
from tests.rollout.chats import chat_tokenizer
from tests.rollout.scenes import TASK, BabbleEngine, Scene

CHAT = chat_tokenizer("chatml")


class CountingScorer:
    async def score(self, tree: Tree) -> ScoredTree:
        return ScoredTree(tree=tree, terms=())

    def close(self) -> None:
        self.closed = True


def rollouts(engine: Any) -> Rollouts:
    return Rollouts(envs=Scene(), engine=engine, renderer=Renderer(CHAT), scorer=CountingScorer())


def test_rollouts_come_back_in_the_order_of_their_tasks_however_long_each_takes():
    tasks = [Task(id=f"q{i}", question="who?") for i in range(6)]
    parts = rollouts(FakeEngine(FakeEngine.Config(latency_s=0.02), script=["paris"], tokenizer=CHAT))
    found = parts.collect(tasks, RolloutSettings(group_size=2, max_completion_tokens=50, max_path_tokens=500))
    assert [scored.tree.task.id for scored in found] == [task.id for task in tasks]
    parts.close()
    assert parts.scorer.closed


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_groups_than_allowed_are_under_way(limit):
    under_way: set[str] = set()
    most = 0

    class Watching(BabbleEngine):
        async def sample(self, request):
            nonlocal most
            under_way.add(request.task_id)
            most = max(most, len(under_way))
            await asyncio.sleep(0.001)
            return await super().sample(request)

        def release(self, task_id):
            under_way.discard(task_id)

    settings = RolloutSettings(group_size=2, max_completion_tokens=5, max_path_tokens=500, max_concurrent_groups=limit)
    tasks = [Task(id=f"q{i}", question="who?") for i in range(8)]
    parts = rollouts(Watching(CHAT))
    assert len(parts.collect(tasks, settings)) == 8
    assert most == limit
    parts.close()


def test_a_task_drawn_again_in_a_later_epoch_is_not_a_clone():
    parts = rollouts(BabbleEngine(CHAT))
    settings = RolloutSettings(group_size=2, max_completion_tokens=20, max_path_tokens=500)
    draws = [Draw(task=TASK), Draw(task=TASK, number=1, epoch=1), Draw(task=TASK)]
    first, later, replay = (scored.tree for scored in parts.collect(draws, settings))
    assert {tree.task.id for tree in (first, later, replay)} == {"q1"}
    completions = [[t.completion for t in tree.trajectories()] for tree in (first, later, replay)]
    assert completions[0] == completions[2] != completions[1]
    parts.close()
