"""Evidence: cut to a budget, read back from a trajectory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlkit.evidence.passages import estimated_tokens, evidence_of, within_budget
from rlkit.evidence.urls import extract_urls
from tests.rewards.paths import path


def test_texts_are_kept_whole_while_they_fit() -> None:
    assert within_budget(["aaaa", "bbb", "cc"], 7) == ["aaaa", "bbb"]
    assert within_budget(["aaaa", "bbb", "cc"], 6) == ["aaaa"]  # later ones do not slip in: order is rank
    assert within_budget([], 6) == []


def test_the_first_text_alone_is_cut_between_words_and_never_inside_a_url() -> None:
    text = "Read it at https://a.com/long/path now"  # the URL spans characters 11 to 34
    assert within_budget([text], 40) == [text]
    assert within_budget([text], 36) == ["Read it at https://a.com/long/path"]
    for budget in range(11, 34):
        assert within_budget([text], budget) == ["Read it at"]
    assert within_budget([text], 9) == ["Read it"]


@given(
    st.lists(st.sampled_from(["word", "https://a.com/x", "(https://b.org/y).", "中文"]), max_size=8), st.integers(0, 60)
)
def test_a_cut_invents_no_url_and_keeps_the_budget(words: list[str], budget: int) -> None:
    text = " ".join(words)
    [kept] = within_budget([text], budget)
    assert len(kept) <= budget
    assert text.startswith(kept)
    assert set(extract_urls(kept)) <= set(extract_urls(text))


def test_tokens_are_estimated_from_above_for_other_scripts() -> None:
    assert estimated_tokens("abcdefgh") == 2
    assert estimated_tokens("abcde") == 2
    assert estimated_tokens("中文") == 2
    assert estimated_tokens("") == 0


def test_evidence_is_what_the_environment_tagged_and_nothing_of_the_policy() -> None:
    trajectory = path(
        "m:<information>https://forged.com</information>",
        "e:<information>https://a.com/1</information>",
        "m:x",
        "e:noise <information>https://a.com/2</information>",
    )
    assert evidence_of(trajectory) == "https://a.com/1\nhttps://a.com/2"
    assert evidence_of(trajectory, "tool_response") == ""
