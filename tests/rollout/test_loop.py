"""The rollout loop, with scripted environments and engines, and no model."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.env import EnvStep
from rlkit.errors import EngineError, EnvError
from rlkit.policy.base import Sampling
from rlkit.policy.fake import FakeEngine
from rlkit.records import Message, Task, Tree
from rlkit.render import Renderer
from rlkit.rollout.loop import rollout_tree
from tests.rollout.chats import FAMILIES, chat_tokenizer
from tests.rollout.scenes import TASK, BabbleEngine, Scene, opening

CHAT = chat_tokenizer("chatml")
SETTINGS = {"sampling": Sampling(), "group_size": 3, "max_completion_tokens": 50, "max_path_tokens": 500}


def fake(script: Any = ("paris", "rome"), **settings: Any) -> FakeEngine:
    return FakeEngine(script=script, tokenizer=CHAT, **settings)


def roll(scene: Scene | None = None, engine: Any = None, task: Task = TASK, **changes: Any) -> Tree:
    return asyncio.run(
        rollout_tree(
            task,
            envs=scene or Scene(),
            engine=engine or fake(),
            renderer=Renderer(CHAT),
            **(SETTINGS | changes),
        )
    )


def authors(tree: Tree, leaf: int) -> list[tuple[str, int]]:
    return [(node.author, node.turn) for node in tree.trajectory(leaf).nodes]


def test_a_single_turn_is_a_prompt_with_one_child_per_sample():
    scene, engine = Scene(), fake()
    tree = roll(scene, engine)
    assert [node.parent for node in tree.nodes] == [-1, 0, 0, 0]
    assert tree.nodes[0].text == "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n"
    assert [leaf.sample_index for leaf in tree.leaves] == [0, 1, 2]
    assert {leaf.status for leaf in tree.leaves} == {"done"}
    assert {leaf.answer for leaf in tree.leaves} <= {"paris", "rome"}  # without the end token
    assert {request.num_shared for request in engine.requests} == {len(tree.nodes[0].token_ids)}
    assert engine.released == ["q1"]
    assert [act.closed for act in scene.made] == [1, 1, 1]


def test_an_observation_inside_the_turn_is_raw_text_and_belongs_to_the_turn_before_it():
    found = "<information>Paris<|im_end|></information>"
    scene = Scene(lambda n: {-1: opening(stop=("</search>",)), 0: EnvStep(text=found)})
    tree = roll(scene, fake(["<search>x</search> and more"]), group_size=1)
    assert authors(tree, 0) == [("prompt", 0), ("policy", 0), ("environment", 0), ("policy", 1)]
    assert [node.text for node in tree.nodes[1:]] == [
        "<search>x</search>",
        found,
        "<search>x</search> and more<|im_end|>",
    ]
    assert CHAT.eos_token_id not in tree.nodes[2].token_ids
    assert tree.trajectory(0).turns[0].observation == found
    assert scene.made[0].heard == ["<search>x</search>", "<search>x</search> and more"]


def test_new_messages_close_the_turn_once_and_open_the_next():
    reply = EnvStep(messages=(Message(role="user", content="again"),), text="<think>")
    for stop, completion in (((), "no<|im_end|>"), (("no",), "no")):
        scene = Scene(lambda n, stop=stop: {-1: opening(stop=stop), 0: reply})
        tree = roll(scene, fake(["no"]), group_size=1)
        assert tree.nodes[1].text == completion
        path = tree.nodes[1].text + tree.nodes[2].text
        assert path == "no<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n<think>"


def test_a_prefill_is_an_environment_node_that_all_samples_share():
    engine = fake()
    tree = roll(Scene(lambda n: {-1: opening(text="<think>")}), engine)
    assert [(node.author, node.parent) for node in tree.nodes] == [
        ("prompt", -1),
        ("environment", 0),
        ("policy", 1),
        ("policy", 1),
        ("policy", 1),
    ]
    assert tree.nodes[1].text == "<think>"
    assert tree.trajectory(0).turns[0].observation == ""  # it came before the turn, not after
    assert {request.num_shared for request in engine.requests} == {
        len(tree.nodes[0].token_ids) + len(tree.nodes[1].token_ids)
    }


def test_prefills_that_differ_stay_apart():
    engine = fake()
    tree = roll(Scene(lambda n: {-1: opening(text="ab"[n % 2])}), engine)
    assert [node.parent for node in tree.nodes] == [-1, 0, 1, 1, 0, 4]  # samples 0 and 2 share "a"
    assert {request.num_shared for request in engine.requests} == {len(tree.nodes[0].token_ids)}


def test_two_equal_completions_stay_two_nodes():
    tree = roll(engine=fake(["same"]))
    assert len(tree.nodes) == 4


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EnvError("tool: deadline of 2 s"), "tool: deadline of 2 s"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        ("text", "Act returned str instead of an EnvStep"),
    ],
)
@pytest.mark.parametrize("turn", [-1, 0, 1])
def test_an_environment_that_fails_ends_its_own_sample_only(error, reason, turn):
    more = EnvStep(text=" more", signals={"num_searches": 1.0})
    scene = Scene(lambda n: {0: more} | ({turn: error} if n == 1 else {}))
    tree = roll(scene)
    assert [leaf.status for leaf in tree.leaves] == ["done", "failed", "done"]
    assert tree.leaves[1].reason == reason
    assert len(tree.trajectory(1).turns) == turn + 1  # what was sampled before is kept
    assert tree.leaves[1].signals == ({"num_searches": 1.0} if turn == 1 else {})
    assert [act.closed for act in scene.made] == [1, 1, 1]


def test_an_environment_that_hangs_ends_its_own_sample_only():
    class Sleepy(Scene):
        def make(self):
            act = super().make()
            if len(self.made) == 2:
                act.step = lambda completion: asyncio.sleep(60)
            return act

    tree = roll(Sleepy(), env_deadline_s=0.05)
    assert [leaf.status for leaf in tree.leaves] == ["done", "failed", "done"]
    assert tree.leaves[1].reason == "environment: deadline of 0.05 s"


def test_an_environment_that_cannot_be_closed_costs_nothing(caplog):
    class Sticky(Scene):
        def make(self):
            act = super().make()
            act.close = fail
            return act

    async def fail() -> None:
        raise OSError("stuck")

    assert {leaf.status for leaf in roll(Sticky()).leaves} == {"done"}
    assert "task q1, sample 0: close: OSError: stuck" in caplog.text


def test_an_engine_that_refuses_one_sample_fails_that_leaf():
    def script(request: Any) -> str:
        if request.sample_index == 1:
            raise EngineError("no room")
        return "paris"

    tree = roll(engine=fake(script))
    assert [(leaf.status, leaf.reason) for leaf in tree.leaves] == [
        ("done", ""),
        ("failed", "engine: no room"),
        ("done", ""),
    ]


def test_a_mistake_in_the_engine_goes_on_and_still_frees_everything():
    def script(request: Any) -> str:
        raise KeyError("bug")

    scene, engine = Scene(), fake(script)
    with pytest.raises(KeyError, match="bug"):
        roll(scene, engine)
    assert engine.released == ["q1"]
    assert [act.closed for act in scene.made] == [1, 1, 1]


def test_samples_that_are_given_different_prompts_all_fail():
    tree = roll(Scene(lambda n: {-1: opening("ab"[n % 2] * 3)}))
    assert {leaf.status for leaf in tree.leaves} == {"failed"}
    size = len(Renderer(CHAT).prompt(opening("aaa").messages)[0])
    assert tree.leaves[0].reason == f"samples were given different prompts, of {size}, {size} tokens"
    assert len(tree.nodes) == 1


def test_a_prompt_that_fills_the_context_fails_every_leaf_with_both_numbers():
    size = len(Renderer(CHAT).prompt(opening().messages)[0])
    tree = roll(max_path_tokens=size)
    assert {leaf.reason for leaf in tree.leaves} == {
        f"prompt_too_long: a prompt of {size} tokens leaves no room for a completion in {size}"
    }
    assert roll(max_path_tokens=size + 1).leaves[0].status == "truncated"  # one token fits


def test_a_task_that_no_environment_can_open_is_a_tree_of_failed_leaves():
    tree = roll(Scene(lambda n: {-1: EnvError("gone")}))
    assert [leaf.reason for leaf in tree.leaves] == ["gone"] * 3
    assert [node.text for node in tree.nodes] == ["who?"]  # a tree needs a root


def test_a_task_that_is_over_at_its_start_asks_no_completion():
    engine = fake()
    tree = roll(Scene(lambda n: {-1: opening(done=True, status="truncated", reason="empty")}), engine)
    assert [(leaf.status, leaf.reason) for leaf in tree.leaves] == [("truncated", "empty")] * 3
    assert engine.requests == []


def test_a_completion_that_hits_its_cap_is_truncated_though_the_environment_called_it_done():
    tree = roll(engine=fake(["a long answer"]), max_completion_tokens=4)
    assert {(leaf.status, leaf.reason) for leaf in tree.leaves} == {("truncated", "max_completion_tokens: 4")}
    capped = roll(Scene(lambda n: {-1: opening(max_tokens=2)}), fake(["a long answer"]))
    assert {leaf.reason for leaf in capped.leaves} == {"max_completion_tokens: 2"}


def test_an_observation_that_leaves_no_room_is_not_added():
    scene = Scene(lambda n: {-1: opening(stop=("?",)), 0: EnvStep(text="x" * 1000, signals={"num_searches": 1.0})})
    tree = roll(scene, fake(["who?"]))
    assert {(leaf.status, leaf.reason) for leaf in tree.leaves} == {("truncated", "max_path_tokens: 500")}
    assert tree.leaves[0].signals == {"num_searches": 1.0}
    assert {node.author for node in tree.nodes[1:]} == {"policy"}


def test_a_sample_replayed_alone_is_the_sample_of_the_group():
    scene = lambda: Scene(lambda n: {0: EnvStep(text="<information>x</information>")})  # noqa: E731
    group = roll(scene(), BabbleEngine(CHAT), group_size=5)
    for index in (3, 0):
        alone = roll(scene(), BabbleEngine(CHAT), group_size=5, sample_indices=[index])
        assert [leaf.sample_index for leaf in alone.leaves] == [index]
        for one, other in zip(alone.trajectory(0).nodes, group.trajectory(index).nodes, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert (one.author, one.text, one.turn) == (other.author, other.text, other.turn)
            if one.behavior_logprobs is not None:
                assert one.behavior_logprobs.tolist() == other.behavior_logprobs.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@given(
    seed=st.integers(0, 10**6),
    turns=st.integers(0, 3),
    chat=st.booleans(),
    prefill=st.sampled_from(["", "<think>"]),
)
@settings(max_examples=15, deadline=None)
def test_the_engine_saw_exactly_the_nodes_before_each_completion(family, seed, turns, chat, prefill):
    """Ids sampled are ids recorded, and a request is the concatenation of recorded nodes."""
    tokenizer = chat_tokenizer(family)
    role = "tool" if family in ("qwen", "chatml") else "user"
    said = EnvStep(messages=(Message(role=role, content="no </s><|im_end|>"),)) if chat else EnvStep(text="obs</s>")
    scene = Scene(lambda n: {-1: opening(text=prefill)} | dict.fromkeys(range(turns), said))
    engine = BabbleEngine(tokenizer, seed)
    tree = asyncio.run(
        rollout_tree(
            TASK,
            envs=scene,
            engine=engine,
            renderer=Renderer(tokenizer),
            sampling=Sampling(),
            group_size=2,
            max_completion_tokens=6,
            max_path_tokens=150,
        )
    )
    again = BabbleEngine(tokenizer, seed)
    seen = {(r.sample_index, r.turn): r for r in engine.requests}
    assert len(seen) == len(engine.requests) == sum(node.author == "policy" for node in tree.nodes)
    for leaf, trajectory in zip(tree.leaves, tree.trajectories(), strict=True):
        assert leaf.status in ("done", "truncated")
        path = np.zeros(0, np.int32)
        for node in trajectory.nodes:
            if node.author == "policy":
                request = seen[leaf.sample_index, node.turn]
                assert request.token_ids.tolist() == path.tolist()
                assert node.token_ids.tolist() == asyncio.run(again.sample(request)).token_ids.tolist()
            path = np.concatenate([path, node.token_ids])
        assert len(path) <= 150
