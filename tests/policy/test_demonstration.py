"""An expert in the place of a policy: the same loop, the same records."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rlkit.env import EnvStep
from rlkit.errors import EngineError
from rlkit.policy.base import SampleRequest, Sampling
from rlkit.policy.demonstration import DemonstrationEngine
from rlkit.records import Task
from rlkit.render import Renderer
from rlkit.rollout.loop import rollout_tree
from rlkit.tags import Tags
from tests.rollout.chats import chat_tokenizer
from tests.rollout.scenes import Scene, opening

RENDERER = Renderer(chat_tokenizer("chatml"))
TASK = Task(id="q1", question="Who?", answers=("Paris",))
STOP = ("</search>", "</answer>")


class Oracle:
    """Searches once, then answers."""

    def next_completion(self, task: Task, turn: int, tags: Tags, opened: str | None = None) -> str:
        if turn == 0 and opened != "answer":
            return f"{tags.open('search')}{task.question}{tags.close('search')}"
        start = "" if opened == "answer" else tags.open("answer")
        return f"{start}{task.answers[0]}{tags.close('answer')}"


def engine(**options: Any) -> DemonstrationEngine:
    return DemonstrationEngine(Oracle(), renderer=RENDERER, tasks=[TASK], **options)


SPEAKER = engine()


def ask(turn: int = 0, *, before: str = "Who?", engine: DemonstrationEngine = SPEAKER, **changes: Any) -> Any:
    request = {
        "task_id": "q1",
        "sample_index": 0,
        "turn": turn,
        "token_ids": RENDERER.text_ids(before),
        "num_shared": 0,
        "max_tokens": 100,
        "stop": STOP,
        "sampling": Sampling(temperature=0.7, top_k=5),
    }
    return asyncio.run(engine.sample(SampleRequest(**(request | changes))))


def test_a_search_ends_at_its_stop_string():
    found = ask()
    assert (found.text, found.finish) == ("<search>Who?</search>", "stop")
    assert found.token_ids.tolist() == RENDERER.text_ids("<search>Who?</search>").tolist()


def test_a_final_answer_is_followed_by_the_end_token_though_it_is_a_stop_string():
    found = ask(turn=1)
    assert (found.text, found.finish) == ("<answer>Paris</answer><|im_end|>", "eos")
    assert found.token_ids[-1] == RENDERER.end_id


def test_a_demonstration_is_certain_and_scored_over_the_whole_vocabulary_at_temperature_1():
    found = ask(turn=1)
    assert found.behavior_logprobs.tolist() == [0.0] * len(found.token_ids)
    assert found.behavior_logprobs.dtype == np.float32
    assert (found.sampling.temperature, found.sampling.support_ids) == (1.0, None)


def test_a_demonstration_longer_than_the_cap_is_cut():
    found = ask(max_tokens=3)
    assert (len(found.token_ids), found.finish) == (3, "length")


def test_an_answer_that_the_environment_has_opened_is_only_filled_in():
    assert ask(turn=0, before="...\n<answer>\n").text == "Paris</answer><|im_end|>"


def test_the_tags_are_those_of_the_environment():
    speaker = engine(tags=Tags(search="tool_call", answer="final"))
    assert ask(engine=speaker).text.startswith("<tool_call>Who?</tool_call>")
    assert ask(turn=1, engine=speaker).text == "<final>Paris</final><|im_end|>"


def test_a_later_epoch_is_the_same_task_and_an_unknown_task_is_an_error():
    assert ask(task_id="q1@epoch3").text == ask().text
    with pytest.raises(EngineError, match="task 'q2' is none of the 1 tasks to demonstrate"):
        ask(task_id="q2")


def test_the_loop_records_a_demonstration_like_any_rollout():
    found = "<information>Paris</information>"
    scene = Scene(lambda n: {-1: opening(stop=STOP), 0: EnvStep(text=found, stop=STOP)})
    tree = asyncio.run(
        rollout_tree(
            TASK,
            envs=scene,
            engine=engine(version=3),
            renderer=RENDERER,
            sampling=Sampling(),
            group_size=1,
            max_completion_tokens=100,
            max_path_tokens=500,
        )
    )
    assert tree.leaves[0].status == "done"
    assert [node.author for node in tree.nodes] == ["prompt", "policy", "environment", "policy"]
    assert tree.trajectory(0).response == f"<search>Who?</search>{found}<answer>Paris</answer><|im_end|>"
    assert {node.policy_version for node in tree.nodes if node.author == "policy"} == {3}
    assert tree.behavior_logprobs.sum() == 0


def test_weights_are_confirmed_and_their_version_taken():
    from rlkit.sync.fingerprint import fingerprint

    speaker, weights = engine(), {"w": np.ones(3, np.float32)}
    assert speaker.load_weights(weights, 5) == fingerprint(weights)
    assert speaker.version == ask(engine=speaker).policy_version == 5


def test_demonstrations_need_no_torch():
    program = "import sys, rlkit.policy.demonstration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
