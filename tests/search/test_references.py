"""Where reference steps come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.multihop import Multihop
from rlkit.records import Task
from rlkit.search.annotation import steps as annotated_steps
from rlkit.search.matching import num_covered
from rlkit.search.references import reference_of


def task(question: str = "Where?", answer: str = "Ulm", **data: Any) -> Task:
    return Task(id="t", question=question, answers=(answer,), data=data)


def steps(of: Task) -> tuple[str, ...] | None:
    found = reference_of(of)
    return found.steps if found else None


def test_a_planner_comes_before_the_annotation() -> None:
    planned = {"ref_steps": ["a", "b"], "source": "direct: m", "ref_planner": "look"}
    found = reference_of(task(reference=planned, supporting_titles=["C"]))
    assert found is not None and (found.steps, found.source, found.planner) == (("a", "b"), "direct: m", "look")
    assert steps(task(reference={"ref_steps": []}, supporting_titles=["C"])) == ("[facts about] C",)


def test_a_decomposition_gives_open_steps() -> None:
    parts = [{"question": "Who made it?", "answer": "Watt"}, {"question": "#1 >> born in", "answer": "Greenock"}]
    assert steps(task(decomposition=parts)) == ("Who made it?", "[result 1] born in")


def test_triples_give_open_steps() -> None:
    triples = [["A", "father", "B"], ["B", "birthplace", "Ulm"]]
    found = steps(task(evidences=triples))
    assert found == ("A: father", "[result 1]: birthplace")
    assert num_covered(found, ["A father", "birthplace of B"]) == 2


def test_a_title_stands_for_every_query_that_names_it() -> None:
    found = steps(task(supporting_titles=["Peter Best (composer)", "Crocodile Dundee"]))
    assert found == ("[facts about] Peter Best", "[facts about] Crocodile Dundee")
    assert num_covered(found, ["year of birth of Peter Best", "when was Crocodile Dundee released"]) == 2


def test_a_step_that_would_tell_the_answer_is_left_out() -> None:
    assert steps(task(supporting_titles=["Ulm", "Danube"])) == ("[facts about] Danube",)
    assert steps(task(question="Is Ulm older?", supporting_titles=["Ulm"])) == ("[facts about] Ulm",)
    assert steps(task(supporting_titles=["Ulm"])) is None


def test_a_step_that_would_tell_the_answer_is_searched_in_the_words_of_the_question_and_says_so() -> None:
    [first, second] = annotated_steps(
        task(question="Where does the Danube meet its city?", supporting_titles=["Ulm", "Danube"])
    )
    assert (first.goal, first.query) == ("facts about Danube", "Danube")
    assert second.goal == second.query == "danube meet city"  # a goal in other words no query could carry out


def test_a_task_that_nobody_annotated_has_no_reference() -> None:
    assert steps(task()) is None


DATA = Path(os.environ.get("RLKIT_DATA", "data")) / "multihop_qa"


@pytest.mark.skipif(not DATA.is_dir(), reason="RLKIT_DATA has no multihop_qa")
@pytest.mark.parametrize("name", ["musique", "2wikimultihopqa", "hotpotqa"])
def test_nearly_every_annotated_question_has_a_reference_that_does_not_tell_the_answer(name: str) -> None:
    tasks = Multihop(Multihop.Config(path=str(DATA), datasets=[name])).tasks("dev")
    found = [reference_of(each) for each in tasks]
    assert sum(reference is not None for reference in found) > 0.95 * len(tasks)


@pytest.mark.skipif(not DATA.is_dir(), reason="RLKIT_DATA has no multihop_qa")
@pytest.mark.parametrize("name", ["musique", "2wikimultihopqa", "hotpotqa"])
def test_nearly_every_annotated_search_carries_out_its_own_step(name: str) -> None:
    tasks = Multihop(Multihop.Config(path=str(DATA), datasets=[name])).tasks("train")
    paths = [annotated_steps(each) for each in tasks]
    done = [num_covered([s.goal for s in path], [s.query for s in path]) == len(path) for path in paths]
    assert sum(done) > 0.97 * len(done)
