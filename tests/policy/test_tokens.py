"""Stop strings are seen the moment they are complete, however the tokens cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.policy.fake import ByteTokenizer
from rlkit.policy.tokens import StopWatch


def stops_at(text: str, *stop: str) -> int | None:
    """Index of the byte that ends the text, or None."""
    watch = StopWatch(ByteTokenizer(), stop)
    return next((index for index, token in enumerate(text.encode()) if watch.completes(token)), None)


@pytest.mark.parametrize(
    ("text", "stop", "index"),
    [
        ("a</answer>b", "</answer>", 9),
        ("</answer", "</answer>", None),
        ("</<</answer>", "</answer>", 11),
        ("naïve", "ï", 3),  # n, a, then the two bytes of ï: the second completes it
        ("中文", "文", 5),
        ("x" * 200 + "ab", "ab", 201),
    ],
)
def test_the_byte_that_completes_a_stop_string_ends_the_text(text: str, stop: str, index: int | None) -> None:
    assert stops_at(text, stop) == index


def test_the_first_of_several_stop_strings_wins() -> None:
    assert stops_at("one two", "two", "one") == 2


def test_no_stop_string_never_stops() -> None:
    assert stops_at("anything") is None


@given(text=st.text("ab<é", max_size=30), stop=st.text("ab<é", min_size=1, max_size=4))
def test_a_text_stops_where_a_search_finds_the_string(text: str, stop: str) -> None:
    found = text.find(stop)
    expected = None if found < 0 else len(text[: found + len(stop)].encode()) - 1
    assert stops_at(text, stop) == expected


def test_a_token_longer_than_the_stop_string_ends_the_text_too(tokenizer) -> None:
    text = "She was born in London"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    watch = StopWatch(tokenizer, ["orn"])
    count = next(i for i, token in enumerate(tokens, start=1) if watch.completes(token))
    assert "orn" in tokenizer.decode(tokens[:count])
    assert "orn" not in tokenizer.decode(tokens[: count - 1])
