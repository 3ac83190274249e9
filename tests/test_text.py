"""Known answers of the answer metrics, from search_p1 §6 and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.text import best, contains, contains_words, exact, f1, normalize, replaced, rouge_l


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eddie Argos.", "eddie argos"),
        ("U.S.A.", "usa"),
        ("  An\tapple,  a day\n", "apple day"),
        ("The", ""),
        ("Theatre and Anthem", "theatre and anthem"),  # articles are dropped as words only
        ("", ""),
    ],
)
def test_normalising_drops_case_punctuation_articles_and_spare_space(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "em", "acc", "words"),
    [
        ("It was Eddie Argos, the frontman", "Eddie Argos", 0, 1, 1),
        ("The Eddie Argos.", "Eddie Argos", 1, 1, 1),
        ("Einsteinium", "Einstein", 0, 1, 0),  # plain containment cannot see where a word ends
        ("Einstein", "Einsteinium", 0, 0, 0),
        ("anything", "The", 0, 0, 0),  # nothing is left of the gold answer
        ("", "The", 0, 0, 0),
        ("", "Paris", 0, 0, 0),
    ],
)
def test_exact_match_and_containment_differ_as_published(
    answer: str, gold: str, em: float, acc: float, words: float
) -> None:
    assert (exact(answer, gold), contains(answer, gold), contains_words(answer, gold)) == (em, acc, words)


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("Eddie Argos the frontman", "Eddie Argos", 0.8),  # precision 2/3, recall 1: 2·2/(3+2)
        ("Argos", "Eddie Argos", 2 / 3),  # precision 1, recall 1/2
        ("no no no", "no", 0.5),  # a repeated word counts once: 2·1/(3+1)
        ("London", "Paris", 0.0),
        ("The", "The", 0.0),
    ],
)
def test_f1_counts_shared_words_once(answer: str, gold: str, score: float) -> None:
    assert f1(answer, gold) == pytest.approx(score)


def test_the_best_accepted_answer_counts_and_no_accepted_answer_is_zero() -> None:
    assert best(f1, "Argos", ["Eddie Argos", "Argos"]) == 1.0
    assert best(exact, "Argos", []) == 0.0


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_metrics_are_ordered_and_bounded_for_any_text(answer: str, gold: str) -> None:
    assert normalize(normalize(answer)) == normalize(answer)
    assert 0.0 <= exact(answer, gold) <= contains_words(answer, gold) <= contains(answer, gold) <= 1.0
    assert exact(answer, gold) <= f1(answer, gold) <= 1.0


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("The cat sat.", "the cat on the mat sat", 2 * 3 / (3 + 6)),  # the, cat, sat in order
        ("sat cat the", "the cat sat", 2 * 1 / (3 + 3)),  # order counts: one of three
        ("no no no", "no", 2 * 1 / (3 + 1)),
        ("广告审核", "审核广告时间", 2 * 2 / (4 + 6)),  # characters: either half, in order
        ("x", "x", 1.0),
        ("", "x", 0.0),
        ("!?", "x", 0.0),
    ],
)
def test_rouge_l_is_the_share_of_the_longest_common_subsequence(answer: str, gold: str, score: float) -> None:
    assert rouge_l(answer, gold) == pytest.approx(score)
    assert rouge_l(gold, answer) == pytest.approx(score)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_rouge_l_equals_the_textbook_table(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    wanted = 2 * table[-1][-1] / (len(first) + len(second)) if first and second else 0.0
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(wanted)


def test_words_are_replaced_where_they_stand_alone() -> None:
    text = "Pay 5 dollars (5), not 15 or 5.5; see https://a.com/5?n=5#5 and -5. Daily, 5."
    assert replaced(text, {"5": "9", "Daily": "Monthly"}) == (
        "Pay 9 dollars (9), not 15 or 5.5; see https://a.com/5?n=5#5 and -5. Monthly, 9."
    )
    assert replaced("a b", {"a": "b", "b": "a"}) == "b a"  # both at once
    assert replaced(text, {}) == text
