"""One retrieval, one completion."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlkit.env import EnvStep
from rlkit.envs.qa_retrieval import QaRetrieval
from rlkit.errors import EnvError
from rlkit.records import Task
from tests.envs.libraries import OSSIN, VELMORA, Shelf

TASK = Task(id="t", question="Who is the mayor of Velmora?", answers=("Tarek Lundvig",))


def play(completion: str, shelf: Shelf | None = None, **config: Any) -> tuple[EnvStep, EnvStep]:
    async def run() -> tuple[EnvStep, EnvStep]:
        env = QaRetrieval(QaRetrieval.Config(**config), shelf or Shelf(VELMORA, OSSIN)).make()
        said = await env.start(TASK), await env.step(completion)
        await env.close()
        return said

    return asyncio.run(run())


def test_the_question_is_searched_once_and_its_passages_stand_in_the_prompt() -> None:
    shelf = Shelf(VELMORA, OSSIN)
    start, end = play(" Tarek Lundvig\n", shelf, top_k=1, passage="{text}")
    assert shelf.calls == [["Who is the mayor of Velmora?"]]
    [message] = start.messages
    assert message.content == (
        "Velmora is a town. Its mayor is Tarek Lundvig.\n\n"
        "Answer in a few words.\nQuestion: Who is the mayor of Velmora?"
    )
    assert (end.done, end.answer, end.reason) == (True, "Tarek Lundvig", "")
    assert end.signals == {"num_passages": 1.0}


def test_with_tags_only_a_closed_answer_counts() -> None:
    start, end = play("It is <answer>Tarek</answer>", tagged=True)
    assert start.stop == ("</answer>",) and end.answer == "Tarek"
    assert play("<answer>Tarek", tagged=True)[1].answer is None
    assert play("", tagged=False)[1].reason == "no_answer"


def test_passages_are_cut_in_characters() -> None:
    start, _ = play("x", passage="{text}", max_passages_chars=7, prompt="{passages}|{question}")
    assert start.messages[0].content == "Velmora|Who is the mayor of Velmora?"


def test_a_failed_search_fails_the_trajectory() -> None:
    with pytest.raises(EnvError, match="retriever: refused: queue full"):
        play("x", Shelf(status="refused: queue full"))


def test_a_prompt_without_a_place_for_passages_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt: .* lacks \{passages\}"):
        QaRetrieval.Config(prompt="Question: {question}")
