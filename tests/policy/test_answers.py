"""The task's own answer in the place of a completion."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from rlkit.errors import EngineError
from rlkit.policy.answers import AnswerEngine
from rlkit.policy.base import SampleRequest
from rlkit.records import Task
from rlkit.render import Renderer
from tests.rollout.chats import chat_tokenizer

RENDERER = Renderer(chat_tokenizer("chatml"))
TASKS = [Task(id="q", question="Where?", answers=("Paris",)), Task(id="none", question="?")]


def ask(task_id: str = "q", **changes: Any) -> Any:
    request = {
        "sample_index": 0,
        "turn": 0,
        "token_ids": RENDERER.text_ids("Where?"),
        "num_shared": 0,
        "max_tokens": 50,
    }
    engine = AnswerEngine(renderer=RENDERER, tasks=TASKS)
    return asyncio.run(engine.sample(SampleRequest(task_id=task_id, **(request | changes))))


def test_the_answer_is_shown_and_ended() -> None:
    found = ask()
    assert (found.text, found.finish) == ("Paris<|im_end|>", "eos")
    assert found.behavior_logprobs.tolist() == [0.0] * len(found.token_ids)
    assert found.token_ids.dtype == np.int32


def test_a_later_epoch_shows_the_same_answer() -> None:
    assert ask("q@epoch3").text == ask().text


def test_an_answer_that_fills_its_room_or_holds_a_stop_string_needs_no_end() -> None:
    exact = len(RENDERER.text_ids("Paris"))
    assert (ask(max_tokens=exact).text, ask(max_tokens=exact).finish) == ("Paris", "stop")
    assert (ask(stop=("ris",)).text, ask(stop=("ris",)).finish) == ("Paris", "stop")


def test_an_answer_longer_than_the_cap_is_cut() -> None:
    found = ask(max_tokens=1)
    assert (len(found.token_ids), found.finish) == (1, "length")


@pytest.mark.parametrize("task_id", ["unknown", "none"])
def test_a_task_without_an_answer_is_an_error(task_id: str) -> None:
    with pytest.raises(EngineError, match=task_id):
        ask(task_id)
