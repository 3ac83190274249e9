"""Steps and queries: the cases of search_p1 §5.3, and what an adversary would try."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.search.matching import Query, Step, newly_covered, num_covered, word_f1
from rlkit.text import normalize

STEPS = ("Search Albert Einstein birthplace", "Search Albert Einstein Nobel Prize year")


@pytest.mark.parametrize(
    ("step", "query", "f1", "fits"),
    [
        ("Search Albert Einstein birthplace", "Albert Einstein birthplace", 1.0, True),
        ("Search Albert Einstein birthplace", "Albert Einstein Nobel Prize year", 0.5, False),
        ("Find the lead singer of [that band]", "lead singer of Art Brut", 2 / 3, True),
        ("Search [identified actor] nationality", "Leonardo DiCaprio nationality", 0.5, True),  # by its placeholder
        ("Search actor nationality", "Leonardo DiCaprio nationality", 0.4, False),
        ("[that film]", "anything at all", 0.0, False),  # a placeholder alone asks for nothing
        ("Search for it", "search for it", 0.0, False),
        ("", "", 0.0, False),
    ],
)
def test_a_query_carries_out_a_step_by_its_words(step: str, query: str, f1: float, fits: bool) -> None:
    assert word_f1(Step.of(step).words, Query.of(query).words) == pytest.approx(f1)
    assert Query.of(query).carries_out(Step.of(step)) is fits


@pytest.mark.parametrize(
    ("queries", "covered"),
    [
        (["Albert Einstein birthplace", "Albert Einstein Nobel Prize year"], 2),
        (["Albert Einstein Nobel Prize year", "Albert Einstein birthplace"], 2),
        (["Albert Einstein birthplace", "the Albert Einstein BIRTHPLACE?"], 1),
        (["weather in Paris"], 0),
        ([], 0),
    ],
)
def test_steps_are_covered_in_any_order_and_once(queries: list[str], covered: int) -> None:
    assert num_covered(STEPS, queries) == covered


def test_the_matching_is_the_maximum_and_not_the_first_that_fits() -> None:
    # "red fox den" fits both steps (F1 0.8 and 0.8), "red fox" fits A and "fox den" only B.
    steps = ("red fox", "fox den")
    assert num_covered(steps, ["red fox den", "red fox"]) == 2  # greedy gives A to the first query and 1 in all
    assert num_covered(steps, ["red fox den", "fox den"]) == 2


def test_a_repeated_query_covers_nothing_new() -> None:
    assert newly_covered(STEPS, ["Albert Einstein birthplace"] * 3) == (True, False, False)


def test_a_plan_that_says_one_thing_twice_needs_two_queries() -> None:
    twice = ("Albert Einstein birthplace", "Albert Einstein's birthplace")
    assert num_covered(("Albert Einstein birthplace",) * 2, ["Albert Einstein birthplace"]) == 1
    assert num_covered(("Albert Einstein birthplace",) * 2, twice) == 2


def test_a_wrong_entity_in_the_right_words_is_not_seen() -> None:
    # The failing baseline of the paper's case study: only a judge that understands could refuse it.
    steps = ("Search the genre of the song Bang Bang Rock and Roll", "Find the lead singer of [that band]")
    assert num_covered(steps, ["song Bang Bang rock and roll genre", "lead singer of The Black Keys"]) == 2


def test_thousands_of_steps_and_queries_take_no_time() -> None:
    start = time.perf_counter()
    assert num_covered([f"fact {n}" for n in range(2000)], [f"fact {n}" for n in range(2000)]) == 2000
    assert num_covered(["red fox"] * 2000, [f"red fox {n}" for n in range(2000)]) == 2000
    assert num_covered(["red fox"] * 5, ["red fox"] * 100_000) == 1
    assert time.perf_counter() - start < 10


WORDS = st.lists(st.sampled_from(["red", "fox", "den", "[it]", "a"]), max_size=3).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(WORDS, max_size=4), queries=st.lists(WORDS, max_size=4))
def test_after_every_query_the_count_is_that_of_the_best_assignment(steps: list[str], queries: list[str]) -> None:
    found = newly_covered(steps, queries)
    for count in range(len(queries) + 1):
        assert sum(found[:count]) == _by_enumeration(steps, queries[:count])


def _by_enumeration(steps: list[str], queries: list[str]) -> int:
    distinct = list({normalize(query): query for query in queries}.values())
    places = range(len(steps))
    best = 0
    for size in range(1, min(len(distinct), len(steps)) + 1):
        for some in itertools.combinations(distinct, size):
            for order in itertools.permutations(places, size):
                fits = (Query.of(q).carries_out(Step.of(steps[i])) for q, i in zip(some, order, strict=True))
                best = max(best, size if all(fits) else 0)
    return best
