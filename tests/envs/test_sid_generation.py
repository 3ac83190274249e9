"""A history in, an item out, with every kind of bad input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rlkit.env import EnvStep
from rlkit.envs.sid_generation import SidGeneration
from rlkit.errors import EnvError
from rlkit.records import Task
from tests.catalogue.shop import ITEMS, text, write

DATA = {"levels": 3, "targets": [12], "history_titles": ["thing 10", "thing 11"]}
TASK = Task(id="t", question=text(10, 11), answers=(text(12),), data=DATA)


def opened(task: Task = TASK, **settings: Any) -> tuple[Any, EnvStep]:
    env = SidGeneration(SidGeneration.Config(**settings)).make()
    return env, asyncio.run(env.start(task))


def answered(completion: str, task: Task = TASK, **settings: Any) -> EnvStep:
    return asyncio.run(opened(task, **settings)[0].step(completion))


def test_the_prompt_is_the_history_and_the_answer_has_one_token_per_level() -> None:
    _, step = opened()
    assert [message.content for message in step.messages] == [text(10, 11)]
    assert (step.max_tokens, step.stop) == (3, ("<c_",))


def test_a_text_history_shows_titles_in_the_recipes_words() -> None:
    _, step = opened(history="text", prompt="Bought: {history}. Next?", separator="; ")
    assert step.messages[0].content == "Bought: thing 10; thing 11. Next?"


def test_a_separator_stands_between_items_not_between_tokens() -> None:
    assert opened(separator=", ")[1].messages[0].content == f"{text(10)}, {text(11)}"


def test_an_empty_history_leaves_an_empty_prompt() -> None:
    _, step = opened(Task(id="t", question="", answers=TASK.answers, data=DATA | {"history_titles": []}))
    assert step.messages[0].content == ""


def test_a_whole_sequence_is_one_answer_without_a_stop() -> None:
    task = Task(id="t", question="", answers=(text(10, 11),), data=DATA | {"targets": [10, 11]})
    assert (opened(task)[1].max_tokens, opened(task)[1].stop) == (6, ())
    assert answered(text(10, 11), task).answer == text(10, 11)


@pytest.mark.parametrize(
    "said", ["", "<a_1><b_2>", text(12) + "<c_3>", "<a_1><b_2><c_3> x", "<b_1><a_1><c_1>", "<c_1>"]
)
def test_what_is_no_semantic_id_is_counted_and_has_no_answer(said: str) -> None:
    step = answered(said)
    assert (step.done, step.status, step.reason, step.answer) == (True, "done", "invalid_sid", None)
    assert step.signals == {"invalid": 1.0}


def test_a_semantic_id_outside_the_catalogue_is_invalid_where_the_items_are_known(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl.gz", ITEMS)
    nowhere = "<a_2><b_2><c_3>"
    assert answered(nowhere).answer == nowhere
    assert answered(nowhere, items=str(tmp_path / "items.jsonl.gz")).answer is None
    assert answered(text(12), items=str(tmp_path / "items.jsonl.gz")).signals == {"invalid": 0.0}


def test_tasks_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(EnvError, match="its data have no levels"):
        opened(Task(id="t", question="Who?"))
    with pytest.raises(EnvError, match="no history of semantic IDs of 3 levels"):
        opened(Task(id="t", question="<a_1><b_1>", data=DATA))
    with pytest.raises(EnvError, match=r"has no title; use env\.history=sid"):
        opened(Task(id="t", question=text(10), data=DATA | {"history_titles": [""]}), history="text")


def test_a_prompt_without_a_place_for_the_history_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt: 'Next' does not hold \{history\} exactly once"):
        SidGeneration.Config(prompt="Next")
