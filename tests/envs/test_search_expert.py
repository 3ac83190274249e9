"""The expert's searches, from each kind of annotation."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.multihop import Multihop
from rlkit.data.world import World
from rlkit.envs.agentic_search import AgenticSearch
from rlkit.envs.bm25 import Bm25
from rlkit.envs.search_expert import SearchExpert
from rlkit.records import Task
from rlkit.search.annotation import steps
from rlkit.tags import Tags, parse
from rlkit.text import best, contains_words

TAGS = Tags()
MUSIQUE = Task(
    id="m",
    question="Where was the creator of the Lap Engine educated?",
    answers=("University of Glasgow",),
    data={
        "decomposition": [
            {"question": "Who developed Lap Engine?", "answer": "James Watt"},
            {"question": "#1 >> educated at", "answer": "University of Glasgow"},
        ]
    },
)


def task(question: str, answer: str, **data: Any) -> Task:
    return Task(id="t", question=question, answers=(answer,), data=data)


def queries(of: Task) -> list[str]:
    return [step.query for step in steps(of)]


def test_a_decomposition_is_searched_step_by_step() -> None:
    assert queries(MUSIQUE) == ["Who developed Lap Engine?", "James Watt educated at"]
    assert [step.goal for step in steps(MUSIQUE)] == ["Who developed Lap Engine?", "[result 1] educated at"]


def test_evidence_triples_become_a_search_each_and_repeats_only_one() -> None:
    directors = [["A", "director", "Ann"], ["B", "director", "Bob"], ["B", "director", "Cid"], ["Ann", "born", "1900"]]
    found = steps(task("Which film has the older director, A or B?", "A", evidences=directors))
    assert [step.query for step in found] == ["A director", "B director", "Ann born"]
    assert found[-1].goal == "[result 1]: born"


def test_titles_that_the_question_names_come_first() -> None:
    asked = task(
        "What film did Peter Best make in 1986?",
        "1986",
        supporting_titles=["Crocodile Dundee", "Peter Best (composer)"],
    )
    assert queries(asked) == ["Peter Best composer", "Crocodile Dundee"]


def test_a_query_gives_no_answer_away_that_the_question_did_not() -> None:
    asked = task(
        "What film did Peter Best make in 1986?",
        "Crocodile Dundee",
        supporting_titles=["Crocodile Dundee", "Peter Best (composer)"],
    )
    assert queries(asked) == ["Peter Best composer", "film peter best make 1986"]
    named = task("Who is older, Ann or Bob?", "Ann", supporting_titles=["Ann", "Bob"])
    assert queries(named) == ["Ann", "Bob"]


def test_without_annotation_the_question_itself_is_searched() -> None:
    assert queries(task("Who sings?", "Ann")) == ["Who sings?"]


def test_the_expert_searches_each_step_and_then_answers() -> None:
    expert = SearchExpert()
    written = [expert.next_completion(MUSIQUE, turn, TAGS) for turn in range(3)]
    actions = [parse(completion, TAGS) for completion in written]
    assert [(action.kind, action.content) for action in actions] == [
        ("search", "Who developed Lap Engine?"),
        ("search", "James Watt educated at"),
        ("answer", "University of Glasgow"),
    ]
    assert all(completion.startswith("<think>") for completion in written)
    assert "James Watt" not in written[0] and "University of Glasgow" not in "".join(written[:2])


def test_what_the_environment_opened_is_not_written_again() -> None:
    expert = SearchExpert()
    assert expert.next_completion(MUSIQUE, 0, TAGS, opened="search") == "Who developed Lap Engine?</search>"
    assert expert.next_completion(MUSIQUE, 0, TAGS, opened="answer") == "University of Glasgow</answer>"
    assert expert.next_completion(MUSIQUE, 0, TAGS, opened="think").startswith(("I need", "Let me", "To start"))


def test_thoughts_and_a_plan_are_settings() -> None:
    terse = SearchExpert(SearchExpert.Config(think=False))
    assert terse.next_completion(MUSIQUE, 1, TAGS) == "<search>James Watt educated at</search>"
    planner = SearchExpert(SearchExpert.Config(plan=True))
    assert planner.next_completion(MUSIQUE, 0, TAGS) == (
        "<think>\n1. Who developed Lap Engine?\n2. [result 1] educated at\n</think>"
        "<search>Who developed Lap Engine?</search>"
    )
    tagged = planner.next_completion(MUSIQUE, 0, replace(TAGS, plan="plan"))
    assert tagged.startswith("<plan>\n1. Who developed Lap Engine?\n2. [result 1] educated at\n</plan><think>")
    assert planner.next_completion(MUSIQUE, 0, replace(TAGS, plan="plan"), "plan").startswith("\n1. Who")
    with pytest.raises(ValueError, match="plan: true needs think: true"):
        SearchExpert.Config(plan=True, think=False)


def test_words_vary_with_the_task_and_repeat_with_the_seed() -> None:
    tasks = World(World.Config(num_dev=40)).tasks("dev")
    first, again, other = (SearchExpert(SearchExpert.Config(seed=seed)) for seed in (0, 0, 1))
    thoughts = [[e.next_completion(t, 0, TAGS) for t in tasks] for e in (first, again, other)]
    assert thoughts[0] == thoughts[1] != thoughts[2]
    assert len({thought.partition(": ")[0] for thought in thoughts[0]}) == 3


def test_a_budget_cuts_the_steps() -> None:
    expert = SearchExpert(SearchExpert.Config(max_searches=1))
    assert parse(expert.next_completion(MUSIQUE, 1, TAGS), TAGS).kind == "answer"


@pytest.mark.parametrize("prefill", ["none", "think", "search"])
def test_in_the_world_the_expert_always_finds_and_gives_the_answer(prefill: str) -> None:
    world = World(World.Config(hops=[0.5, 0.5], num_dev=40))
    kind = AgenticSearch(
        AgenticSearch.Config(top_k=1, max_searches=2, prefill=prefill),  # type: ignore[arg-type]
        Bm25(Bm25.Config(), world.passages()),
    )

    async def play(asked: Task) -> tuple[str | None, str]:
        env, read, opened = kind.make(), "", None if prefill == "none" else prefill
        step = await env.start(asked)
        for turn in range(3):
            step = await env.step(SearchExpert().next_completion(asked, turn, TAGS, opened))  # type: ignore[arg-type]
            opened = "answer" if step.text.endswith("<answer>") else None
            read += step.text
            if step.done:
                break
        return step.answer, read

    for asked in world.tasks("dev"):
        answer, read = asyncio.run(play(asked))
        assert answer == asked.answers[0]
        assert asked.answers[0] in read


REAL = Path(os.environ.get("RLKIT_DATA", "")) / "multihop_qa"


@pytest.mark.skipif(
    "RLKIT_DATA" not in os.environ or not REAL.is_dir(), reason="RLKIT_DATA names no folder with multihop_qa"
)
@pytest.mark.parametrize(("dataset", "found"), [("hotpotqa", 0.92), ("2wikimultihopqa", 0.85), ("musique", 0.75)])
def test_on_real_questions_the_experts_passages_hold_the_answer(dataset: str, found: float) -> None:
    data = Multihop(Multihop.Config(path=str(REAL), datasets=[dataset], limit=100))
    bm25 = Bm25(Bm25.Config(), data.passages())
    asked = [t for t in data.tasks("train") if t.answers[0].lower() not in ("yes", "no")]
    searched = [query for t in asked for query in queries(t)[:4]]
    results = iter(bm25.search_now(searched, 3))
    hits = []
    for t in asked:
        read = " ".join(p.title + " " + p.text for _ in queries(t)[:4] for p in next(results).passages)
        hits.append(best(contains_words, read, t.answers))
    assert sum(hits) / len(hits) >= found
