"""One retrieval, one completion."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlkit.env import EnvStep
from rlkit.envs.qa_retrieval import QaRetrieval
from rlkit.errors import EnvError
from rlkit.records import Task
from rlkit.retriever import Passage
from tests.envs.libraries import OSSIN, VELMORA, Shelf

TASK = Task(id="t", question="Who is the mayor of Velmora?", answers=("Tarek Lundvig",))


def play(completion: str, shelf: Shelf | None = None, task: Task = TASK, **config: Any) -> tuple[EnvStep, EnvStep]:
    async def run() -> tuple[EnvStep, EnvStep]:
        env = QaRetrieval(QaRetrieval.Config(**config), shelf or Shelf(VELMORA, OSSIN)).make()
        said = await env.start(task), await env.step(completion)
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


def test_a_page_without_url_has_no_line_about_one() -> None:
    nowhere = Passage(id="n", title="Nowhere", text="No address.")
    shown = {"passage": "{title}\nURL: {url}\n{text}", "prompt": "{passages}|{question}"}
    start, _ = play("x", Shelf(nowhere), top_k=1, **shown)
    assert start.messages[0].content.startswith("Nowhere\nNo address.|")
    named = Passage(id="n", title="Nowhere", text="An address.", url="https://a.com/n")
    start, _ = play("x", Shelf(named), top_k=1, **shown)
    assert start.messages[0].content.startswith("Nowhere\nURL: https://a.com/n\nAn address.|")
    start, _ = play("x", Shelf(nowhere), top_k=1, passage="{text} <{url}>", prompt="{passages}|{question}")
    assert start.messages[0].content.startswith("No address. <>|")  # the text stays


def test_counterfactual_evidence_is_shown_as_the_task_says_and_keeps_its_urls() -> None:
    page = Passage(id="p", title="Limit 5", text="At most 5 ads, see https://a.com/5.", url="https://a.com/5")
    task = Task(id="c", question="How many?", data={"replace": {"5": "9"}})
    form = {"passage": "{title}|{url}|{text}", "prompt": "{passages}|{question}"}
    start, _ = play("x", Shelf(page), task, top_k=1, **form)
    assert start.messages[0].content.startswith("Limit 9|https://a.com/5|At most 9 ads, see https://a.com/5.")
